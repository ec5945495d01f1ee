"""Attention transfer: at every stage the student must look where the teacher looks.

Zagoruyko and Komodakis 2017, arXiv:1612.03928.

    Q(A) = the mean over channels of A^2 of a feature map, flattened and normalised to unit length
    loss = ce_weight CE + kd_weight T^2 KL + attention_weight sum_stages mean_ip ( Q(S_i)_p - Q(T_i)_p )^2

Stages are paired by name; networks whose stages are named otherwise are paired from the last one backwards, the stem
left out. No adapter is needed, as an attention map has no width. There is no state besides the weights.

Differs: the weight 1000 and the mean over places are those of the published code and of Tian et al. 2020,
arXiv:1910.10699 (RepDistiller), in every recipe, "paper" too; the paper writes beta / 2 and a norm. The mean square of
a unit vector falls with its length, so that 1000, meant for images of 32 px, is four times as strong at 16 px. Where
two maps differ in size, the larger is averaged to the smaller; the paper interpolates.

Cost: that of kd.

Choose it when teacher and student are convnets of one family; between families its maps mean different things, and it
can be worse than no teacher (Tian et al., table 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from attar.losses import attention_transfer
from attar.methods.base import Method, Progress, Setup, StepOutput
from attar.methods.distill.labelled import PHOTO, SMALL, LabelledRecipe, distilled, labelled_network, views
from attar.methods.distill.stages import paired
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class AttentionTransferRecipe(LabelledRecipe):
    """Attention transfer's own settings."""

    attention_weight: float = 1000.0  # published code; beta of section 4.1, which there is halved and weighs a norm


RECIPES = {
    "paper": AttentionTransferRecipe(**PHOTO, ce_weight=1.0, kd_weight=0.0),  # schedule: He et al. 2016
    "small": AttentionTransferRecipe(**SMALL, ce_weight=1.0, kd_weight=0.0),  # RepDistiller: -r 1 -a 0 -b 1000
    "small_kd": AttentionTransferRecipe(**SMALL, ce_weight=1.0, kd_weight=1.0),  # Tian et al. table 4
}


class AttentionTransfer(Method):
    """See the module's docstring. B images, N classes."""

    needs_teacher = True
    needs_labels = True
    recipe: AttentionTransferRecipe
    classifier: MLP

    def __init__(self, recipe: AttentionTransferRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        self.image = setup.image
        teacher = labelled_network("attention_transfer", setup, backbone)
        self._teacher = (teacher,)  # in a tuple: not a part of this module

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        teacher = self._teacher[0]
        features, student_maps = self.backbone.features_and_stages(batch.images)
        teacher_features, teacher_maps = teacher.features_and_stages(batch.images, self.image)
        pairs = paired("attention_transfer", student_maps, teacher_maps)
        attention = sum(attention_transfer(student_maps[s], teacher_maps[t]) for s, t in pairs)
        return distilled(
            self.recipe,
            self.classifier(features),
            teacher.answer(teacher_features),
            batch.labels,
            features,
            attention=(self.recipe.attention_weight, attention),  # type: ignore[arg-type]
        )


METHOD = AttentionTransfer
__all__ = ["METHOD", "RECIPES", "views"]
