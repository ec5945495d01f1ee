"""SSKD, stage 2: a self-supervised head learns on the features of a frozen teacher, and becomes a part of it.

Xu et al. 2020, arXiv:2006.07114, section 3.1. Stage 1 is `supervised`, stage 3 is `sskd`.

    z = head(features of the teacher), a two-layer MLP; u_i of the upright image, z_i of a transformed one
    contrastive:      loss = mean_i -log softmax_j( cos(z_i, u_j) / temperature )_i, over all images j of the batch
    exemplar:         loss = mean_i mean_{j != i} max( 0, margin + cos(z_i, u_j) - cos(z_i, u_i) )
    rotation, jigsaw: loss = mean_i CE( head(features), which transformation )

The backbone is the teacher's, with its weights, in eval mode, and does not learn: --backbone must name this network.
The run keeps it with the teacher's classifier and, as projector, the new head: everything that sskd learns from, once
for any number of students. There is no state besides the weights.

    attar pretrain SOURCE --method supervised --backbone resnet32x4 --out T
    attar distill SOURCE --teacher T --method sskd_teacher --backbone resnet32x4 --out TS
    attar distill SOURCE --teacher TS --method sskd --backbone resnet8x4 --out S

Why a run of its own: stages 2 and 3 have schedules of their own, each resumes alone, and students share one head.

Differs: the paper names four transformations (colour, grey, crop, rotation), the published code has rotations only and
no temperature; "paper" and "released" are these. With a temperature of 1 a contrastive answer cannot be sure: among 64
images its probability is at most 0.1, so the targets of stage 3 depend on the batch. How the paper trains exemplar and
jigsaw it does not say in full: the margin loss and quarters are ours.

Cost: one forward pass of the teacher for four views, no backward pass but of the head.

Choose it when sskd is what you want; it is good for nothing else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from attar.errors import RecipeError
from attar.losses import cosine_margin
from attar.methods.base import Method, Progress, Setup, StepOutput, one_of
from attar.methods.distill.labelled import labelled_network, require_same_network
from attar.methods.distill.self_supervision import TaskRecipe, task_head, task_scores, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.teachers import FrozenTeacher
from attar.views.batches import Transformed


@dataclass(frozen=True, kw_only=True)
class SSKDTeacherRecipe(TaskRecipe):
    """Stage 2's own settings."""

    temperature: float = 1.0  # of contrastive; published code: none
    margin: float = 0.5  # of exemplar; ours

    used_with = {
        "temperature": one_of("task", "contrastive"),
        "margin": one_of("task", "exemplar"),
    }


RELEASED = SSKDTeacherRecipe(  # xuguodong03/SSKD, teacher.py
    epochs=60,
    batch_size=64,
    optimiser="sgd",
    base_lr=0.2,  # 0.05 at a batch of 64
    schedule="step",
    lr_drops=(30 / 60, 45 / 60),
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    flip=0.0,
)
RECIPES = {
    # as "released"; transformations: section 3.1; temperature: section 6.4
    "paper": replace(RELEASED, transformations="four", temperature=0.5, flip=0.5),
    "released": RELEASED,
    "small": replace(RELEASED, flip=0.5),  # as released, with the mirror of all other recipes here
}


class SSKDTeacher(Method):
    """See the module's docstring. B images, D features."""

    needs_teacher = True
    needs_labels = True  # the classifier is kept with the names of their classes
    batch_coupled = True
    recipe: SSKDTeacherRecipe
    projector: MLP
    classifier: nn.Module

    def __init__(self, recipe: SSKDTeacherRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = labelled_network("sskd_teacher", setup, backbone)
        _check_same(backbone, teacher, setup)
        backbone.load_state_dict(teacher.backbone.state_dict())
        self.backbone = backbone.requires_grad_(False)
        self.classifier = copy.deepcopy(teacher.head)  # type: ignore[assignment]
        self.projector = task_head(recipe.task, backbone.num_features)
        self.train()

    def train(self, mode: bool = True) -> SSKDTeacher:
        super().train(mode)
        self.backbone.eval()  # its statistics are the teacher's
        return self

    def step(self, batch: Transformed, progress: Progress) -> StepOutput:
        with torch.no_grad():
            features = self.backbone(torch.cat([batch.images, batch.transformed]))  # ((1 + V) B, D)
        answers = self.projector(features)
        scores, targets = task_scores(self.recipe.task, answers, batch)
        if self.recipe.task == "exemplar":
            loss = cosine_margin(scores, targets, margin=self.recipe.margin)
        else:
            temperature = self.recipe.temperature if self.recipe.task == "contrastive" else 1.0
            loss = F.cross_entropy(scores / temperature, targets)
        accuracy = (scores.argmax(dim=1) == targets).float().mean()
        embeddings = answers[: len(batch.images)].detach()
        return StepOutput(loss, {"self_supervision": loss.detach(), "task_accuracy": accuracy}, embeddings)


def _check_same(backbone: Backbone, teacher: FrozenTeacher, setup: Setup) -> None:
    """The run's network and its input are the teacher's."""
    require_same_network(
        "sskd_teacher", backbone, teacher.backbone, why="it trains a head on the teacher's own network"
    )
    if setup.image != teacher.image:
        raise RecipeError(
            f"sskd_teacher: the teacher takes images of {teacher.image.size} pixels in its own normalisation; "
            "leave out --image-size and --teacher-size."
        )


METHOD = SSKDTeacher
__all__ = ["METHOD", "RECIPES", "views"]
