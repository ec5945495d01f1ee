"""Relational KD: the student's images must lie to each other as the teacher's do, in distances and in angles.

Park et al. 2019, arXiv:1904.05068.

    s, t = pooled features of student and teacher of the same view; mu = the mean distance of a batch
    L_distance = mean_ij huber( |s_i - s_j| / mu_s  -  |t_i - t_j| / mu_t )
    L_angle    = mean_ijk huber( cos of the angle s_i s_j s_k  -  cos of the angle t_i t_j t_k )
    loss = ce_weight CE + kd_weight T^2 KL + distance_weight L_distance + angle_weight L_angle

No adapter is needed, as relations have no width. There is no state besides the weights.

Differs: the weights are those of the comparison in Tian et al. 2020, arXiv:1910.10699 (RepDistiller), which are the
paper's 1 : 2 times 25. Distances and angles are over the batches of all processes.

Cost: that of kd; L_angle takes memory with the cube of the batch (64: 1 MB, 1024: 4 GB).

Choose it when teacher and student differ in kind, so that their maps cannot be compared; with labels, kd is stronger.
"""

from __future__ import annotations

from dataclasses import dataclass

from attar.losses import relational_angle, relational_distance
from attar.methods.base import Method, Progress, Setup, StepOutput
from attar.methods.distill.labelled import PHOTO, SMALL, LabelledRecipe, distilled, labelled_network, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class RelationalKDRecipe(LabelledRecipe):
    """Relational KD's own settings."""

    distance_weight: float = 25.0  # RepDistiller
    angle_weight: float = 50.0  # RepDistiller; section 4: twice that of the distance


RECIPES = {
    "paper": RelationalKDRecipe(**PHOTO, ce_weight=1.0, kd_weight=0.0),  # schedule: He et al. 2016
    "small": RelationalKDRecipe(**SMALL, ce_weight=1.0, kd_weight=0.0),  # RepDistiller: -r 1 -a 0 -b 1
    "small_kd": RelationalKDRecipe(**SMALL, ce_weight=1.0, kd_weight=1.0),  # Tian et al. table 4
}


class RelationalKD(Method):
    """See the module's docstring. B images, N classes."""

    needs_teacher = True
    needs_labels = True
    batch_coupled = True
    recipe: RelationalKDRecipe
    classifier: MLP

    def __init__(self, recipe: RelationalKDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        self.image = setup.image
        self._teacher = (labelled_network("relational_kd", setup, backbone),)  # in a tuple: not a part of this module

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        teacher, recipe = self._teacher[0], self.recipe
        s = self.backbone(batch.images)  # (B, D)
        t = teacher.features(batch.images, self.image)
        return distilled(
            recipe,
            self.classifier(s),
            teacher.answer(t),
            batch.labels,
            s,
            distance=(recipe.distance_weight, relational_distance(s, t)),
            angle=(recipe.angle_weight, relational_angle(s, t)),
        )


METHOD = RelationalKD
__all__ = ["METHOD", "RECIPES", "views"]
