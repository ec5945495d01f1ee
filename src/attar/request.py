"""What a training is asked for, and what the request alone shows to be wrong: reads no image and writes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import BackboneError, CheckpointError, RecipeError, RunError
from attar.train.run import RunFolder

if TYPE_CHECKING:
    from attar.methods.base import Method, Recipe

SMALL_IMAGE = 64  # pixels up to which a method's "small" recipe is the default
_BY_KIND = {"small_vit", "convnet", "vit", "transformer"}  # recipes that are chosen by the kind of network
_USUAL = _BY_KIND | {"small", "photo"}  # or by the size of the images


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
    test_size: int | None = None
    teacher_size: int | None = None
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

    def recipe_name(self, size: int) -> str:
        """The named recipe for images of this size and this kind of network, where the method has one (the names of
        `_USUAL`); otherwise the method's first."""
        from attar.methods.base import load

        recipes = load(self.method).RECIPES
        if self.recipe:
            return self.recipe
        names = ["small"] if size <= SMALL_IMAGE else []
        if recipes.keys() & _BY_KIND:
            from attar.models.tokens import is_transformer

            transformer = is_transformer(self.backbone, image_size=size, stem=self.stem)
            kinds = ["vit", "transformer"] if transformer else ["convnet"]
            names = [*(f"{name}_{kind}" for name in names for kind in kinds), *names, *kinds]
        if size > SMALL_IMAGE:
            names.append("photo")
        return next((name for name in names if name in recipes), next(iter(recipes)))


def check(request: Request) -> None:
    """What the request alone shows to be wrong; reads no image and writes nothing."""
    from attar.methods.base import load
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
        if given is not None and not 0 < given < math.inf:
            raise RecipeError(f"--{option} {given}: it must be more than 0, and finite.")
    if request.minutes is not None and "epochs" in request.overrides:
        raise RecipeError("--epochs and --minutes both set the length of training; give one of them.")
    _check_several_teachers(request, method, accepted_recipe(request))
    check_name(request.backbone, stem=request.stem)
    if request.backbone in FIXED:
        raise BackboneError(f"--backbone {request.backbone} has no weights to train; it is a control and a teacher.")
    _check_teacher_exists(request.teacher)
    _check_init(request)
    _check_label_options(request, method)
    check_outside(request.out, request.source)
    _check_backbone(request, method)
    if request.compile and method.needs_tokens:
        raise RecipeError(
            f"--compile would be ignored: {request.method} reads tokens past what it compiles. Leave it out."
        )
    if request.compile and request.shard:
        raise RecipeError("--compile and --shard do not go together yet; leave one of them out.")
    choose_precision(request.precision, choose_device(request.device))
    RunFolder.check(request.out, resume=request.resume)
    _check_teacher_size(request, method)
    if request.image_size is not None:
        check_size_afterwards(request, request.image_size)


def check_outside(out: str | Path, source: Any) -> None:
    """Raises RunError for a folder to write inside the images, which would be among them the next time."""
    if isinstance(source, (str, Path)) and Path(out).absolute().is_relative_to(Path(source).absolute()):
        raise RunError(f"--out {out} lies inside the images of {source}; choose a folder elsewhere.")


_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "image_size": 8,
    "test_size": 8,
    "teacher_size": 8,
    "workers": 1,
    "seed": 0,
    "accumulate": 1,
    "checkpoint_steps": 1,
}


def accepted_recipe(request: Request) -> Recipe:
    """The first recipe that takes the settings; which it will be depends on the images and the network.

    Raises:
        RecipeError: none of them does.
    """
    from attar.methods.base import load, resolve_recipe

    usual = _USUAL & load(request.method).RECIPES.keys()
    refused = []
    for name in [request.recipe] if request.recipe else [None, *sorted(usual)]:
        try:
            return resolve_recipe(request.method, name, request.overrides)
        except RecipeError as error:
            refused.append(error)
    raise refused[0]


def _check_teacher(request: Request, method: type[Method]) -> None:
    if method.needs_teacher and all(one is None for one in teachers_named(request.teacher)):
        raise RecipeError(
            f"{request.method} distils and needs a teacher: "
            f"attar distill SOURCE --teacher RUN --method {request.method}"
        )
    if not method.needs_teacher and request.teacher is not None:
        raise RecipeError(
            f"{request.method} has no use for a teacher, so --teacher would be ignored. "
            f"Use attar pretrain, or a method that distils (see attar methods)."
        )


def _check_several_teachers(request: Request, method: type[Method], recipe: Recipe) -> None:
    count = len(teachers_named(request.teacher))
    if count > 1 and method.needs_clusters:
        raise RecipeError(f"{request.method} clusters one network's features, and {count} are named; give one.")
    if count > 1 and getattr(recipe, "teacher_output", "features") == "logits":
        raise RecipeError(
            f"{request.method} learns from one teacher's classes, and {count} teachers are named; give one of them. "
            "Several can teach a method that learns from features (seed, compress, foundation, regression)."
        )


def teachers_named(teacher: Any) -> list[Any]:
    """The teachers that were asked for: runs and names, "A,B" being two; an object given in Python as it is."""
    from attar.models.weights_file import is_there

    if isinstance(teacher, str) and not is_there(teacher):
        return teacher.split(",")
    return list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]


def _check_teacher_exists(teacher: Any) -> None:
    from attar.models import weights_file
    from attar.models.backbones import check_name

    for one in teachers_named(teacher):
        if one == "":
            raise RecipeError(f"--teacher {teacher}: a name is missing beside the comma.")
        if not isinstance(one, (str, Path)) or Path(one).exists():
            continue
        if parts := weights_file.name_and_file(one):
            weights_file.check(*parts)
            continue
        if len(Path(one).parts) > 1 or str(one).startswith("."):
            raise CheckpointError(f"--teacher {Path(one).absolute()} does not exist; give a run folder, or a name.")
        check_name(str(one))


def _check_teacher_size(request: Request, method: type[Method]) -> None:
    """Of runs, as they are; of names, whether there is such a network."""
    from attar.models import weights_file
    from attar.models.backbones import build_backbone
    from attar.models.clusters import is_clusters
    from attar.models.teachers import load_teacher

    if (size := request.teacher_size) is None:
        return
    for one in teachers_named(request.teacher):
        if callable(one):
            raise RecipeError("teacher_size would be ignored: this teacher is given as an object. Leave it out.")
        if not isinstance(one, (str, Path)) or (method.needs_clusters and is_clusters(one)):
            continue
        if Path(one).exists():
            load_teacher(one, output="features", teacher_size=size)
            continue
        name, *_ = weights_file.name_and_file(one) or (str(one),)
        try:
            build_backbone(name, image_size=size)
        except BackboneError as error:
            raise BackboneError(str(error).replace("--image-size", "--teacher-size")) from None


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
    if isinstance(request.init, (str, Path)):  # of a pipeline's earlier stage there is nothing to look at yet
        from attar.models.saved import saved_digest

        saved_digest(request.init)


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


def check_size_afterwards(request: Request, image_size: int) -> None:
    """Raises BackboneError for a test size that a network trained on images of `image_size` pixels cannot take."""
    if request.test_size in (None, image_size):
        return
    from attar.models.backbones import BackboneSpec
    from attar.models.other_size import check_other_size

    spec = BackboneSpec(name=request.backbone, channels=3, image_size=image_size, stem=request.stem)
    check_other_size(spec, request.test_size)


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
        from attar.models.weights_file import absolute

        return absolute(source)
    return getattr(source, "name", None) or f"array {getattr(source, 'shape', '')}"
