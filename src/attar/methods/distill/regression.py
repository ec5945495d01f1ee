"""Regression: the student predicts a frozen teacher's features of the same view; the baseline of all distillation.

SimReg, Navaneet et al. 2021, arXiv:2201.05131. Recipe "linear" is the older form with a linear layer, which CompRess
(arXiv:2010.14713, table 1) and others compare with.

    s = projector(student(x)),  t = teacher(x), the same weak view; rows normalised
    loss = mean_i  || s_i - t_i ||^2  =  mean_i  2 - 2 cos(s_i, t_i)

There is no state besides the weights. The deep projector is thrown away; that the features before it are better for
being farther from the teacher's is the paper's finding.

Differs: the published projector has no batch norm and no ReLU after its second layer; here every hidden layer has
both, as the paper draws it. Its several teachers have a projector each and the mean of their losses; here several
teachers answer side by side through one projector.

Cost: one pass of the teacher and one of the student; the projector has about 5 D^2 + 2 D E weights.
Choose it first: it has nothing to tune, and every other distiller should beat it before it is believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attar.data.images import ImageSpec
from attar.losses import byol_regression
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class RegressionRecipe(Recipe):
    """SimReg's own settings. Defaults are those of the published code on ImageNet."""

    projector_layers: int = 4  # widths D, 2D, D, 2D, E; 1: a linear map
    teacher_output: Literal["auto", "embedding", "features"] = "features"
    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated
    crop_scale: tuple[float, float] = (0.2, 1.0)


SIMREG = RegressionRecipe(  # published code (UCDvision/simreg, main.py)
    epochs=130,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.05,
    weight_decay=1e-4,
    decay_bias_and_norm=True,
)
RECIPES = {
    "simreg": SIMREG,
    "linear": replace(SIMREG, projector_layers=1),  # as "simreg", with the one layer of CompRess' baseline
    "small": replace(SIMREG, base_lr=0.2, weight_decay=5e-4),  # 32 px: ours
}


def views(recipe: RegressionRecipe, image: ImageSpec) -> MakeOneView:
    """One weak view for both networks (section 4: better than strong ones)."""
    return MakeOneView(Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0))


class Regression(Method):
    """See the module's docstring. B images, D student's features, E teacher's."""

    needs_teacher = True
    recipe: RegressionRecipe
    projector: MLP

    def __init__(self, recipe: RegressionRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("regression", backbone)
        self.backbone = backbone
        width = backbone.num_features
        hidden = [width if i % 2 else 2 * width for i in range(recipe.projector_layers - 1)]
        self.projector = MLP([width, *hidden, teacher.num_features_out])
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        s = self.projector(self.backbone(batch.images))  # (B, E)
        t = self._teacher[0](batch.images, batch.index, self.image, view=progress.epoch)  # (B, E)
        loss = byol_regression(s, t)
        return StepOutput(loss, {"regression": loss.detach(), "cosine": 1 - loss.detach() / 2}, s.detach(), t)


METHOD = Regression
