"""The protocol of a method: Recipe, Setup, Progress, StepOutput, Method; and loading one by name.

A method holds networks and state and knows how to turn a batch into a loss. It never sees the trainer, the logger,
the rank or the clock, so it runs in a test with a batch of four.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from attar.data.images import Images, ImageSpec
from attar.errors import RecipeError, unknown_name
from attar.methods import CATALOGUE, entry

if TYPE_CHECKING:
    from attar.models.backbones import Backbone
    from attar.models.clusters import Clusters
    from attar.models.teachers import Teacher
    from attar.views.batches import ViewMaker


@dataclass(frozen=True)
class UsedWith:
    """What another field must hold for a field to have an effect: in words, as a rule, and how to set it."""

    field: str
    accepted: str
    fits: Callable[[Any], bool]
    advice: str


def one_of(field: str, *values: Any) -> UsedWith:
    """It holds one of these values."""
    return UsedWith(field, " or ".join(map(str, values)), lambda value: value in values, f"{field}={values[0]}")


def above(field: str, limit: float = 0) -> UsedWith:
    """It holds a number above this one; None is no number."""
    number = f"a number above {limit}"
    return UsedWith(field, number, lambda value: value is not None and value > limit, f"{field} to {number}")


def below(field: str, limit: float) -> UsedWith:
    """It holds a number below this one."""
    return UsedWith(field, f"a number below {limit}", lambda value: value < limit, f"{field} to a number below {limit}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a method is trained. Each method's recipe extends this with its own fields and the paper's values.

    Durations are fractions of the whole training (the paper's epochs in a comment), so that a short run keeps
    the shape of a long one. `lr` is the peak learning rate; None derives it from base_lr and the batch size.

    used_with: field -> when it has an effect, for fields that need another one; those of the classes above count too.
    A person who sets such a field without it is told so. given: the fields that a person set, for a method that learns
    only from its backbone whether one has an effect; no part of what a recipe is.
    """

    epochs: int
    batch_size: int  # images per optimiser step, over all processes
    optimiser: Literal["sgd", "lars", "adamw"]
    base_lr: float  # at the reference batch of the scaling rule
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # base * B / 256; base * sqrt(B); base
    lr: float | None = None
    final_lr: float = 0.0
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    num_cycles: int = 1  # of a cosine; each starts at the peak again
    lr_drops: tuple[float, ...] = ()  # fractions of training at which `step` multiplies by lr_drop_factor
    lr_drop_factor: float = 0.1
    warmup_fraction: float = 0.0
    weight_decay: float = 0.0
    weight_decay_end: float | None = None  # cosine from weight_decay to this (DINO); None: constant
    decay_bias_and_norm: bool = False  # also decay (and adapt, in LARS) parameters with ndim <= 1
    sgd_momentum: float = 0.9
    nesterov: bool = False
    adam_betas: tuple[float, float] = (0.9, 0.999)
    clip_gradient: float | None = None
    clip_per_parameter: bool = False  # clip each tensor's norm instead of the global norm (DINO)

    given: ClassVar[frozenset[str]] = frozenset()
    used_with: ClassVar[Mapping[str, UsedWith]] = {
        "sgd_momentum": one_of("optimiser", "sgd", "lars"),
        "nesterov": one_of("optimiser", "sgd", "lars"),
        "adam_betas": one_of("optimiser", "adamw"),
        "lr_drops": one_of("schedule", "step"),
        "lr_drop_factor": one_of("schedule", "step"),
        "final_lr": one_of("schedule", "cosine", "linear"),
        "num_cycles": one_of("schedule", "cosine"),
        "clip_per_parameter": above("clip_gradient"),
    }

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: what really runs."""
        if self.lr is not None:
            return self.lr
        scale = {"linear": self.batch_size / 256, "sqrt": self.batch_size**0.5, "none": 1.0}
        return self.base_lr * scale[self.lr_scaling]

    def cycle(self, step: int, total_steps: int) -> tuple[int, float]:
        """The cosine cycle a step lies in, from 0, and how much of that cycle is done; cycles begin after warm-up."""
        warmup = round(self.warmup_fraction * total_steps)
        passed = max(step - warmup, 0) * self.num_cycles / max(total_steps - warmup, 1)
        number = min(int(passed), self.num_cycles - 1)
        return number, passed - number


@dataclass(frozen=True)
class Progress:
    """Where training is. step counts optimiser updates from 0; epoch is the current pass, from 0."""

    step: int
    total_steps: int
    epoch: int
    total_epochs: int

    @property
    def fraction(self) -> float:
        """Share of training already done, in [0, 1)."""
        return self.step / max(self.total_steps, 1)


@dataclass
class StepOutput:
    """loss: scalar, local mean over this process' rows. metrics: every named term, detached scalars.

    embeddings: what the loss compares, detached (B, E); health is measured on them. `positives`: the other
    view's, row-aligned, where there is one (for alignment).
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    embeddings: Tensor | None = None
    positives: Tensor | None = None


@dataclass
class Setup:
    """What a method may be built from besides its recipe and backbone.

    image: size, channels and normalisation of the inputs. images: the training images (for banks, tables and
    pseudo-labels keyed by index). teacher: for distillers only; clusters: what was made of one, for methods that take
    these in its place. seed: of the run. projector: of the run whose backbone's weights are the first ones. device:
    where it will train. cache: a folder for large tables; None: they are made anew.
    """

    image: ImageSpec
    images: Images
    teacher: Teacher | None = None
    clusters: Clusters | None = None
    projector: nn.Module | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None

    def require_teacher(self, method: str, student: Backbone) -> Teacher:
        """The teacher of a distiller, which has weights of its own.

        Raises:
            RecipeError: there is none, or it is (or shares parameters with) the student.
        """
        if self.teacher is None:
            raise RecipeError(f"{method}: it distils and needs a teacher; give one in setup.teacher.")
        ours = {id(p) for p in student.parameters()}
        for teacher in getattr(self.teacher, "teachers", (self.teacher,)):  # several may answer as one
            network = getattr(teacher, "network", None)  # a table of answers has none
            if network is not None and any(id(p) in ours for p in network.parameters()):
                raise RecipeError(
                    f"{method}: teacher and student are the same network, which would learn from itself; give the "
                    "teacher weights of its own: another run, or a copy.deepcopy of the backbone."
                )
        return self.teacher


@dataclass(frozen=True)
class Trained:
    """A network with the heads that are kept beside it."""

    backbone: Backbone
    projector: nn.Module | None = None
    classifier: nn.Module | None = None


@dataclass
class Answers:
    """What a network says to its method's own task, for a person to look at; shown like a batch of views.

    shown: name -> normalised images (B, C, H, W), in the order of the columns. captions: name -> a line below each
    picture of that column, such as what the network took it for and how sure it is.
    """

    shown: Mapping[str, Tensor]
    captions: Mapping[str, Sequence[str]]
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return dict(self.shown)


class Method(nn.Module):
    """Base of all methods. Subclasses define `step`, and set `backbone` in `__init__(recipe, backbone, setup)`.

    `forward` is `step`, so that DistributedDataParallel can wrap a method as it is.
    needs_teacher: True for distillers. needs_clusters: for those that take clusters of the teacher's features in its
    place; their recipes have the fields of `ClusterSettings`. needs_labels: True for methods that are trained with
    labels; every label of a batch is then known. batch_coupled: True where the loss compares samples of one batch, so
    that gradient accumulation changes it. projector: the head whose output a distiller may learn from (None:
    features). classifier: the head that names classes from the backbone's features, kept with the run (None: no
    classes). class_names: of its logits, where they are not the training images' own.

    needs_tokens: for methods that mask the patches of a vision transformer, which one they can train: "any"; "class",
    one whose features are its class token; "mean", one whose features are the mean of its patch tokens. They call
    `check_tokens` (models/tokens.py). Empty: any backbone will do.

    A module's `views` that has a parameter named `patch_size` is given the side of the backbone's patches in pixels
    there; 1 where it has none.
    """

    needs_teacher: ClassVar[bool] = False
    needs_clusters: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_tokens: ClassVar[Literal["", "any", "class", "mean"]] = ""
    batch_coupled: ClassVar[bool] = False
    backbone: Backbone
    projector: nn.Module | None
    classifier: nn.Module | None

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        # not class attributes: those would hide the registered modules of a subclass
        self.projector = None
        self.classifier = None
        self.class_names: tuple[str, ...] = ()

    @staticmethod
    def training_images(images: Images, recipe: Any) -> Images:
        """The images of the source to train on: all, unless the recipe means a share of them."""
        return images

    @staticmethod
    def backbone_name(asked: str) -> str:
        """The network to build where a person asks for `asked`; another one where the method needs its own input."""
        return asked

    def step(self, batch: Any, progress: Progress) -> StepOutput:
        """One forward pass; batch is what the method's `views` produced."""
        raise NotImplementedError(f"{type(self).__name__}.step is not defined")

    def forward(self, batch: Any, progress: Progress) -> StepOutput:
        return self.step(batch, progress)

    def answers(self, batch: Any) -> Answers | None:
        """What the network, in eval mode, says to its own task for a batch of views; None where there is no picture
        of it. For the report."""
        return None

    def others(self) -> Mapping[str, Trained]:
        """Networks that were trained beside the backbone, by name; each is saved like a run, in RUN/NAME."""
        return {}

    def after_step(self, progress: Progress) -> None:
        """State that is not trained by gradient: momentum teacher, centre. Called after the optimiser's update."""

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Only when the paper treats parameters differently: groups with `params` (names allowed: a list of
        (name, parameter)) and any of `lr_scale`, `constant_lr` (always the peak rate: no warm-up, no decay),
        `weight_decay_scale`, `frozen_fraction` (no update before that share of training). None: the shared rule of
        train/optimisers.py."""
        return None


def with_own_group(method: Method, part: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Parameter groups in which one part of a method has settings of its own (see `Method.parameter_groups`)."""
    own = list(part.parameters())
    ids = {id(p) for p in own}
    return [{"params": [p for p in method.parameters() if id(p) not in ids]}, {"params": own, **settings}]


def without_decay(method: Method, *endings: str) -> list[dict[str, Any]]:
    """Parameter groups in which those whose names end so have no weight decay (see `Method.parameter_groups`)."""
    own = [parameter for name, parameter in method.named_parameters() if name.endswith(endings)]
    return with_own_group(method, nn.ParameterList(own), weight_decay_scale=0.0)


def load(name: str) -> ModuleType:
    """The module of a method: METHOD, RECIPES, views. An unknown name is a RecipeError with the nearest ones."""
    path = entry(name).module
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):  # something that the module itself needs
            raise
        raise RecipeError(
            f"method {name!r}: there is no module {error.name!r}. A name with a dot is a module of your own that "
            "Python finds (installed, or in a folder of PYTHONPATH); attar methods lists those that are built in."
        ) from None
    missing = [part for part in ("METHOD", "RECIPES", "views") if not hasattr(module, part)]
    if missing:
        raise RecipeError(f"method {name!r}: {path} does not define {', '.join(missing)}; see CONTRIBUTING.md.")
    return module


def _methods_with(field_name: str) -> str:
    """For an error: the built-in methods that do have such a field; empty where none has."""
    recipes = {name: next(iter(load(name).RECIPES.values())) for name in CATALOGUE}
    having = [name for name, recipe in recipes.items() if field_name in {f.name for f in dataclasses.fields(recipe)}]
    if not having:
        return ""
    more = f" and {len(having) - 5} more" if len(having) > 5 else ""
    return f" {field_name} is a field of {', '.join(having[:5])}{more}, not of this method."


def make_views(name: str, recipe: Recipe, image: ImageSpec, backbone: Backbone) -> ViewMaker:
    """The view maker of a method for this backbone: `views` that takes a patch_size is told how large patches are."""
    module = load(name)
    if "patch_size" not in inspect.signature(module.views).parameters:
        return module.views(recipe, image)
    from attar.models.tokens import patch_size

    return module.views(recipe, image, patch_size(backbone))


def resolve_recipe(method: str, recipe: str | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
    """A named recipe of a method (None: its first) with some fields replaced, checked and typed.

    Strings are converted to the field's type, so values may come from a command line. All settings of a run may be
    passed back, as its recipe.yaml holds them, with or without epochs: of a complete set only what no recipe of the
    method has counts as given.

    Raises:
        RecipeError: unknown recipe, a field the recipe does not have, a value of the wrong type, or a setting
            that this combination would ignore or cannot have.
    """
    recipes: dict[str, Recipe] = load(method).RECIPES
    if recipe is None:
        recipe = next(iter(recipes))
    if recipe not in recipes:
        raise RecipeError(f"{method}: " + unknown_name("recipe", recipe, recipes))
    base = recipes[recipe]
    overrides = dict(overrides or {})
    fields = {f.name: str(f.type) for f in dataclasses.fields(base)}
    for name in overrides:
        if name not in fields:
            unknown = unknown_name("recipe field", name, fields, limit=40)
            raise RecipeError(f"{method}: {unknown}{_methods_with(name)}")
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)} | overrides
    for name, given in overrides.items():
        if isinstance(given, str) and given.lower() in ("none", "null") and "None" in fields[name]:
            values[name] = None
        elif isinstance(given, str) and (isinstance(getattr(base, name), tuple) or fields[name].startswith("tuple")):
            values[name] = [part for part in given.strip("()[] ").replace(" ", "").split(",") if part]
    try:
        resolved = TypeAdapter(type(base)).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "recipe"
        given = overrides.get(name, first["input"])
        wanted = _numbers_wanted(fields.get(name, ""))
        why = f"; give {wanted}, separated by commas" if wanted else f": {first['msg']}"
        raise RecipeError(f"{method}: {name}={given!r} is not accepted{why}.") from None
    counted = list(overrides)
    if overrides.keys() >= fields.keys() - {"epochs"}:  # all of a run, which may have had another recipe
        usual = {name: [getattr(one, name) for one in recipes.values()] for name in fields}
        counted = [name for name in overrides if getattr(resolved, name) not in usual[name]]
    given_names = frozenset(counted)
    _refuse_ignored(method, resolved, given_names)
    _refuse_contradictions(method, resolved, given_names)
    for name in counted:  # in the order they were given in, so that the same mistake has the same message
        _check_range(method, name, getattr(resolved, name), default=getattr(type(base), name, None))
    object.__setattr__(resolved, "given", given_names)
    return resolved


def _numbers_wanted(kind: str) -> str:
    """For an error: what a field of this type takes, where it takes several numbers.

    >>> _numbers_wanted("tuple[float, float]"), _numbers_wanted("tuple[float, ...]"), _numbers_wanted("float | None")
    ('two numbers', 'numbers', '')
    """
    parts = re.findall(r"float|int", kind) if kind.startswith("tuple") else []
    if not parts:
        return ""
    words = {2: "two ", 3: "three ", 4: "four "}
    return f"{'' if '...' in kind else words.get(len(parts), f'{len(parts)} ')}numbers"


def _check_range(method: str, name: str, value: Any, *, default: Any) -> None:
    """Fields mean by their name what they may hold; what a name does not tell is left to the method.

    A method's own default is always accepted, such as a queue of length 0 where that means none.
    """
    if value == default:
        return
    parts = value if isinstance(value, tuple) else (value,)
    numbers = [part for part in parts if isinstance(part, (int, float)) and not isinstance(part, bool)]
    if math.inf in map(abs, numbers):
        raise RecipeError(f"{method}: {name}={value} is not accepted; give a number that is not infinite.")
    if isinstance(value, tuple) and len(value) == 2:
        for pattern, accepted, in_order in _BOUNDS:
            if re.fullmatch(pattern, name) and not in_order(*value):
                given = ",".join(map(str, value))
                raise RecipeError(f"{method}: {name}={given} is not accepted; give two numbers, {accepted}.")
    for pattern, accepted, fits in _RANGES:
        if re.fullmatch(pattern, name):
            if not all(map(fits, numbers)):
                if isinstance(default, (int, float)) and not fits(default):
                    accepted = f"{accepted}, or {default}"
                raise RecipeError(f"{method}: {name}={value} is not accepted; give {accepted}.")
            return


# (pattern of the name of a field that holds the two ends of a range, what it accepts in words, and as a rule)
_BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    (".*_scale", "0 < low <= high <= 1", lambda low, high: 0 < low <= high <= 1),
    ("mask_ratio", "0 <= low <= high <= 1 and high above 0", lambda low, high: 0 <= low <= high <= 1 and high > 0),
    (".*_aspect", "0 < low <= high", lambda low, high: 0 < low <= high),
)


# (pattern of the field's name, what it accepts in words, and as a rule); the first that matches counts
_RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    (r"num_local_views|teacher_views", "0 or more", lambda v: v >= 0),
    (r"num_(clusters|prototypes|permutations)", "2 or more", lambda v: v >= 2),  # of one, nothing can be told apart
    (
        r"epochs|batch_size|num_.*|.*_(dim|layers|length|iterations|cells|heads|depth)|grid|min_context",
        "1 or more",
        lambda v: v >= 1,
    ),
    (
        r"lr_drops|.*_(fraction|share|probability)|(.*_)?momentum|low_resolution|(dense|patch|sigreg)_weight|"
        r"label_smoothing|(.*_)?keep_wrong",
        "a number from 0 to 1",
        lambda v: 0 <= v <= 1,
    ),
    (r"dropout", "a number from 0 to below 1", lambda v: 0 <= v < 1),
    (r"adam_betas", "two numbers from 0 to below 1", lambda v: 0 <= v < 1),
    (r"patch_crop|mask_cell|lr_drop_factor|layer_decay", "a number above 0, at most 1", lambda v: 0 < v <= 1),
    (r"local_size", "a number above 0 and below 1: a share of the image's side", lambda v: 0 < v < 1),
    (
        r"lr|base_lr|clip_gradient|(.*_)?temperature(_start)?|(patch|tile)_scale|sigma",
        "a number above 0",
        lambda v: v > 0,
    ),
    (r"weight_decay(_end)?|final_lr|.*_weight|colour_strength", "0 or more", lambda v: v >= 0),
    (r"gap|displaced|translation|rotation|offset|hue|overlap", "0 or more", lambda v: v >= 0),
    (r"channel_shift|max_foreign", "0 or more", lambda v: v >= 0),
)


def _refuse_ignored(method: str, recipe: Recipe, given: frozenset[str]) -> None:
    """A setting that would be ignored is an error."""
    conditions: dict[str, UsedWith] = {}
    for kind in reversed(type(recipe).__mro__):
        conditions |= vars(kind).get("used_with", {})
    for name in conditions:
        needed = _unmet(recipe, conditions, name) if name in given else None
        if needed is not None:
            holds = getattr(recipe, needed.field)
            raise RecipeError(
                f"{method}: {name} would be ignored: {needed.field} is {holds!r}, and {name} is used with "
                f"{needed.accepted}. Leave it out, or set {needed.advice}."
            )
    if recipe.lr is not None:
        for name in ("base_lr", "lr_scaling"):
            if name in given:
                raise RecipeError(f"{method}: {name} would be ignored because lr is given; set one of the two.")
    decays = recipe.weight_decay or recipe.weight_decay_end or recipe.optimiser == "lars"  # which adapts them, too
    if "decay_bias_and_norm" in given and not decays:
        raise RecipeError(
            f"{method}: decay_bias_and_norm would be ignored: weight_decay is 0. Leave it out, or set weight_decay."
        )


def _unmet(recipe: Recipe, conditions: Mapping[str, UsedWith], name: str) -> UsedWith | None:
    """What a field lacks to have an effect, or what the field it is used with lacks in its turn."""
    needed = conditions.get(name)
    if needed is None or not needed.fits(getattr(recipe, needed.field)):
        return needed
    return _unmet(recipe, conditions, needed.field)


def _refuse_contradictions(method: str, recipe: Recipe, given: frozenset[str]) -> None:
    """Settings that do not go together, whichever of them was given."""
    if recipe.schedule == "step" and not recipe.lr_drops and {"schedule", "lr_drops"} & given:
        raise RecipeError(
            f"{method}: schedule=step without lr_drops would never lower the rate; give the fractions of training at "
            "which it does, such as lr_drops=0.6,0.8, or set schedule=constant."
        )
    if recipe.nesterov and not recipe.sgd_momentum and recipe.optimiser != "adamw":
        raise RecipeError(
            f"{method}: nesterov=True looks ahead along the momentum, and sgd_momentum is 0. Set nesterov=false, or "
            "sgd_momentum to a number above 0."
        )
