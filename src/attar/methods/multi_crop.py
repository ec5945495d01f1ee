"""Crops of several sizes, as DINO, SwAV, DeepCluster v2 and LeJEPA take them: their sizes, and a pass for each size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.models.backbones import Backbone
from attar.models.tokens import patch_size

_STEP = 16  # local sizes of networks without patches are multiples of it, as published ones are


def local_view_size(image_size: int, share: float, patch_size: int = 1) -> int:
    """Side of a local view in pixels: about this share of the image's side, in whole patches.

    >>> local_view_size(224, 96 / 224), local_view_size(32, 96 / 224), local_view_size(224, 96 / 224, patch_size=14)
    (96, 16, 98)
    >>> local_view_size(32, 0.5, patch_size=4), local_view_size(32, 0.25, patch_size=4)
    (16, 8)
    """
    step = patch_size if patch_size > 1 else _STEP
    return max(round(image_size * share / step), 1) * step


def require_local_size(backbone: Backbone, image: ImageSpec, num_local_views: int, share: float) -> None:
    """Does this network take local views of this share of the image's side?

    Raises:
        BackboneError: if not, naming the setting.
    """
    if num_local_views:
        backbone.require_size(local_view_size(image.size, share, patch_size(backbone)), setting="local_size")


def check_local_views(method: str, recipe: Any, image_size: int, side: int) -> None:
    """Local views of this side, in pixels, are what was asked for, and smaller than global ones of image_size.

    recipe: its num_local_views and local_size count. side: of the multiples of a step, the nearest to what was asked;
    where less than 3/4 of it was asked it is the step itself, since two steps are the nearest from 3/2 on.

    Raises:
        RecipeError: they are as large as the global ones, or more than twice as large as asked.
    """
    if recipe.num_local_views == 0:
        return
    asked = image_size * recipe.local_size
    if side >= image_size:
        is_least = asked < 0.75 * side
        reason, smaller = (f", as multiples of {side}", "") if is_least else ("", "a smaller local_size, ")
        raise RecipeError(
            f"{method}: local views would have {side} px{reason}, and the global ones have {image_size}. "
            f"Give {smaller}larger images (--image-size), or -s num_local_views=0."
        )
    if side > 2 * asked:
        raise RecipeError(
            f"{method}: local_size={recipe.local_size:g} of {image_size} px would be {asked:.1f} px, and local "
            f"views are multiples of {side} px: {side} px at least. Give local_size={side / image_size:g}, or "
            "larger images (--image-size)."
        )


def features_of_crops(backbone: Backbone, crops: Sequence[Tensor]) -> Tensor:
    """Features (VB, D) of V crops (B, C, h, w) in their order; neighbours of equal size go through in one pass."""
    same_size = [list(views) for _, views in groupby(crops, key=lambda view: view.shape[-1])]
    return torch.cat([backbone(torch.cat(views)) for views in same_size])
