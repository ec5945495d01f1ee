"""SimSiam whose predictor is the identity (Chen and He 2021, arXiv:2011.10566, table 1a)."""

from __future__ import annotations

from torch import nn

from attar.methods.base import Setup
from attar.methods.siamese.simsiam import RECIPES, SimSiam, SimSiamRecipe, views
from attar.models.backbones import Backbone

__all__ = ["METHOD", "RECIPES", "views"]


class SimSiamWithoutPredictor(SimSiam):
    """p = z."""

    def __init__(self, recipe: SimSiamRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe, backbone, setup)
        self.predictor = nn.Identity()  # type: ignore[assignment]

    def parameter_groups(self) -> None:  # type: ignore[override]
        """The shared rule: there is no predictor to treat differently."""


METHOD = SimSiamWithoutPredictor
