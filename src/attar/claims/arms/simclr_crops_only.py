"""SimCLR whose views are crops and mirror images only (Chen et al. 2020, arXiv:2002.05709, figure 5)."""

from __future__ import annotations

from attar.data.images import ImageSpec
from attar.methods.contrastive.simclr import METHOD, RECIPES, SimCLRRecipe
from attar.views.augmentation import Augmentation
from attar.views.makers import MakeTwoViews

__all__ = ["METHOD", "RECIPES", "views"]


def views(recipe: SimCLRRecipe, image: ImageSpec) -> MakeTwoViews:
    scale = recipe.crop_scale
    return MakeTwoViews(Augmentation(image, scale=scale, jitter=None, grey=0.0, blur=0.0, interpolation="bicubic"))
