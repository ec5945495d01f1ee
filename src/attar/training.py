"""One training from a request to a finished run folder: check, read the images, build, fit, save.

The body of `attar.pretrain` and `attar.distill`. Whatever can be wrong is looked at in the order of its cost: what the
request alone shows comes before the first image is decoded, and a run that exists is compared before it is touched.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import BackboneError, CheckpointError, DataError, RecipeError, RunChanged, RunError
from attar.train.run import RunFolder

if TYPE_CHECKING:
    from attar.data.images import Images, ImageSpec
    from attar.methods.base import Method, Recipe, Trained
    from attar.models.clusters import Clusters
    from attar.models.teachers import Teacher
    from attar.train.loop import FitResult, Job

logger = logging.getLogger("attar")

SMALL_IMAGE = 64  # pixels up to which a method's "small" recipe is the default


@dataclass(frozen=True)
class Run:
    """What a training returns: its folder, the resolved recipe, and how it ended."""

    path: Path
    recipe: dict[str, Any]
    fit: FitResult | None  # None when the run was already complete

    @property
    def interrupted(self) -> bool:
        return self.fit is not None and self.fit.interrupted

    def or_stop(self) -> Run:
        """This run; KeyboardInterrupt if a signal ended it, so that a sequence of stages ends there too."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a training was asked for; see `attar.stages.pretrain` for the meaning of each."""

    source: Any
    out: str | Path
    method: str
    backbone: str
    teacher: Any = None
    recipe: str | None
    settings: dict[str, Any] | None
    epochs: int | None
    minutes: float | None
    batch_size: int | None
    image_size: int | None
    channels: int | str
    stem: str
    pretrained: bool
    init: str | Path | None = None
    lr: float | None
    labels: str | None
    label_fraction: float | None = None
    label_noise: str | None = None
    cache: str | Path | None
    workers: int | None
    seed: int
    device: str
    precision: str
    accumulate: int
    compile: bool
    checkpoint_activations: bool
    shard: bool
    checkpoint_steps: int | None
    resume: bool
    progress: bool

    @property
    def overrides(self) -> dict[str, Any]:
        """The recipe's fields that the request replaces."""
        values = dict(self.settings or {})
        for field in ("epochs", "batch_size", "lr"):
            given = getattr(self, field)
            if given is not None:
                if field in values:
                    raise RecipeError(f"{field} is given twice: as an option and among the settings. Leave one out.")
                values[field] = given
        return values

    def recipe_name(self, size: int | None) -> str:
        """The named recipe for images of this size; for an unknown size the method's first."""
        from attar.methods.base import load

        recipes = load(self.method).RECIPES
        small = size is not None and size <= SMALL_IMAGE and "small" in recipes
        return self.recipe or ("small" if small else next(iter(recipes)))


def train(request: Request) -> Run:
    """Carry a request out, or continue it.

    Raises:
        AttarError: for anything a user can cause, before training starts where possible.
    """
    from attar.methods.base import load
    from attar.train.distributed import world as join_world
    from attar.train.loop import fit

    check(request)
    saved = _saved_recipe(request)
    with join_world(request.device) as world:
        if request.shard and world.world_size == 1:
            raise RecipeError(
                "--shard spreads one training over several processes, and there is one. Start it with torchrun "
                "--nproc-per-node N -m attar …, or leave --shard out."
            )
        plan = _plan(request, world, saved)
        if saved is not None:
            _must_be_the_same(request, saved, plan.identity)
            if RunFolder(Path(request.out)).is_complete:
                logger.info("%s is complete; nothing to do.", request.out)
                return Run(Path(request.out), saved, None)
        if load(request.method).METHOD.needs_clusters:
            plan = replace(plan, clusters=_clusters(request, plan, world))
        job = _build(request, plan, world)
        if request.minutes is not None and saved is None:
            job = _fit_into_minutes(job, request.minutes)
            plan = replace(plan, recipe=job.method.recipe)
        resolved = plan.resolved
        run = RunFolder(Path(request.out))
        if world.is_main:
            needed = 3 * 4 * 4 * sum(p.numel() for p in job.method.parameters())  # two checkpoints with moments
            run = RunFolder.create(request.out, resume=request.resume, needed_bytes=needed)
        try:
            if world.is_main:
                if saved is None:
                    run.write_recipe(resolved)
                _say(plan, job)
            world.barrier()
            result = fit(job, run, identity=plan.identity, resume=saved is not None)
            if world.is_main and not result.interrupted:
                _finish(run, job, plan, resolved, result)
            world.barrier()
        finally:
            run.release()
    return Run(run.path, resolved, result)


def check(request: Request) -> None:
    """What the request alone shows to be wrong; reads no image and writes nothing."""
    from attar.methods.base import load, resolve_recipe
    from attar.models.backbones import check_name
    from attar.models.handcrafted import NAMES as FIXED
    from attar.train.distributed import choose_device
    from attar.train.loop import choose_precision

    method = load(request.method).METHOD
    _check_teacher(request, method)
    for option, least in _LEAST.items():
        given = getattr(request, option)
        if given is not None and not given >= least:
            raise RecipeError(f"--{option.replace('_', '-')} {given}: it must be {least} or more.")
    for option in ("minutes", "lr"):
        given = getattr(request, option)
        if given is not None and not given > 0:
            raise RecipeError(f"--{option} {given}: it must be more than 0.")
    if request.minutes is not None and "epochs" in request.overrides:
        raise RecipeError("--epochs and --minutes both set the length of training; give one of them.")
    names = [request.recipe] if request.recipe else [None, *({"small"} & load(request.method).RECIPES.keys())]
    refused = [error for name in names if (error := _refusal(resolve_recipe, request, name)) is not None]
    if len(refused) == len(names):  # which recipe it will be depends on the images; it may be one that accepts
        raise refused[0]
    check_name(request.backbone, stem=request.stem)
    if request.backbone in FIXED:
        raise BackboneError(f"--backbone {request.backbone} has no weights to train; it is a control and a teacher.")
    _check_teacher_exists(request.teacher)
    _check_init(request)
    _check_label_options(request, method)
    if isinstance(request.source, (str, Path)) and Path(request.out).absolute().is_relative_to(
        Path(request.source).absolute()
    ):
        raise RunError(f"--out {request.out} lies inside the images of {request.source}; choose a folder elsewhere.")
    _check_backbone(request, method)
    if request.compile and method.needs_tokens:
        raise RecipeError(
            f"--compile would be ignored: {request.method} reads tokens past what it compiles. Leave it out."
        )
    if request.compile and request.shard:
        raise RecipeError("--compile and --shard do not go together yet; leave one of them out.")
    choose_precision(request.precision, choose_device(request.device))
    RunFolder.check(request.out, resume=request.resume)


_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "image_size": 8,
    "workers": 1,
    "seed": 0,
    "accumulate": 1,
    "checkpoint_steps": 1,
}


def _refusal(resolve_recipe: Any, request: Request, name: str | None) -> RecipeError | None:
    try:
        resolve_recipe(request.method, name, request.overrides)
    except RecipeError as error:
        return error
    return None


def _check_teacher(request: Request, method: type[Method]) -> None:
    if method.needs_teacher and request.teacher is None:
        raise RecipeError(
            f"{request.method} distils and needs a teacher: "
            f"attar distill SOURCE --teacher RUN --method {request.method}"
        )
    if not method.needs_teacher and request.teacher is not None:
        raise RecipeError(
            f"{request.method} has no use for a teacher, so --teacher would be ignored. "
            f"Use attar pretrain, or a method that distils (see attar methods)."
        )


def teachers_named(teacher: Any) -> list[Any]:
    """The teachers that were asked for: runs and names, "A,B" being two; an object given in Python as it is."""
    if isinstance(teacher, str) and not Path(teacher).exists():
        return teacher.split(",")
    return list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]


def _check_teacher_exists(teacher: Any) -> None:
    from attar.models.backbones import check_name

    for one in teachers_named(teacher):
        if not isinstance(one, (str, Path)) or Path(one).exists():
            continue
        if len(Path(one).parts) > 1 or str(one).startswith("."):
            raise CheckpointError(f"--teacher {Path(one).absolute()} does not exist; give a run folder, or a name.")
        check_name(str(one))


def _check_label_options(request: Request, method: type[Method]) -> None:
    for option in ("label_fraction", "label_noise"):
        if getattr(request, option) is not None and not method.needs_labels:
            raise RecipeError(
                f"--{option.replace('_', '-')} would be ignored: {request.method} is not trained with labels."
            )


def _check_init(request: Request) -> None:
    if request.init is None:
        return
    if request.pretrained:
        raise RecipeError("--init and --pretrained both say where the weights come from; give one of them.")
    from attar.models.saved import saved_digest

    saved_digest(Path(request.init))


def _check_backbone(request: Request, method: type[Method]) -> None:
    """Methods that mask patches refuse other networks here; a size that does not fit comes with the images."""
    if not method.needs_tokens:
        return
    from attar.models.backbones import build_backbone
    from attar.models.tokens import check_tokens

    try:
        backbone = build_backbone(request.backbone, image_size=request.image_size or 32)
    except BackboneError:  # said again, in terms of the real size, when the images are known
        return
    check_tokens(backbone, request.method, method.needs_tokens)


def _saved_recipe(request: Request) -> dict[str, Any] | None:
    run = RunFolder(Path(request.out))
    if not request.resume:
        return None
    if not (run / "recipe.yaml").is_file() or not run.has_begun:
        logger.info("%s holds no run yet; beginning one.", request.out)
        return None
    return run.read_recipe()


@dataclass(frozen=True)
class _Plan:
    """What a request resolves to once its images are known; nothing is built yet except the teacher."""

    request: Request
    images: Images
    source_digest: str  # of all images of the source, of which `images` may be a part
    image: ImageSpec
    recipe_name: str
    recipe: Recipe
    teacher: Teacher | Clusters | None
    precision: str
    clusters: Clusters | None = None  # of a method that needs them

    @property
    def backbone_name(self) -> str:
        """The network to build: what was asked for, or what the method makes of it."""
        from attar.methods.base import load

        return load(self.request.method).METHOD.backbone_name(self.request.backbone)

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that runs, as written to recipe.yaml."""
        import torch

        import attar

        request, images = self.request, self.images
        return {
            **self._settings,
            "peak_lr": self.recipe.peak_lr,
            "data": {
                "source": describe(request.source),
                "labels": request.labels,
                "label_fraction": request.label_fraction,
                "label_noise": request.label_noise,
                "digest": images.digest,
                "source_digest": self.source_digest,
                "labels_digest": self._labels_digest,
                "num_images": len(images),
                "num_broken": len(images.broken),
                "channels": images.channels,
            },
            "command": " ".join(["attar", *sys.argv[1:]]) if Path(sys.argv[0]).name == "attar" else "Python",
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {
                "attar": attar.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }

    @property
    def _settings(self) -> dict[str, Any]:
        from attar.models.saved import saved_digest

        request = self.request
        spec = {"name": self.backbone_name, "channels": self.image.channels, "image_size": self.image.size}
        return {
            "kind": "distill" if request.teacher is not None else "pretrain",
            "method": request.method,
            "recipe": self.recipe_name,
            "settings": plain(asdict(self.recipe)),
            "minutes": request.minutes,
            "backbone": {**spec, "stem": request.stem},
            "teacher": self.teacher
            and {
                "name": describe(teachers_named(request.teacher)),
                "digest": self.teacher.digest,
            },
            "image": plain(self.image.to_json()),
            "seed": request.seed,
            "precision": self.precision,
            "accumulate": request.accumulate,
            "pretrained": request.pretrained,
            "init": request.init and {"name": describe(request.init), "digest": saved_digest(Path(request.init))},
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The part that a resumed run must share with what was saved."""
        data = {"digest": self.images.digest, "labels_digest": self._labels_digest}
        return _identity({**self._settings, "data": data})

    @property
    def _labels_digest(self) -> str | None:
        """Of the labels that are trained on; None where they are not."""
        from attar.methods.base import load

        if not load(self.request.method).METHOD.needs_labels:
            return None
        assert self.images.labels is not None
        return hashlib.sha256(self.images.labels.astype("<i8").tobytes()).hexdigest()


_OF_DIGESTS = {
    "data": "data: other images",
    "labels": "labels: other ones",
    "teacher": "teacher: other weights",
    "init": "init: other weights",
}
_IDENTITY = ("method", "settings", "minutes", "backbone", "image", "seed", "precision", "accumulate", "pretrained")


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    identity = {key: resolved.get(key) for key in _IDENTITY}
    identity["data"] = resolved["data"]["digest"]
    identity["labels"] = resolved["data"].get("labels_digest")
    identity["teacher"] = (resolved["teacher"] or {}).get("digest")
    identity["init"] = (resolved.get("init") or {}).get("digest")
    return json.loads(json.dumps(identity))


def _must_be_the_same(request: Request, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run continues what was begun, finished or not: other settings are refused, not ignored."""
    lines = []
    for key, was in _identity(saved).items():
        if isinstance(was, dict) and isinstance(now[key], dict):
            shown = [n for n in was if n not in ("mean", "std")]  # of the images; these differ with them
            lines += [f"{n}: {was[n]!r} -> {now[key].get(n)!r}" for n in shown if was[n] != now[key].get(n)]
        elif was != now[key]:
            lines.append(f"{_OF_DIGESTS.get(key, f'{key}: {was!r} -> {now[key]!r}')}")
    if lines:
        raise RunChanged(
            f"{request.out} holds a run that was begun with other settings: {'; '.join(lines)}. Continue it with those "
            "of its recipe.yaml, or start anew in another --out; nothing was changed."
        )


def _plan(request: Request, world: Any, saved: dict[str, Any] | None) -> _Plan:
    """Read the images and resolve the recipe; the same on every process."""
    import torch

    from attar.data.statistics import image_spec
    from attar.methods.base import load, resolve_recipe
    from attar.models.clusters import Clusters
    from attar.train.loop import choose_precision

    known_image = _known_image(request)
    channels = request.channels
    if channels == "auto" and known_image is not None:
        channels = known_image.channels
    wanted = request.image_size or (known_image.size if known_image else None)
    images = _load_images(request, wanted or 224, channels, world)
    if known_image is not None and known_image.channels != images.channels:
        raise RecipeError(
            f"the {'teacher' if request.teacher is not None else 'run to start from'} takes {known_image.channels} "
            f"channels, and these images have {images.channels}; use --channels {known_image.channels}."
        )
    size = wanted or _natural_size(images)
    image = known_image if known_image and known_image.size == size else image_spec(images, size)

    name, overrides = request.recipe_name(size), request.overrides
    if saved is not None and request.minutes is not None:
        overrides["epochs"] = saved["settings"]["epochs"]  # fixed when the run began
    source_digest = images.digest
    images = load(request.method).METHOD.training_images(images, resolve_recipe(request.method, name, overrides))
    if "batch_size" not in overrides:
        overrides |= _fitting_batch(resolve_recipe(request.method, name, overrides), len(images), world, saved)
    recipe = resolve_recipe(request.method, name, overrides)
    teacher = _load_teacher(request, recipe, image)
    if isinstance(teacher, Clusters):
        recipe = _as_clustered(request, recipe, teacher)
    precision = "bf16" if choose_precision(request.precision, world.device) == torch.bfloat16 else "fp32"
    return _Plan(request, images, source_digest, image, name, recipe, teacher, precision)


def _load_images(request: Request, size: int, channels: int | str, world: Any) -> Images:
    """The images of a request; process 0 packs them first, the others then find the pack."""
    from attar.data.load import load_images
    from attar.methods.base import load

    needs_labels = load(request.method).METHOD.needs_labels

    def read(progress: bool) -> Images:
        return load_images(
            request.source,
            image_size=size,
            channels=channels,
            labels=request.labels or ("auto" if needs_labels else None),
            cache=request.cache,
            workers=request.workers,
            progress=progress,
        )

    images = read(request.progress) if world.is_main else None
    world.barrier()
    images = images if images is not None else read(False)
    if needs_labels:
        _check_labels(request, images)
    return _with_fewer_or_wrong_labels(request, images)


def _with_fewer_or_wrong_labels(request: Request, images: Images) -> Images:
    """The training images as asked for; which ones they are is the same for all seeds of a training."""
    from attar.data.label_noise import with_label_fraction, with_label_noise

    if request.label_fraction is not None:
        images = with_label_fraction(images, request.label_fraction)
    if request.label_noise is not None:
        images = with_label_noise(images, request.label_noise)
    return images


def _check_labels(request: Request, images: Images) -> None:
    """A method with labels needs one for every image, and at least two classes."""
    import numpy as np

    if images.labels is None or images.num_classes < 2:
        raise DataError(
            f"{request.method} is trained with labels, and {describe(request.source)} has none, or only one class. "
            "Give one sub-folder a class, a table and --labels COLUMN, or a method without labels (attar methods)."
        )
    unknown = np.flatnonzero(images.labels < 0)
    if len(unknown):
        first = f", the first is {images.where[int(unknown[0])]}" if len(images.where) else ""
        raise DataError(
            f"{request.method} is trained with labels, and {len(unknown)} of {len(images)} images have none{first}. "
            "Label them, or leave them out."
        )


_LARGEST_BATCH = {"cpu": 256, "cuda": 1024}  # for a process, unless the person asks for more


def _fitting_batch(recipe: Recipe, num_images: int, world: Any, saved: dict[str, Any] | None) -> dict[str, int]:
    """A batch for this machine and this data, where the person named none and the paper's is larger; said aloud.

    The learning rate follows by the recipe's own scaling rule.
    """
    if saved is not None:
        return {"batch_size": saved["settings"]["batch_size"]}
    quarter = 2 ** max((max(num_images, 1) // 4).bit_length() - 1, 1)
    fitting = min(_LARGEST_BATCH[world.device.type] * world.world_size, quarter)
    if recipe.batch_size <= fitting:
        return {}
    followed = f"; the learning rate follows: {replace(recipe, batch_size=fitting).peak_lr:.3g}"
    logger.warning(
        "Batch %d instead of the recipe's %d, to suit %d images on %s%s. (--batch-size sets it.)",
        fitting,
        recipe.batch_size,
        num_images,
        world.device.type,
        followed if recipe.lr is None else "",
    )
    return {"batch_size": fitting}


def _natural_size(images: Images) -> int:
    """224, or the side of the images where they are smaller (canvases never exceed the largest image)."""
    return min(images.canvas_size, 224)


def _known_image(request: Request) -> ImageSpec | None:
    """The input of the teacher, or of the run to start from; a teacher by name is built for the images instead."""
    from attar.models.saved import load_backbone

    if request.teacher is None and request.init is not None:
        return load_backbone(request.init)[1]

    first = teachers_named(request.teacher)[0]
    if isinstance(first, (str, Path)):
        return load_backbone(first)[1] if Path(first).exists() else None
    return getattr(first, "image", None)


def _load_teacher(request: Request, recipe: Recipe, image: ImageSpec) -> Teacher | Clusters | None:
    from attar.methods.base import load
    from attar.models.clusters import is_clusters, load_clusters
    from attar.models.teachers import JointTeacher, load_teacher

    if load(request.method).METHOD.needs_clusters and is_clusters(request.teacher):
        return load_clusters(request.teacher)
    output = getattr(recipe, "teacher_output", "features")
    loaded = [
        load_teacher(one, output=output, image_size=image.size, channels=image.channels)
        if isinstance(one, (str, Path))
        else one
        for one in teachers_named(request.teacher)
    ]
    return loaded[0] if len(loaded) == 1 else JointTeacher(loaded)


def _build(request: Request, plan: _Plan, world: Any) -> Job:
    """Backbone, method and everything the loop needs."""
    import torch

    from attar.methods.base import Setup, load, make_views
    from attar.models.backbones import build_backbone
    from attar.models.saved import load_head, start_from
    from attar.train.loop import Job, LoopOptions

    module = load(request.method)
    torch.manual_seed(request.seed)  # initial weights
    backbone = build_backbone(
        plan.backbone_name,
        channels=plan.image.channels,
        image_size=plan.image.size,
        stem=request.stem,
        pretrained=request.pretrained,
    )
    projector = None
    if request.init is not None:
        start_from(backbone, Path(request.init))
        projector = load_head(Path(request.init), "projector")
    if request.checkpoint_activations:
        backbone.checkpoint_activations()
    if backbone.reduces_to_a_pixel():
        logger.warning(
            "%s reduces images of %d pixels to a single position before it pools, so most of its depth sees no "
            "picture. Better: --stem small (ResNets), a net for small images such as resnet20, or a larger "
            "--image-size.",
            request.backbone,
            plan.image.size,
        )
    views = make_views(request.method, plan.recipe, plan.image, backbone)
    setup = Setup(
        image=plan.image,
        images=plan.images,
        clusters=plan.clusters,
        projector=projector,
        seed=request.seed,
        device=world.device,
        cache=_cache(request),
    )
    num_views = getattr(plan.recipe, "teacher_views", 0)
    if num_views:
        setup.teacher = _asked_once(request, plan, views, num_views, world)
    elif plan.clusters is None:
        setup.teacher = plan.teacher  # type: ignore[assignment]  # clusters only where these were loaded or made
    options = LoopOptions(
        seed=request.seed,
        precision=request.precision,
        accumulate=request.accumulate,
        compile=request.compile,
        shard=request.shard,
        checkpoint_steps=request.checkpoint_steps,
        show_progress=request.progress,
    )
    method = module.METHOD(plan.recipe, backbone, setup)
    return Job(method, views, plan.images, plan.image, world, options, num_views or None)


def _asked_once(request: Request, plan: _Plan, views: Any, num_views: int, world: Any) -> Teacher:
    """The teacher's answers for `num_views` views of every image, from the cache; process 0 computes them."""
    from attar.models.teachers import cache_answers
    from attar.train.loop import views_of

    def answers(show_progress: bool) -> Teacher:
        return cache_answers(
            plan.teacher,  # type: ignore[arg-type]
            plan.images,
            plan.image,
            lambda batch, view: views_of(batch, views, request.seed, view).images,  # type: ignore[attr-defined]
            num_views=num_views,
            folder=_cache(request),
            key=f"{views!r} {request.seed}",
            device=world.device,
            show_progress=show_progress,
        )

    cached = answers(request.progress) if world.is_main else None
    world.barrier()
    return cached if cached is not None else answers(False)


def _cache(request: Request) -> Path:
    from attar.data.cache import cache_folder

    return Path(request.cache).expanduser() if request.cache else cache_folder()


def _as_clustered(request: Request, recipe: Recipe, clusters: Clusters) -> Recipe:
    """The recipe with the settings of clusters that are made already; the person's own would be ignored."""
    settings = asdict(clusters.settings)
    for name in request.overrides:
        if name in settings:
            raise RecipeError(f"{name} would be ignored: the clusters of {request.teacher} are made. Leave it out.")
    return replace(recipe, **{name: value for name, value in settings.items() if hasattr(recipe, name)})


def _clusters(request: Request, plan: _Plan, world: Any) -> Clusters:
    """The clusters a method is taught by, and in the cache the features of the images; process 0 computes them."""
    from attar.models.clusters import Clusters, ClusterSettings, find_clusters

    def found(show_progress: bool) -> Clusters:
        given, where = plan.teacher, {"folder": _cache(request), "device": world.device, "show_progress": show_progress}
        if not isinstance(given, Clusters):
            settings = ClusterSettings.of(plan.recipe, seed=request.seed)
            return find_clusters(given, plan.images, settings, **where)  # type: ignore[arg-type]
        given.assign(plan.images, **where)  # type: ignore[arg-type]
        return given

    clusters = found(request.progress) if world.is_main else None
    world.barrier()
    return clusters or found(False)


def _fit_into_minutes(job: Job, minutes: float) -> Job:
    """The same job with as many epochs as fit into the time, by the measured speed; at least one."""
    import torch

    from attar.train.loop import measure_step_seconds

    measured = torch.tensor(measure_step_seconds(job), dtype=torch.float64, device=job.world.device)
    seconds = float(job.world.mean(measured))  # the same on all processes, and so the number of epochs
    epoch_seconds = seconds * job.plan.steps_per_epoch
    epochs = max(int(minutes * 60 / epoch_seconds), 1)
    if epoch_seconds > minutes * 60:
        logger.warning("One epoch takes about %.1f minutes, longer than asked; training one epoch.", epoch_seconds / 60)
    logger.info(
        "%.2f s a step, %.1f s an epoch: %d epochs fit into %g minutes.", seconds, epoch_seconds, epochs, minutes
    )
    job.method.recipe = replace(job.method.recipe, epochs=epochs)
    return replace(job)  # its plan follows the recipe


def _say(plan: _Plan, job: Job) -> None:
    parameters = sum(p.numel() for p in job.method.backbone.parameters()) / 1e6
    logger.info(
        "%s (recipe %s) trains %s, %.2f M parameters, on %d images of %d px for %d epochs of %d steps; %s, %s.",
        plan.request.method,
        plan.recipe_name,
        plan.backbone_name,
        parameters,
        len(job.images),
        job.image.size,
        job.recipe.epochs,
        job.plan.steps_per_epoch,
        job.world.device,
        plan.precision,
    )


def _finish(run: RunFolder, job: Job, plan: _Plan, resolved: dict[str, Any], result: FitResult) -> None:
    """Write what people and later stages need: weights, head, broken files, views, gallery."""
    import numpy as np
    import torch

    from attar.methods.base import Trained
    from attar.reporting.attention import attention_of
    from attar.reporting.gallery import collect_gallery
    from attar.train.loop import views_of
    from attar.views.augmentation import CentreView
    from attar.views.contact_sheet import contact_sheet

    method = job.method.eval()
    first = job.images.batch(np.arange(min(8, len(job.images)))).to(job.world.device)
    views = views_of(first, job.make_views, job.options.seed, 0)
    contact_sheet(views, job.image, num_images=8).save(run / "views.png")
    attended = attention_of(method.backbone, CentreView(job.image)(first), first.index)
    if attended is not None:
        contact_sheet(attended, job.image, num_images=8).save(run / "attention.png")
    with torch.no_grad():
        answered = method.answers(views)
    if answered is not None:
        contact_sheet(answered, job.image, num_images=8).save(run / "answers.png")
    collect_gallery(method.backbone, job.image, job.images, out=run / "gallery.npz", device=job.world.device)
    if plan.clusters is not None:
        _keep_clusters(run, plan, plan.clusters, job.world.device)
    run.write_json("broken.json", [asdict(image) for image in job.images.broken])
    run.write_json("fit.json", asdict(result))
    kept = ("kind", "method", "recipe", "data", "teacher", "init", "seed", "versions")
    provenance = {key: resolved[key] for key in kept} | {"collapsed": result.collapsed}
    for name, other in method.others().items():
        _save(run / name, other, job, provenance | {"part": name})
    own = Trained(method.backbone, method.projector, method.classifier)
    _save(run.path, own, job, provenance)  # last: its presence means complete
    if result.collapsed:
        logger.error("%s ended collapsed: do not use these weights. See health.jsonl.", run.path)
    logger.info("Done in %.0f s (%.0f images a second): %s", result.seconds, result.images_per_second, run.path)


def _save(folder: Path, trained: Trained, job: Job, provenance: dict[str, Any]) -> None:
    """Heads, then the backbone."""
    from attar.models.heads import MLP
    from attar.models.saved import save_backbone, save_head

    folder.mkdir(exist_ok=True)
    for name, head in (("projector", trained.projector), ("classifier", trained.classifier)):
        if isinstance(head, MLP):
            save_head(folder, name, head, classes=job.method.class_names or job.images.classes)
    save_backbone(folder, trained.backbone, job.image, provenance=provenance)


def _keep_clusters(run: RunFolder, plan: _Plan, clusters: Clusters, device: Any) -> None:
    """Beside the run: the clusters, what became of these images, and pictures of some clusters."""
    from attar.reporting.gallery import collect_cluster_gallery

    named = clusters.assign(plan.images, folder=_cache(plan.request), device=device, show_progress=False)
    clusters.save(run / "clusters")
    run.write_json("clusters/labels.json", named.numbers())
    collect_cluster_gallery(plan.images, named.cluster, named.distance, out=run / "clusters" / "gallery.npz")


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def describe(source: Any) -> str:
    """A source or teacher in words: an absolute path, a name, what kind of array it is; several joined by commas."""
    if isinstance(source, (list, tuple)):
        return ",".join(map(describe, source))
    if isinstance(source, (str, Path)):
        text = str(source)
        return str(Path(text).absolute()) if Path(text).exists() else text
    return getattr(source, "name", None) or f"array {getattr(source, 'shape', '')}"
