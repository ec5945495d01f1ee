"""MoCo v3 whose patch projection is trained like the rest (Chen et al. 2021, arXiv:2104.02057, section 4.2)."""

from __future__ import annotations

from attar.methods.base import Setup
from attar.methods.contrastive.moco_v3 import RECIPES, MoCoV3, MoCoV3Recipe, views
from attar.models.backbones import Backbone

__all__ = ["METHOD", "RECIPES", "views"]


class MoCoV3WithTrainedPatches(MoCoV3):
    """Every weight of the transformer learns."""

    def __init__(self, recipe: MoCoV3Recipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe, backbone, setup)
        backbone.requires_grad_(True)


METHOD = MoCoV3WithTrainedPatches
