"""SimSiam whose targets pass their gradient (Chen and He 2021, arXiv:2011.10566, section 4.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.methods.base import Progress, StepOutput
from attar.methods.siamese.simsiam import RECIPES, SimSiam, views
from attar.views.batches import TwoViews

__all__ = ["METHOD", "RECIPES", "views"]


class SimSiamWithoutStopGradient(SimSiam):
    """The same loss, not detached."""

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)
        loss = (_distance(self.predictor(z1), z2) + _distance(self.predictor(z2), z1)) / 2
        return StepOutput(loss, {"negative_cosine": loss.detach()}, z1.detach(), z2.detach())


def _distance(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p.float(), z.float(), dim=1).mean()


METHOD = SimSiamWithoutStopGradient
