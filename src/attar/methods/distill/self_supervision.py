"""The self-supervised task of SSKD, which its teacher's head learns and its student imitates.

    contrastive   an image turned by 90, 180, 270 degrees must find its own upright view among all of the batch
    exemplar      the same, for strongly augmented images
    rotation      by how much is it turned?
    jigsaw        in which of the 24 orders are its quarters?

A task gives scores, and for each row the true column: cosines of a transformed image with all upright ones, or logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.losses import first_own_row, gather_rows
from attar.methods.base import Recipe, one_of
from attar.methods.supervised.supervised import labelled_view
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import Transformed
from attar.views.transformed import ORDERS, MakeTransformed, as_drawn, shuffled, turned, turned_at_random


@dataclass(frozen=True, kw_only=True)
class TaskRecipe(Recipe):
    """What stages 2 and 3 of SSKD must have in common."""

    task: Literal["contrastive", "exemplar", "rotation", "jigsaw"] = "contrastive"
    transformations: Literal["rotations", "four"] = "rotations"  # of contrastive; four: also crop, colour and grey
    flip: float = 0.5  # published code 0
    teacher_output: Literal["logits"] = "logits"  # the teacher was trained with labels
    crop: Literal["resized", "padded"] = "padded"  # resized: a random share of the image; padded: shifted by 1/8
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of the resized crop

    used_with = {
        "transformations": one_of("task", "contrastive"),
        "crop_scale": one_of("crop", "resized"),
    }


def settings_in_common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe's settings those that stages 2 and 3 must have in common, less what makes no difference to it."""
    common = {name: settings[name] for name in TaskRecipe.__annotations__ if name in settings}
    unused = {name for name, needed in TaskRecipe.used_with.items() if not needed.fits(common.get(needed.field))}
    return {name: value for name, value in common.items() if name not in unused}


def typed(value: Any) -> str:
    """A setting as it is typed after -s."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def views(recipe: TaskRecipe, image: ImageSpec) -> MakeTransformed:
    """An upright view and three transformed ones; each has a crop of its own."""
    upright = labelled_view(image, crop=recipe.crop, crop_scale=recipe.crop_scale, flip=recipe.flip).view
    strong = Augmentation(image, scale=(0.2, 1.0), flip=recipe.flip, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0)
    if recipe.task == "jigsaw":
        return MakeTransformed(upright, upright, shuffled)
    if recipe.task == "exemplar":
        return MakeTransformed(upright, strong, as_drawn)
    if recipe.task == "contrastive" and recipe.transformations == "four":
        return MakeTransformed(upright, strong, turned_at_random)
    return MakeTransformed(upright, upright, turned)


def task_head(task: str, width: int) -> MLP:
    """Two layers, as wide as the features; the last gives an embedding, or logits of the answers."""
    return MLP([width, width, {"rotation": 4, "jigsaw": len(ORDERS)}.get(task, width)], norm=None)


def task_scores(task: str, answers: Tensor, batch: Transformed) -> tuple[Tensor, Tensor]:
    """Scores and true columns.

    Args:
        answers: ((1 + V) B, E) of the head, those of the upright images first. Across processes, pass local rows; the
            upright ones are gathered.

    Returns:
        contrastive, exemplar: cosines (V B, B of all processes). Others: logits ((1 + V) B, E).
    """
    num = len(batch.images)
    if task in ("contrastive", "exemplar"):
        rows = F.normalize(answers.float(), dim=1)
        source = first_own_row(num) + torch.arange(num, device=rows.device)
        return rows[num:] @ gather_rows(rows[:num]).T, source.repeat(len(batch.transformed) // num)
    upright = torch.zeros(num, dtype=torch.long, device=answers.device)
    return answers.float(), torch.cat([upright, batch.pretext_targets])
