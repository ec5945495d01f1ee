"""SimCLR whose loss is on the features themselves (Chen et al. 2020, arXiv:2002.05709, section 4.2, figure 8)."""

from __future__ import annotations

from torch import nn

from attar.methods.base import Setup
from attar.methods.contrastive.simclr import RECIPES, SimCLR, SimCLRRecipe, views
from attar.models.backbones import Backbone

__all__ = ["METHOD", "RECIPES", "views"]


class SimCLRWithoutHead(SimCLR):
    """z = h."""

    def __init__(self, recipe: SimCLRRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe, backbone, setup)
        self.projector = nn.Identity()  # type: ignore[assignment]


METHOD = SimCLRWithoutHead
