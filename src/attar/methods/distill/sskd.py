"""SSKD, stage 3: learn from a teacher not only what an image shows, but how transformed images look alike to it.

Xu et al. 2020, arXiv:2006.07114. Stage 1 is `supervised`, stage 2 `sskd_teacher` (which says how to run all three).

    four views of each image: upright, and three transformed (rotations); student and teacher see the same
    CE  cross-entropy of the upright images with their labels
    KD  T^2 KL( teacher || student ) of the logits of the upright images
    TF  the same for the transformed images, whose label is that of their image
    SS  tau^2 KL( teacher || student ) of the task's scores: contrastive: the cosines of each transformed image with all
        upright ones of the batch, each network in the space of its own head
    loss = ce_weight CE + kd_weight KD + transformed_weight TF + self_supervision_weight SS

Selective transfer: of TF and SS all rows count where the teacher's first choice is right, and of the others the share
`keep_wrong` with the smallest error, which is the rank of the truth; for TF all (1), for SS 0.75.

There is no state besides the weights. The task must be the one that the teacher's head was trained for.

Differs: "paper" has the paper's four transformations (section 3.1), "released" the rotations of the published code,
which gave the published numbers. Between equal ranks the probability of the truth decides, not the place in the batch.
Across processes upright images are compared, and errors ranked, over all of the global batch.

Cost: four views of each image for both networks: an epoch costs four of kd, so compare it with kd of four times the
steps, and with self_supervision_weight=0, which is kd on rotated images too.

Choose it when teacher and student are of different families, labels are few or noisy, and compute is not: there its
published gains over kd are the largest (5.2 points from ResNet-50 to MobileNetV2, 4.4 from ResNet-32x4
to ShuffleNetV1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.losses import error_rank_gate, kl_divergence
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.distill.labelled import SMALL, LabelledRecipe, distilled, labelled_network
from attar.methods.distill.self_supervision import (
    TaskRecipe,
    settings_in_common,
    task_head,
    task_scores,
    typed,
    views,
)
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.teachers import FrozenTeacher
from attar.views.batches import Transformed


@dataclass(frozen=True, kw_only=True)
class SSKDRecipe(LabelledRecipe, TaskRecipe):
    """SSKD's own settings; all values of section 4 and of the published code."""

    transformed_weight: float = 2.7
    transformed_temperature: float = 4.0  # T of TF
    transformed_keep_wrong: float = 1.0  # share of the teacher's errors that is passed on
    self_supervision_weight: float = 10.0
    self_supervision_temperature: float = 0.5  # tau, for cosines; the logits of rotation and jigsaw want 4 (ours)
    keep_wrong: float = 0.75  # of SS

    used_with = {
        "transformed_temperature": above("transformed_weight"),
        "transformed_keep_wrong": above("transformed_weight"),
        "self_supervision_temperature": above("self_supervision_weight"),
        "keep_wrong": above("self_supervision_weight"),
    }


RELEASED = SSKDRecipe(**SMALL, ce_weight=0.1, kd_weight=0.9, flip=0.0)  # xuguodong03/SSKD, student.py
RECIPES = {
    "paper": replace(RELEASED, transformations="four", flip=0.5),  # as "released"; transformations: section 3.1
    "released": RELEASED,
    "small": replace(RELEASED, flip=0.5),  # as released, with the mirror of all other recipes here
}


class SSKD(Method):
    """See the module's docstring. B images, V transformed views, D features, N classes."""

    needs_teacher = True
    needs_labels = True
    batch_coupled = True
    recipe: SSKDRecipe
    classifier: MLP

    def __init__(self, recipe: SSKDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = labelled_network("sskd", setup, backbone)
        _check_head(recipe, teacher)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        self.head = task_head(recipe.task, backbone.num_features)
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module

    def step(self, batch: Transformed, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        teacher, recipe, upright = self._teacher[0], self.recipe, len(batch.images)
        images = torch.cat([batch.images, batch.transformed])
        features, seen = self.backbone(images), teacher.features(images, self.image)  # ((1 + V) B, D)
        logits, taught = self.classifier(features), teacher.answer(seen)  # ((1 + V) B, N)

        labels = batch.labels.repeat(len(batch.transformed) // upright)
        transformed = kl_divergence(
            logits[upright:],
            taught[upright:],
            temperature=recipe.transformed_temperature,
            weights=error_rank_gate(taught[upright:], labels, keep_wrong=recipe.transformed_keep_wrong),
        )
        scores, targets = task_scores(recipe.task, self.head(features), batch)
        teacher_scores, _ = task_scores(recipe.task, teacher.embedding(seen), batch)
        alike = kl_divergence(
            scores,
            teacher_scores,
            temperature=recipe.self_supervision_temperature,
            weights=error_rank_gate(teacher_scores, targets, keep_wrong=recipe.keep_wrong),
        )
        output = distilled(
            recipe,
            logits[:upright],
            taught[:upright],
            batch.labels,
            features[:upright],
            transformed=(recipe.transformed_weight, transformed),
            self_supervision=(recipe.self_supervision_weight, alike),
        )
        output.metrics = {**output.metrics, **_right(scores, teacher_scores, targets)}
        return output


@torch.no_grad()
def _right(scores: Tensor, teacher_scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How often both solve the task."""
    named = {"task_accuracy": scores, "teacher_task_accuracy": teacher_scores}
    return {name: (s.argmax(dim=1) == targets).float().mean() for name, s in named.items()}


def _check_head(recipe: SSKDRecipe, teacher: FrozenTeacher) -> None:
    """The teacher has a head for the recipe's task, which learned from the views that the recipe shows."""
    found = getattr(teacher.projector, "num_features_out", None)
    wanted = task_head(recipe.task, teacher.backbone.num_features).num_features_out
    if found is None:
        raise RecipeError(
            "sskd: its teacher has no self-supervised head. Train it first: attar distill SOURCE --teacher RUN "
            "--method sskd_teacher --backbone NAME (the teacher's own), then give that run as --teacher."
        )
    settings = teacher.settings if "task" in teacher.settings else {}
    here, there = settings_in_common(vars(recipe)), settings_in_common(settings)
    own, its = (
        [f"{name}={typed(v)}" for name, v in mine.items() if name in settings and typed(v) != typed(other.get(name))]
        for mine, other in ((here, there), (there, here))
    )
    if own:
        raise RecipeError(
            f"sskd: {', '.join(own)}, and the teacher's head was trained for {', '.join(its)}. Use -s "
            f"{' -s '.join(its)}, or train a head: attar distill … --method sskd_teacher -s {' -s '.join(own)}."
        )
    if found != wanted:
        raise RecipeError(
            f"sskd: task={recipe.task} needs a teacher's head of width {wanted}, and this one has {found}; it was "
            f"trained for another task, or is no head of sskd_teacher. Train one with -s task={recipe.task}."
        )


METHOD = SSKD
__all__ = ["METHOD", "RECIPES", "views"]
