"""BYOL without batch norm in projector and predictor: does it collapse, as was claimed of it?

The claim is from a blog post of 2020 (Fetterman and Albrecht); Richemond et al. 2020, arXiv:2010.10241, showed other
ways to train it without batch statistics.
"""

from __future__ import annotations

from attar.methods.base import Setup
from attar.methods.siamese.byol import BYOL, RECIPES, BYOLRecipe, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher

__all__ = ["METHOD", "RECIPES", "views"]


class BYOLWithoutBatchNorm(BYOL):
    """Linear, ReLU, Linear in both heads."""

    def __init__(self, recipe: BYOLRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe, backbone, setup)
        width = recipe.projector_dim
        self.projector = MLP([backbone.num_features, recipe.projector_hidden_dim, width], norm=None, final_bias=False)
        self.predictor = MLP([width, recipe.predictor_hidden_dim, width], norm=None, final_bias=False)
        self.teacher = MomentumTeacher(self.encoder)


METHOD = BYOLWithoutBatchNorm
