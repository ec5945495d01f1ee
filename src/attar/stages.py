"""The stages of the road from images to a small model, as functions: pretrain, distill, evaluate, embed, load, report.

Each mirrors the command of the same name, keyword for keyword. A stage reads from and writes into a run folder, so
that stages are joined by files on disk and each can be resumed or repeated alone.
"""

from __future__ import annotations

import datetime
import json
import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import DataError, RecipeError, RunError
from attar.train.run import RunFolder

if TYPE_CHECKING:
    import numpy as np

    from attar.data.images import Images, ImageSpec
    from attar.evaluation.evaluation import Evaluation
    from attar.exporting import ExportResult
    from attar.methods.base import Method, Recipe
    from attar.models.encoder import Encoder
    from attar.models.teachers import Teacher
    from attar.train.loop import FitResult

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


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Everything `pretrain` and `distill` were asked for; see `pretrain` for the meaning of each."""

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
    lr: float | None
    labels: str | None
    cache: str | Path | None
    workers: int | None
    seed: int
    device: str
    precision: str
    accumulate: int
    compile: bool
    checkpoint_steps: int | None
    resume: bool
    progress: bool


def pretrain(
    source: str | Path | np.ndarray | Images,
    *,
    out: str | Path,
    method: str = "simclr",
    backbone: str = "resnet18",
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    channels: int | str = "auto",
    stem: str = "standard",
    pretrained: bool = False,
    lr: float | None = None,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a backbone on unlabelled images by a method of self-supervised learning.

    Args:
        source: a folder, a .csv, .parquet or .npz file, "torchvision:NAME", "digits", "elpv", "hf:NAME",
            "shards:PATTERN", or an array of images uint8 (N, H, W[, C]).
        out: the run folder; must be new, unless resume.
        method, recipe: as listed by `attar methods`. Without a recipe: "small" for images up to 64 pixels where
            the method has it, otherwise the method's first.
        settings: fields of the recipe to replace, e.g. {"temperature": 0.2}.
        epochs, minutes: length of training; minutes measures the speed first, then fixes the number of epochs.
        batch_size: images per optimiser step over all processes. lr: peak learning rate, instead of the recipe's
            base_lr scaled by the batch.
        image_size: pixels a side; default 224, or the size of the images where they are smaller.
        channels: 1, 3, … or "auto". stem: "small" gives networks made for 224 pixels a stem for small images.
        labels: "folder" or a column name; used only for the online kNN, never for training.
        accumulate: forward passes per optimiser step.

    Returns:
        The run; its weights lie in out/backbone.safetensors.

    Raises:
        AttarError: for anything a user can cause, before training starts where possible.
    """
    return _train(_Request(**locals()))


def distill(
    source: str | Path | np.ndarray | Images,
    *,
    teacher: str | Path | Teacher,
    out: str | Path,
    method: str = "seed",
    backbone: str = "resnet18",
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    channels: int | str = "auto",
    stem: str = "standard",
    pretrained: bool = False,
    lr: float | None = None,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a small student on what a frozen teacher says about unlabelled images.

    Args:
        teacher: a run folder, a timm model whose weights are at hand, or "hog" (for cluster_transfer).
        Everything else as in `pretrain`; image_size and channels default to the teacher's.
    """
    return _train(_Request(**locals()))


def _train(request: _Request) -> Run:
    """Check, build, fit, save: the body of `pretrain` and `distill`."""
    from attar.methods.base import load as load_method
    from attar.train.distributed import world as join_world
    from attar.train.loop import Job, LoopOptions, fit

    module = load_method(request.method)
    _check_teacher(request, module.METHOD)
    saved = _saved_recipe(request)
    if saved is not None and RunFolder(Path(request.out)).is_complete:
        logger.info("%s is complete; nothing to do.", request.out)
        return Run(Path(request.out), saved, None)
    with join_world(request.device) as world:
        prepared = _prepare(request, world, saved)
        options = LoopOptions(
            seed=request.seed,
            precision=request.precision,
            accumulate=request.accumulate,
            compile=request.compile,
            checkpoint_steps=request.checkpoint_steps,
            show_progress=request.progress,
        )
        period = getattr(prepared.method.recipe, "teacher_views", None) or None
        job = Job(prepared.method, prepared.views, prepared.images, prepared.image, world, options, period)
        if request.minutes is not None and saved is None:
            job = _fit_into_minutes(job, request.minutes)
        resolved = _resolved(request, prepared, job)
        identity = json.loads(json.dumps(_identity(resolved)))
        run = RunFolder(Path(request.out))
        if world.is_main:
            needed = 3 * 4 * 4 * sum(p.numel() for p in job.method.parameters())  # two checkpoints with moments
            run = RunFolder.create(request.out, resume=request.resume, needed_bytes=needed)
        try:
            if world.is_main:
                if saved is None:
                    run.write_recipe(resolved)
                elif _identity(saved) != identity:
                    raise _changed(run, _identity(saved), identity)
                _say(resolved, job)
            world.barrier()
            result = fit(job, run, identity=identity, resume=saved is not None)
            if world.is_main and not result.interrupted:
                _finish(run, job, resolved, result)
            world.barrier()
        finally:
            run.release()
    return Run(run.path, resolved, result)


@dataclass
class _Prepared:
    """What a request resolves to before training."""

    images: Images
    image: ImageSpec
    recipe_name: str
    method: Method
    views: Any
    teacher_digest: str | None


def _check_teacher(request: _Request, method: type[Method]) -> None:
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


def _saved_recipe(request: _Request) -> dict[str, Any] | None:
    run = RunFolder(Path(request.out))
    return run.read_recipe() if request.resume and (run / "recipe.yaml").is_file() else None


def _prepare(request: _Request, world: Any, saved: dict[str, Any] | None) -> _Prepared:
    """Images, recipe, backbone and method of a request; the same on every process."""
    import torch

    from attar.data.statistics import image_spec
    from attar.methods.base import Setup, load, resolve_recipe
    from attar.models.backbones import build_backbone

    teacher_image = _teacher_image(request)
    channels = request.channels
    if channels == "auto" and teacher_image is not None:
        channels = teacher_image.channels
    wanted = request.image_size or (teacher_image.size if teacher_image else None)
    images = _load_images(request, wanted or 224, channels, world)
    size = wanted or _natural_size(images)
    image = teacher_image if teacher_image and teacher_image.size == size else image_spec(images, size)

    module = load(request.method)
    name = request.recipe or (
        "small" if size <= SMALL_IMAGE and "small" in module.RECIPES else next(iter(module.RECIPES))
    )
    overrides = dict(request.settings or {})
    for field in ("epochs", "batch_size", "lr"):
        given = getattr(request, field)
        if given is not None:
            if field in overrides:
                raise RecipeError(f"{field} is given twice: as an option and among the settings. Leave one out.")
            overrides[field] = given
    if request.minutes is not None and request.epochs is not None:
        raise RecipeError("--epochs and --minutes both set the length of training; give one of them.")
    if saved is not None and request.minutes is not None:
        overrides["epochs"] = saved["settings"]["epochs"]  # fixed when the run began
    if "batch_size" not in overrides:
        overrides |= _fitting_batch(module.RECIPES.get(name), len(images), world, saved)
    recipe = resolve_recipe(request.method, name, overrides)
    for field in ("epochs", "batch_size"):
        if getattr(recipe, field) < 1:
            raise RecipeError(f"{field}={getattr(recipe, field)}: it must be at least 1.")

    torch.manual_seed(request.seed)  # initial weights
    backbone = build_backbone(
        module.METHOD.backbone_name(request.backbone),
        channels=image.channels,
        image_size=image.size,
        stem=request.stem,
        pretrained=request.pretrained,
    )
    views = module.views(recipe, image)
    setup = Setup(image=image, images=images, seed=request.seed)
    digest = None
    if request.teacher is not None:
        setup.teacher = _build_teacher(request, recipe, images, image, views, world)
        digest = setup.teacher.digest
    method = module.METHOD(recipe, backbone, setup)
    return _Prepared(images, image, name, method, views, digest)


def _load_images(request: _Request, size: int, channels: int | str, world: Any) -> Images:
    """The images of a request; process 0 packs them first, the others then find the pack."""
    from attar.data.load import load_images

    def read(progress: bool) -> Images:
        return load_images(
            request.source,
            image_size=size,
            channels=channels,
            labels=request.labels,
            cache=request.cache,
            workers=request.workers,
            progress=progress,
            seed=request.seed,
        )

    images = read(request.progress) if world.is_main else None
    world.barrier()
    return images if images is not None else read(False)


_LARGEST_BATCH = {"cpu": 256, "cuda": 1024}  # for a process, unless the person asks for more


def _fitting_batch(recipe: Recipe | None, num_images: int, world: Any, saved: dict[str, Any] | None) -> dict[str, int]:
    """A batch for this machine and this data, where the person named none and the paper's is larger; said aloud.

    The learning rate follows by the recipe's own scaling rule.
    """
    if saved is not None:
        return {"batch_size": saved["settings"]["batch_size"]}
    if recipe is None:  # an unknown name: resolve_recipe says so
        return {}
    quarter = 2 ** max((max(num_images, 1) // 4).bit_length() - 1, 1)
    fitting = min(_LARGEST_BATCH[world.device.type] * world.world_size, quarter)
    if recipe.batch_size <= fitting:
        return {}
    lr = replace(recipe, batch_size=fitting).peak_lr
    logger.info(
        "Batch %d instead of the recipe's %d, to suit %d images on %s; the learning rate follows: %.3g. "
        "(--batch-size sets it.)",
        fitting,
        recipe.batch_size,
        num_images,
        world.device.type,
        lr,
    )
    return {"batch_size": fitting}


def _natural_size(images: Images) -> int:
    """224, or the side of the images where they are smaller (canvases never exceed the largest image)."""
    return 224 if images.canvas_size >= 224 else images.canvas_size


def _teacher_image(request: _Request) -> ImageSpec | None:
    """The input of a teacher that is a run; named networks are built for the student's images instead."""
    from attar.models.saved import load_backbone

    if isinstance(request.teacher, (str, Path)):
        return load_backbone(request.teacher)[1] if Path(request.teacher).is_dir() else None
    return getattr(request.teacher, "image", None)


def _build_teacher(
    request: _Request, recipe: Recipe, images: Images, image: ImageSpec, views: Any, world: Any
) -> Teacher:
    """The teacher of a request, or a cache of its answers if the recipe asks for one."""
    from attar.data.cache import cache_folder
    from attar.models.teachers import cache_answers, load_teacher
    from attar.train.loop import views_of

    teacher = request.teacher
    if isinstance(teacher, (str, Path)):
        output = getattr(recipe, "teacher_output", "features")
        teacher = load_teacher(teacher, output=output, image_size=image.size, channels=image.channels)
    num_views = getattr(recipe, "teacher_views", 0)
    if not num_views:
        return teacher

    def answers(show_progress: bool) -> Teacher:
        return cache_answers(
            teacher,
            images,
            image,
            lambda batch, view: views_of(batch, views, request.seed, view).images,  # type: ignore[attr-defined]
            num_views=num_views,
            folder=Path(request.cache) if request.cache else cache_folder(),
            key=json.dumps([request.method, _plain(asdict(recipe)), request.seed]),
            device=world.device,
            show_progress=show_progress,
        )

    cached = answers(request.progress) if world.is_main else None
    world.barrier()
    return cached if cached is not None else answers(False)


def _fit_into_minutes(job: Any, minutes: float) -> Any:
    """The same job with as many epochs as fit into the time, by the measured speed; at least one."""
    from attar.train.loop import measure_step_seconds

    seconds = measure_step_seconds(job)
    epoch_seconds = seconds * job.plan.steps_per_epoch
    epochs = max(int(minutes * 60 / epoch_seconds), 1)
    if epoch_seconds > minutes * 60:
        logger.warning("One epoch takes about %.1f minutes, longer than asked; training one epoch.", epoch_seconds / 60)
    logger.info(
        "%.2f s a step, %.1f s an epoch: %d epochs fit into %g minutes.", seconds, epoch_seconds, epochs, minutes
    )
    job.method.recipe = replace(job.method.recipe, epochs=epochs)
    return replace(job)  # the plan follows the recipe


def _resolved(request: _Request, prepared: _Prepared, job: Any) -> dict[str, Any]:
    """Everything that runs, as written to recipe.yaml."""
    import torch

    import attar

    images = prepared.images
    return {
        "kind": "distill" if request.teacher is not None else "pretrain",
        "method": request.method,
        "recipe": prepared.recipe_name,
        "settings": _plain(asdict(job.recipe)),
        "peak_lr": job.recipe.peak_lr,
        "backbone": job.method.backbone.spec.to_json(),
        "teacher": None
        if request.teacher is None
        else {"name": _describe(request.teacher), "digest": prepared.teacher_digest},
        "image": _plain(prepared.image.to_json()),
        "data": {
            "source": _describe(request.source),
            "labels": request.labels,
            "digest": images.digest,
            "num_images": len(images),
            "num_broken": len(images.broken),
            "channels": images.channels,
        },
        "seed": request.seed,
        "precision": str(job.precision).removeprefix("torch."),
        "accumulate": request.accumulate,
        "pretrained": request.pretrained,
        "command": " ".join(["attar", *sys.argv[1:]]) if Path(sys.argv[0]).name == "attar" else "attar.stages",
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"attar": attar.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }


_IDENTITY = ("method", "settings", "backbone", "image", "seed", "precision", "accumulate", "pretrained")


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """The part of a recipe that a resumed run must share with what was saved."""
    identity = {key: resolved[key] for key in _IDENTITY}
    identity["data"] = resolved["data"]["digest"]
    identity["teacher"] = (resolved["teacher"] or {}).get("digest")
    return identity


def _changed(run: RunFolder, saved: dict[str, Any], now: dict[str, Any]) -> RunError:
    lines = []
    for key in saved:
        if isinstance(saved[key], dict) and isinstance(now[key], dict):
            lines += [
                f"{n}: {saved[key][n]!r} -> {now[key].get(n)!r}" for n in saved[key] if saved[key][n] != now[key].get(n)
            ]
        elif saved[key] != now[key]:
            lines.append(f"{key}: {saved[key]!r} -> {now[key]!r}")
    return RunError(
        f"{run.path}: --resume continues the run as it was begun, but these differ: {'; '.join(lines)}. "
        "Give the settings of its recipe.yaml, or start anew in another --out."
    )


def _say(resolved: dict[str, Any], job: Any) -> None:
    parameters = sum(p.numel() for p in job.method.backbone.parameters()) / 1e6
    logger.info(
        "%s (recipe %s) trains %s, %.2f M parameters, on %d images of %d px for %d epochs of %d steps; %s, %s.",
        resolved["method"],
        resolved["recipe"],
        resolved["backbone"]["name"],
        parameters,
        len(job.images),
        job.image.size,
        job.recipe.epochs,
        job.plan.steps_per_epoch,
        job.world.device,
        resolved["precision"],
    )


def _finish(run: RunFolder, job: Any, resolved: dict[str, Any], result: FitResult) -> None:
    """Write what people and later stages need: weights, head, broken files, views, gallery."""
    import numpy as np

    from attar.models.heads import MLP
    from attar.models.saved import save_backbone, save_projector
    from attar.reporting.gallery import collect_gallery
    from attar.train.loop import views_of
    from attar.views.contact_sheet import contact_sheet

    method = job.method.eval()
    first = job.images.batch(np.arange(min(8, len(job.images)))).to(job.world.device)
    views = views_of(first, job.make_views, job.options.seed, 0)
    contact_sheet(views, job.image, num_images=8).save(run / "views.png")
    collect_gallery(method.backbone, job.image, job.images, out=run / "gallery.npz", device=job.world.device)
    broken = [asdict(image) for image in job.images.broken]
    run.write_json("broken.json", broken)
    run.write_json("fit.json", asdict(result))
    if isinstance(method.projector, MLP):
        save_projector(run.path, method.projector)
    provenance = {key: resolved[key] for key in ("kind", "method", "recipe", "data", "teacher", "seed", "versions")}
    save_backbone(run.path, method.backbone, job.image, provenance=provenance)  # last: its presence means complete
    if result.collapsed:
        logger.error("%s ended collapsed: do not use these weights. See health.jsonl.", run.path)
    logger.info("Done in %.0f s (%.0f images a second): %s", result.seconds, result.images_per_second, run.path)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _describe(source: Any) -> str:
    if isinstance(source, (str, Path)):
        text = str(source)
        return str(Path(text).absolute()) if Path(text).exists() else text
    return getattr(source, "name", None) or f"array {getattr(source, 'shape', '')}"


def evaluate(
    run: str | Path,
    labelled: str | Path | Images,
    *,
    test: str | Path | Images | None = None,
    protocols: Sequence[str] = ("knn", "linear"),
    teacher: str | Path | None = None,
    controls: bool = True,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Measure a backbone on labelled images beside its controls, and say whether it worked.

    Args:
        run: a run folder (evaluation.json is written there), a timm name, "hog" or "pixels".
        labelled: images with labels; they train the probes. test: images to measure on; without it, a stratified
            20 % of `labelled`, fixed by the seed.
        protocols: knn, linear, finetune, low_label, few_shot; settings after a colon, e.g. "low_label:0.01,0.1".
        teacher: also measured; default: the teacher the run was distilled from.
        labels: "folder" or a column; default: what the source has.

    Returns:
        rows {protocol, metric, value, low, high, settings, subject} and a verdict in words.
    """
    from attar.evaluation.evaluation import evaluate as measure
    from attar.models.saved import load_backbone

    backbone, image, provenance = load_backbone(run)
    train = _labelled(labelled, image, labels, cache, workers, progress)
    held_out = None if test is None else _labelled(test, image, labels, cache, workers, progress)
    name = teacher or (provenance.get("teacher") or {}).get("name")
    taught_by = None
    if name is not None and (name in ("hog", "pixels") or Path(name).exists() or teacher is not None):
        taught_by = load_backbone(name, image_size=image.size, channels=image.channels)[:2]
    result = measure(
        backbone,
        image,
        train,
        held_out,
        protocols=tuple(protocols),
        controls=("random_init", "pixels", "hog", "pretrained") if controls else (),
        teacher=taught_by,
        seed=seed,
        device=device,
        precision=precision,
        trained_on=(provenance.get("data") or {}).get("digest"),
        progress=progress,
    )
    if (Path(run) / "recipe.yaml").is_file():
        folder = RunFolder.open(run)
        folder.write_json("evaluation.json", result.to_json())
        folder.write_json("evaluation_details.json", result.details)
    return result


def _labelled(
    source: Any, image: ImageSpec, labels: str | None, cache: Any, workers: int | None, progress: bool
) -> Images:
    from attar.data.load import load_images

    found = load_images(
        source,
        image_size=image.size,
        channels=image.channels,
        labels=labels or "auto",
        cache=cache,
        workers=workers,
        progress=progress,
    )
    if found.labels is None:
        raise DataError(f"{_describe(source)} has no labels; give class folders, or a table and --labels COLUMN.")
    return found


def embed(
    run: str | Path,
    source: str | Path | Images,
    *,
    out: str | Path,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> tuple[int, int]:
    """Write one row an image (index, path, label where known, embedding) into a .parquet, .csv or .npz file.

    Returns:
        Number of rows and of features.
    """
    from attar.data.load import load_images
    from attar.evaluation.features import extract_features
    from attar.models.saved import load_backbone
    from attar.train.distributed import choose_device

    out = Path(out)
    if out.suffix not in (".parquet", ".csv", ".npz"):
        raise DataError(f"--out {out}: accepted are .parquet, .csv and .npz.")
    backbone, image, _ = load_backbone(run)
    images = load_images(
        source,
        image_size=image.size,
        channels=image.channels,
        labels=labels,
        cache=cache,
        workers=workers,
        progress=progress,
    )
    features = extract_features(backbone, images, image, device=choose_device(device), precision=precision)
    _write_table(out, images, features.values.cpu().numpy())
    return features.values.shape[0], features.values.shape[1]


def _write_table(out: Path, images: Images, values: np.ndarray) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    out.parent.mkdir(parents=True, exist_ok=True)
    where = [str(w) for w in images.where] if len(images.where) else [""] * len(images)
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {"index": images.index, "path": np.array(where), "embedding": values}
        if images.labels is not None:
            arrays["label"] = images.labels
        np.savez(out, **arrays)
        return
    columns: dict[str, Any] = {"index": images.index, "path": where}
    if images.labels is not None:
        columns["label"] = images.labels
    if out.suffix == ".csv":
        columns |= {f"feature_{i}": values[:, i] for i in range(values.shape[1])}
        pyarrow.csv.write_csv(pa.table(columns), out)
        return
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    classes = {b"classes": json.dumps(list(images.classes)).encode()}
    pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(classes), out)


def load(run: str | Path) -> Encoder:
    """The trained backbone of a run (or a timm name) as a module: float pixels in [0, 1] -> features, in eval mode."""
    from attar.models.encoder import Encoder
    from attar.models.saved import load_backbone

    backbone, image, _ = load_backbone(run)
    return Encoder(backbone, image).eval()


def export(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    calibration: str | Path | Images | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> ExportResult:
    """Write a run's backbone in a format to deploy, checked against the original.

    Args:
        format: onnx, safetensors, timm, or int8 (ONNX, statically quantised).
        out: file to write; default: inside the run folder.
        calibration: images for int8.

    Returns:
        Size, parity, latency and a snippet that loads it; also written to export.json in the run folder.
    """
    from attar.data.load import load_images
    from attar.exporting import FORMATS, export_backbone
    from attar.models.saved import load_backbone

    backbone, image, _ = load_backbone(run)
    images = calibration
    if calibration is not None:
        images = load_images(
            calibration, image_size=image.size, channels=image.channels, cache=cache, progress=progress
        )
    target = Path(out) if out is not None else Path(run) / f"backbone{FORMATS.get(format, '')}"
    if format == "safetensors" and out is None:
        target = Path(run) / "export" / "backbone.safetensors"  # the run's own file of that name stays what it is
    result = export_backbone(backbone, image, format=format, out=target, calibration=images)  # type: ignore[arg-type]
    if (Path(run) / "recipe.yaml").is_file():
        folder = RunFolder.open(run)
        exports = folder.read_json("export.json") or {}
        folder.write_json("export.json", {**exports, format: result.to_json()})
    return result


def report(runs: Sequence[str | Path], *, out: str | Path = "report.html") -> Path:
    """Write one self-contained HTML page about runs (the first is its subject); returns the page's path."""
    from attar.reporting.page import write_report

    return write_report([Path(run) for run in runs], Path(out))
