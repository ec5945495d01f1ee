"""Crops of several sizes, as DINO, SwAV, DeepCluster v2 and LeJEPA take them: their sizes, and a pass for each size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from attar.data.images import ImageSpec
from attar.models.backbones import Backbone
from attar.models.tokens import patch_size

_PATCH = 16  # local sizes are multiples of it, so that most ViTs can cut them


def local_view_size(image_size: int, share: float, patch_size: int = 1) -> int:
    """Side of a local view in pixels: about this share of the image's side, in whole patches.

    >>> local_view_size(224, 96 / 224), local_view_size(32, 96 / 224), local_view_size(224, 96 / 224, patch_size=14)
    (96, 16, 98)
    """
    step = _PATCH if _PATCH % patch_size == 0 else patch_size
    return max(round(image_size * share / step), 1) * step


def require_local_size(backbone: Backbone, image: ImageSpec, num_local_views: int, share: float) -> None:
    """Does this network take local views of this share of the image's side?

    Raises:
        BackboneError: if not, naming the setting.
    """
    if num_local_views:
        backbone.require_size(local_view_size(image.size, share, patch_size(backbone)), setting="local_size")


def features_of_crops(backbone: Backbone, crops: Sequence[Tensor]) -> Tensor:
    """Features (VB, D) of V crops (B, C, h, w) in their order; neighbours of equal size go through in one pass."""
    same_size = [list(views) for _, views in groupby(crops, key=lambda view: view.shape[-1])]
    return torch.cat([backbone(torch.cat(views)) for views in same_size])
