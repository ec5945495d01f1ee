"""BYOL whose target is the student itself, and passes its gradient (what SimSiam's section 4.1 asks of BYOL)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.methods.base import Progress, StepOutput
from attar.methods.siamese.byol import BYOL, RECIPES, views
from attar.views.batches import TwoViews

__all__ = ["METHOD", "RECIPES", "views"]


class BYOLWithoutStopGradient(BYOL):
    """The same loss without a teacher, not detached."""

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)
        one_two = _distance(self.predictor(z1), z2)
        two_one = _distance(self.predictor(z2), z1)
        metrics = {"view_1_to_2": one_two.detach(), "view_2_to_1": two_one.detach()}
        return StepOutput(one_two + two_one, metrics, z1.detach(), z2.detach())


def _distance(p: Tensor, z: Tensor) -> Tensor:
    return (2 - 2 * F.cosine_similarity(p.float(), z.float(), dim=1)).mean()


METHOD = BYOLWithoutStopGradient
