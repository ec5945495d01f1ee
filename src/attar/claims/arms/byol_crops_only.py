"""BYOL whose views are crops and mirror images only (Grill et al. 2020, arXiv:2006.07733, figure 3b)."""

from __future__ import annotations

from attar.data.images import ImageSpec
from attar.methods.siamese.byol import METHOD, RECIPES, BYOLRecipe
from attar.views.augmentation import Augmentation
from attar.views.makers import MakeTwoViews

__all__ = ["METHOD", "RECIPES", "views"]


def views(recipe: BYOLRecipe, image: ImageSpec) -> MakeTwoViews:
    return MakeTwoViews(
        Augmentation(image, scale=(0.08, 1.0), jitter=None, grey=0.0, blur=0.0, interpolation="bicubic")
    )
