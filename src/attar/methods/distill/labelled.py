"""What distillers with labels share: a common part of their recipes, their view, their teacher, and two of their terms.

    ce_weight CE(student logits, label) + kd_weight T^2 KL(teacher's soft classes || student's)

No method by itself; kd has just these terms, the others add one of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import kl_divergence
from attar.methods.base import Recipe, Setup, StepOutput, above, one_of
from attar.methods.supervised.supervised import labelled_view
from attar.models.backbones import Backbone
from attar.models.teachers import FrozenTeacher, Teacher, check_classes
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class LabelledRecipe(Recipe):
    """Settings of distillers with labels."""

    ce_weight: float  # of the cross-entropy with the labels
    kd_weight: float  # of the teacher's soft classes
    temperature: float = 4.0  # T of these; Tian et al. section 4.1
    teacher_output: Literal["logits"] = "logits"  # the teacher was trained with labels
    crop: Literal["resized", "padded"] = "padded"  # resized: a random share of the image; padded: shifted by 1/8
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of the resized crop

    used_with = {
        "temperature": above("kd_weight"),
        "crop_scale": one_of("crop", "resized"),
    }


PHOTO: dict[str, Any] = dict(  # He et al. 2016, as `supervised`
    epochs=90,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.1,
    schedule="step",
    lr_drops=(30 / 90, 60 / 90, 80 / 90),
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    crop="resized",
)
SMALL: dict[str, Any] = dict(  # Tian et al. 2020, arXiv:1910.10699, section 4.1: CIFAR-100, 0.05 at a batch of 64
    epochs=240,  # (MobileNet and ShuffleNet: 0.01)
    batch_size=64,
    optimiser="sgd",
    base_lr=0.2,
    schedule="step",
    lr_drops=(150 / 240, 180 / 240, 210 / 240),
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    crop="padded",
)


def views(recipe: LabelledRecipe, image: ImageSpec) -> MakeOneView:
    """One view, the same for student and teacher."""
    return labelled_view(image, crop=recipe.crop, crop_scale=recipe.crop_scale)


def labelled_teacher(method: str, setup: Setup, student: Backbone) -> Teacher:
    """The teacher, which names the classes of the images.

    Raises:
        RecipeError: there is none, its classes are others, or it is the student.
    """
    teacher = setup.require_teacher(method, student)
    check_classes(method, teacher, setup.images)
    return teacher


def labelled_network(method: str, setup: Setup, student: Backbone) -> FrozenTeacher:
    """The same, for methods that look inside: at features, maps, or a second head."""
    teacher = labelled_teacher(method, setup, student)
    if not isinstance(teacher, FrozenTeacher) or teacher.head is None:
        raise RecipeError(f"{method}: it looks inside its teacher and needs the network itself, with a classifier.")
    return teacher


def require_same_network(where: str, student: Backbone, teacher: Backbone, *, why: str, otherwise: str = "") -> None:
    """The student's network must be the teacher's: name, stem and channels.

    why: it must. otherwise: what to do with a student of another network.

    Raises:
        RecipeError: it is another.
    """
    own, its = ((s.name, s.stem, s.channels) for s in (student.spec, teacher.spec))
    if own != its:
        described = [f"{name}, stem {stem}, {channels} channels" for name, stem, channels in (own, its)]
        options = [f"--{o} {b}" for o, a, b in zip(("backbone", "stem", "channels"), own, its) if a != b]
        raise RecipeError(
            f"{where}: {why}, which is {described[1]}; this one is {described[0]}. "
            f"Give {' '.join(options)}{otherwise and ', or '}{otherwise}."
        )


def distilled(
    recipe: LabelledRecipe,
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    features: Tensor,
    **own: tuple[float, Tensor],
) -> StepOutput:
    """The loss: both common terms, and those of the method's own as name=(weight, value); metrics are unweighted.

    logits, teacher_logits: (B, N). features: (B, D), for health.
    """
    assert labels is not None
    terms = {
        "cross_entropy": (recipe.ce_weight, F.cross_entropy(logits.float(), labels)),
        "soft_targets": (recipe.kd_weight, kl_divergence(logits, teacher_logits, temperature=recipe.temperature)),
        **own,
    }
    loss = sum(weight * value for weight, value in terms.values())
    answered, taught = logits.argmax(dim=1), teacher_logits.argmax(dim=1)
    metrics = {name: value.detach() for name, (_, value) in terms.items()} | {
        "accuracy": (answered == labels).float().mean(),
        "teacher_accuracy": (taught == labels).float().mean(),
        "teacher_agreement": (answered == taught).float().mean(),
    }
    assert isinstance(loss, Tensor)
    return StepOutput(loss, metrics, features.detach())
