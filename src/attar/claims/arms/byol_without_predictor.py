"""BYOL whose predictor is the identity (Grill et al. 2020, arXiv:2006.07733, table 5b)."""

from __future__ import annotations

from torch import nn

from attar.methods.base import Setup
from attar.methods.siamese.byol import BYOL, RECIPES, BYOLRecipe, views
from attar.models.backbones import Backbone

__all__ = ["METHOD", "RECIPES", "views"]


class BYOLWithoutPredictor(BYOL):
    """The student's embedding itself must match the teacher's."""

    def __init__(self, recipe: BYOLRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe, backbone, setup)
        self.predictor = nn.Identity()  # type: ignore[assignment]


METHOD = BYOLWithoutPredictor
