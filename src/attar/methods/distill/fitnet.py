"""FitNet: from the middle of the student one must be able to tell what the middle of the teacher says (a hint).

Romero et al. 2015, arXiv:1412.6550. Recipe "small": hints and labels together, as Tian et al. 2020, arXiv:1910.10699.

    r = regressor(the student's map at student_stage): a 1x1 convolution to the teacher's width, batch norm, ReLU
    hint = mean over samples, channels and places of ( r - the teacher's map at teacher_stage )^2
    loss = hint_weight hint                           in the first `hint_fraction` of training (the paper's stage 1)
    loss = ce_weight CE + kd_weight T^2 KL            after it (stage 2)
    loss = ce_weight CE + kd_weight T^2 KL + hint_weight hint     throughout, where hint_fraction is 0

The regressor belongs to this method and is never exported. There is no state besides the weights.

Differs: the paper decays the weight of the soft targets in stage 2 from 4 to 1, and starts stage 2 with an optimiser of
its own; here both are one run, and the weight stays. Its regressor is a convolution that also shrinks the student's map
where the sizes differ; here the larger map is averaged to the smaller. None: a stage is the middle one of its network.

Cost: that of kd, and the regressor.

Choose it when the student is deeper and thinner than the teacher, so that it needs help on the way; alone it is worse
than kd on CIFAR-100 (Tian et al., table 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.distill.labelled import PHOTO, SMALL, LabelledRecipe, distilled, labelled_network, views
from attar.methods.distill.stages import chosen
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class FitNetRecipe(LabelledRecipe):
    """FitNet's own settings."""

    hint_weight: float = 100.0  # RepDistiller: -b 100
    hint_fraction: float = 0.0  # share of training with hints alone; 0: hints throughout
    student_stage: str | None = None  # guided layer; None: the middle one
    teacher_stage: str | None = None  # hint layer; section 3.1: the middle one

    used_with = {
        "student_stage": above("hint_weight"),
        "teacher_stage": above("hint_weight"),
    }


RECIPES = {
    # schedule: He et al. 2016; temperature: adri-romsor/FitNets, yaml/; the paper's stages end when a validation loss
    # does, halves are ours
    "paper": FitNetRecipe(**PHOTO, ce_weight=1.0, kd_weight=1.0, temperature=3.0, hint_weight=1.0, hint_fraction=0.5),
    "small": FitNetRecipe(**SMALL, ce_weight=1.0, kd_weight=0.0),  # RepDistiller: -r 1 -a 0 -b 100
    "small_kd": FitNetRecipe(**SMALL, ce_weight=1.0, kd_weight=1.0),  # Tian et al. table 4
}


class FitNet(Method):
    """See the module's docstring. B images, N classes."""

    needs_teacher = True
    needs_labels = True
    recipe: FitNetRecipe
    classifier: MLP

    def __init__(self, recipe: FitNetRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        if recipe.hint_fraction and not recipe.hint_weight:
            raise RecipeError(
                f"fitnet: with hint_weight=0 the first {recipe.hint_fraction:.0%} of training, which are hints alone, "
                "would learn nothing; set hint_fraction=0, or hint_weight to a number above 0."
            )
        teacher = labelled_network("fitnet", setup, backbone)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        mine, theirs = backbone.stages_of_blank(), teacher.backbone.stages_of_blank()
        self.stages = chosen("fitnet", mine, recipe.student_stage), chosen("fitnet", theirs, recipe.teacher_stage)
        width, teacher_width = mine[self.stages[0]].shape[1], theirs[self.stages[1]].shape[1]
        self.regressor = nn.Sequential(
            nn.Conv2d(width, teacher_width, 1, bias=False), nn.BatchNorm2d(teacher_width), nn.ReLU()
        )
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        teacher = self._teacher[0]
        features, maps = self.backbone.features_and_stages(batch.images)
        teacher_features, teacher_maps = teacher.features_and_stages(batch.images, self.image)
        hint = self._hint(maps[self.stages[0]], teacher_maps[self.stages[1]])
        recipe, hint_weight = self._weights(progress)
        logits, taught = self.classifier(features), teacher.answer(teacher_features)
        return distilled(recipe, logits, taught, batch.labels, features, hint=(hint_weight, hint))

    def _hint(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        regressed, wanted = self.regressor(student_map).float(), teacher_map.float()
        size = (min(regressed.shape[2], wanted.shape[2]), min(regressed.shape[3], wanted.shape[3]))
        return F.mse_loss(F.adaptive_avg_pool2d(regressed, size), F.adaptive_avg_pool2d(wanted, size))

    def _weights(self, progress: Progress) -> tuple[FitNetRecipe, float]:
        """The recipe as it counts now, with the weight of the hint; 0 keeps a term, and its metric, without effect."""
        if progress.fraction < self.recipe.hint_fraction:
            return replace(self.recipe, ce_weight=0.0, kd_weight=0.0), self.recipe.hint_weight
        return self.recipe, 0.0 if self.recipe.hint_fraction else self.recipe.hint_weight


METHOD = FitNet
__all__ = ["METHOD", "RECIPES", "views"]
