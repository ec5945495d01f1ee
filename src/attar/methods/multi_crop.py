"""Crops of several sizes, as DINO, SwAV, DeepCluster v2 and LeJEPA take them: their sizes, and a pass for each size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from attar.models.backbones import Backbone

_PATCH = 16  # local sizes are multiples of it, so that any usual ViT can cut them


def local_view_size(image_size: int, share: float) -> int:
    """Side of a local view in pixels: about this share of the image's side.

    >>> local_view_size(224, 96 / 224), local_view_size(32, 96 / 224)
    (96, 16)
    """
    return max(round(image_size * share / _PATCH), 1) * _PATCH


def features_of_crops(backbone: Backbone, crops: Sequence[Tensor]) -> Tensor:
    """Features (VB, D) of V crops (B, C, h, w) in their order; neighbours of equal size go through in one pass."""
    same_size = [list(views) for _, views in groupby(crops, key=lambda view: view.shape[-1])]
    return torch.cat([backbone(torch.cat(views)) for views in same_size])
