"""MoCo v3 on a transformer that is not told where its patches are (Chen et al. 2021, arXiv:2104.02057, table 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attar.methods.base import Setup
from attar.methods.contrastive.moco_v3 import RECIPES, MoCoV3, MoCoV3Recipe, views
from attar.models.backbones import Backbone

__all__ = ["METHOD", "RECIPES", "views"]


class MoCoV3WithoutPositions(MoCoV3):
    """Position embeddings are zero, and stay so."""

    def __init__(self, recipe: MoCoV3Recipe, backbone: Backbone, setup: Setup):
        network: Any = backbone.network
        positions: nn.Parameter = network.pos_embed
        with torch.no_grad():
            positions.zero_()
        positions.requires_grad_(False)
        super().__init__(recipe, backbone, setup)  # its teacher is a copy, and so without positions too


METHOD = MoCoV3WithoutPositions
