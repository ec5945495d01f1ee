"""From a request to what will run: the images, the resolved recipe, the teacher; and its identity, for a resume."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import DataError, RecipeError, RunChanged
from attar.request import Request, check_size_afterwards, describe, plain, teachers_named
from attar.train.run import RunFolder

if TYPE_CHECKING:
    from attar.data.images import Images, ImageSpec
    from attar.methods.base import Recipe
    from attar.models.clusters import Clusters
    from attar.models.teachers import Teacher

logger = logging.getLogger("attar")


def saved_recipe(request: Request) -> dict[str, Any] | None:
    run = RunFolder(Path(request.out))
    if not request.resume:
        return None
    if not (run / "recipe.yaml").is_file() or not run.has_begun:
        logger.info("%s holds no run yet; beginning one.", request.out)
        return None
    return run.read_recipe()


@dataclass(frozen=True)
class Plan:
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
    def test_image(self) -> ImageSpec:
        """What the finished network looks at: `image`, in the size that was asked for."""
        return replace(self.image, size=self.request.test_size or self.image.size)

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
            "command": shlex.join(["attar", *sys.argv[1:]]) if _is_command_line() else "Python",
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
            "test_size": request.test_size,
            "teacher_size": request.teacher_size,
            "seed": request.seed,
            "precision": self.precision,
            "accumulate": request.accumulate,
            "pretrained": request.pretrained,
            "init": request.init and {"name": describe(request.init), "digest": saved_digest(request.init)},
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

        used = load(self.request.method).METHOD.needs_labels or getattr(self.recipe, "label_weight", 0) > 0
        if not used or self.images.labels is None:
            return None
        names = json.dumps(list(self.images.classes)).encode()
        return hashlib.sha256(names + self.images.labels.astype("<i8").tobytes()).hexdigest()


_OF_DIGESTS = {
    "data": "data: other images",
    "labels": "labels: other ones",
    "teacher": "teacher: other weights, or other images than it took",
    "init": "init: other weights",
}
_IDENTITY = (
    *("method", "settings", "minutes", "backbone", "image", "test_size"),
    *("seed", "precision", "accumulate", "pretrained"),
)


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    identity = {key: resolved.get(key) for key in _IDENTITY}
    identity["test_size"] = identity["test_size"] or resolved["image"]["size"]
    identity["data"] = resolved["data"]["digest"]
    identity["labels"] = resolved["data"].get("labels_digest")
    identity["teacher"] = (resolved["teacher"] or {}).get("digest")
    identity["init"] = (resolved.get("init") or {}).get("digest")
    return json.loads(json.dumps(identity))


def must_be_the_same(request: Request, saved: dict[str, Any], now: dict[str, Any]) -> None:
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
            f"{request.out} holds a run that was begun with other settings: {'; '.join(lines)}.",
            "Continue it with those of its recipe.yaml, or start anew in another --out; nothing was changed.",
        )


def _is_command_line() -> bool:
    """Whether this process is `attar`, or `python -m attar`, also under torchrun."""
    path = Path(sys.argv[0])
    return path.stem == "attar" or (path.parent.name, path.name) == ("attar", "__main__.py")


def make_plan(request: Request, world: Any, saved: dict[str, Any] | None) -> Plan:
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
    if wanted is not None and request.image_size is None:  # else `check` did
        check_size_afterwards(request, wanted)
    images = _load_images(request, max(wanted or 224, request.test_size or 0), channels, world)
    if known_image is not None and known_image.channels != images.channels:
        raise RecipeError(
            f"the {'teacher' if request.teacher is not None else 'run to start from'} takes {known_image.channels} "
            f"channels, and these images have {images.channels}; use --channels {known_image.channels}."
        )
    size = wanted or _natural_size(images)
    if wanted is None:
        check_size_afterwards(request, size)
    image = known_image if known_image and known_image.size == size else image_spec(images, size)

    name = request.recipe_name(size) if saved is None else request.recipe or saved["recipe"]
    overrides = request.overrides
    if saved is not None and request.minutes is not None:
        overrides["epochs"] = saved["settings"]["epochs"]  # fixed when the run began
    source_digest = images.digest
    images = _with_fewer_or_wrong_labels(request, images)
    images = load(request.method).METHOD.training_images(images, resolve_recipe(request.method, name, overrides))
    if "batch_size" not in overrides:
        overrides |= _fitting_batch(resolve_recipe(request.method, name, overrides), len(images), world, saved)
    recipe = resolve_recipe(request.method, name, overrides)
    teacher = _load_teacher(request, recipe, image)
    if isinstance(teacher, Clusters):
        recipe = _as_clustered(request, recipe, teacher)
    precision = "bf16" if choose_precision(request.precision, world.device) == torch.bfloat16 else "fp32"
    return Plan(request, images, source_digest, image, name, recipe, teacher, precision)


def _load_images(request: Request, size: int, channels: int | str, world: Any) -> Images:
    """The images of a request; process 0 packs them first, the others then find the pack."""
    from attar.data.load import load_images
    from attar.methods.base import load

    needs_labels = load(request.method).METHOD.needs_labels

    def read(is_main: bool) -> Images:
        return load_images(
            request.source,
            image_size=size,
            channels=channels,
            labels=request.labels or ("auto" if needs_labels else None),
            cache=request.cache,
            workers=request.workers,
            progress=is_main and request.progress,
        )

    images = world.main_first(read)
    if needs_labels:
        _check_labels(request, images)
    return images


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


def _fitting_batch(recipe: Recipe, num_images: int, world: Any, saved: dict[str, Any] | None) -> dict[str, int]:
    """A batch for this machine and this data, where the person named none and the paper's is larger; said aloud.

    The learning rate follows by the recipe's own scaling rule.
    """
    from attar.data.doctor import LARGEST_BATCH, fitting_batch

    if saved is not None:
        return {"batch_size": saved["settings"]["batch_size"]}
    fitting = min(LARGEST_BATCH[world.device.type] * world.world_size, fitting_batch(num_images))
    if recipe.batch_size <= fitting:
        return {}
    rate = replace(recipe, batch_size=fitting).peak_lr
    logger.warning(
        "Batch %d instead of the recipe's %d, to suit %d images on %s%s. (--batch-size sets it.)",
        fitting,
        recipe.batch_size,
        num_images,
        world.device.type,
        f"; the learning rate follows: {rate:.3g}" if rate != recipe.peak_lr else "",
    )
    return {"batch_size": fitting}


def _natural_size(images: Images) -> int:
    """224, or the side of the images where they are smaller (canvases never exceed the largest image)."""
    return min(images.canvas_size, 224)


def _known_image(request: Request) -> ImageSpec | None:
    """The input of the teacher, or of the run to start from; a network by name is built for the images instead."""
    from attar.models.saved import load_backbone

    if request.teacher is None and request.init is not None:
        return load_backbone(request.init)[1] if Path(request.init).exists() else None

    first = teachers_named(request.teacher)[0]
    if isinstance(first, (str, Path)):
        return load_backbone(first)[1] if Path(first).exists() else None
    return getattr(first, "image", None)


def _load_teacher(request: Request, recipe: Recipe, image: ImageSpec) -> Teacher | Clusters | None:
    from attar.methods.base import load
    from attar.models.clusters import is_clusters, load_clusters
    from attar.models.teachers import JointTeacher, load_teacher

    names = teachers_named(request.teacher)
    if load(request.method).METHOD.needs_clusters and is_clusters(names[0]):
        return load_clusters(names[0])
    output = getattr(recipe, "teacher_output", "features")
    loaded = [
        load_teacher(
            one, output=output, image_size=image.size, channels=image.channels, teacher_size=request.teacher_size
        )
        if isinstance(one, (str, Path))
        else one
        for one in names
    ]
    return loaded[0] if len(loaded) == 1 else JointTeacher(loaded)


def cache_of(request: Request) -> Path:
    from attar.data.cache import cache_folder

    return Path(request.cache).expanduser() if request.cache else cache_folder()


def _as_clustered(request: Request, recipe: Recipe, clusters: Clusters) -> Recipe:
    """The recipe with the settings of clusters that are made already; a person's own, where others, would be ignored.

    Raises:
        RecipeError: for those.
    """
    settings = asdict(clusters.settings)
    check_not_about_clusters(request, recipe, settings, str(teachers_named(request.teacher)[0]))
    return replace(recipe, **{name: value for name, value in settings.items() if hasattr(recipe, name)})


def check_not_about_clusters(request: Request, recipe: Recipe, made: Mapping[str, Any], clusters: str) -> None:
    """Raises RecipeError for what a person asked for and clusters, `made` with other values, would ignore."""
    from attar.models.clusters import ClusterSettings

    given = [name for name in ClusterSettings.__dataclass_fields__ if name in request.overrides and name in made]
    ignored = [name for name in given if getattr(recipe, name) != made[name]]
    if request.teacher_size is not None:
        ignored.append("teacher_size")
    if ignored:
        raise RecipeError(f"{ignored[0]} would be ignored: the clusters of {clusters} are made. Leave it out.")


def clusters_of(request: Request, plan: Plan, world: Any) -> Clusters:
    """The clusters a method is taught by, and in the cache the features of the images; process 0 computes them."""
    from attar.models.clusters import Clusters, ClusterSettings, find_clusters

    def found(is_main: bool) -> Clusters:
        given = plan.teacher
        where = {
            "folder": cache_of(request),
            "device": world.device,
            "show_progress": is_main and request.progress,
        }
        if not isinstance(given, Clusters):
            settings = ClusterSettings.of(plan.recipe, seed=request.seed)
            return find_clusters(given, plan.images, settings, **where)  # type: ignore[arg-type]
        named = given.assign(plan.images, **where)  # type: ignore[arg-type]
        if is_main and (without := int((named.sizes == 0).sum())):
            logger.warning("%d of the %d clusters have none of these images.", without, named.num_clusters)
        return given

    return world.main_first(found)
