"""Colorization: from the lightness of a photograph, say which colour each place has. To know that this is a frog, and
that frogs are green, is the surest way, so the features come to tell things apart.

Zhang, Isola and Efros 2016, arXiv:1603.08511.

    x -> Lab;  the network sees L only;  y = (a, b) of each place of the map of predictions
    bins c_q: points of a grid of 10 units on the ab plane that sRGB can show (Q = 309)
    Z_q ~ exp(-|y - c_q|^2 / (2 sigma^2)) for the 5 nearest bins, else 0                   (soft encoding)
    w_q ~ 1 / ((1 - lambda) p_q + lambda / Q),  sum_q p_q w_q = 1                          (rare colours count more)
          p: share of each bin among the training images' colours, smoothed with the same sigma
    loss = - mean over places of  w_q* sum_q Z_q log softmax(decoder(map(L)))_q,   q* the nearest bin
    colour = sum_q c_q softmax(logits / T)_q                                                (annealed mean, T = 0.38)

What is exported is `lightness_NAME` (models/lab.py): it takes RGB images like any other network, computes L at its
entrance, and passes that one channel on to NAME; so it is evaluated, distilled and deployed as it is, and gives grey
and coloured pictures of the same lightness the same features. Ask for a NAME, and lightness_NAME is built.

There is no state besides the weights, and p and w, which are counted once on at most 2000 images, before training.

Differs: the paper's network is VGG-like with dilation, and keeps an eighth of the image's side; here the map of any
convnet is doubled until it has a quarter. The mean over places instead of their sum. The published table has 313
bins; its missing four are not shown by any sRGB colour's cell, see `gamut_bins`. As in the published code, images
without any colour (|a|, |b| <= 5 everywhere) count 0; that code takes 10 neighbours where the paper has 5, which is
kept. Its Adam adds the weight decay to the gradient; ours (AdamW) decays the weights. "small" has rates of our own.

Cost: one view a step, and the decoder: Q scores for each place, at 224 px 56 x 56 of them.

Choose it for photographs when colour tells what a thing is and what you have later may be grey; it needs colour
images, and does not see colour afterwards, so it begins below a network that does. For most uses SimCLR or MoCo v2
give much better features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import colour_cross_entropy
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.colour_bins import ColourBins, gamut_bins, nearest_bins
from attar.models.lab import LIGHTNESS_PREFIX, LightnessOnly
from attar.models.upsampler import Upsampler, map_of
from attar.views.augmentation import Augmentation, CentreView
from attar.views.batches import OneView
from attar.views.colour import lab_to_rgb
from attar.views.makers import MakeOneView

GREY = 5.0  # an image whose |a| and |b| are nowhere above has no colour to learn from; published code
REDUCTION = 4  # side of an image over that of its predictions; section 2 and published code
COUNTED = 2000  # images at most that the colours are counted on


@dataclass(frozen=True, kw_only=True)
class ColorizationRecipe(Recipe):
    """Colorization's own settings."""

    neighbours: int = 5  # section 2.1
    sigma: float = 5.0  # of the soft encoding, section 2.1, and of the smoothing of p, section 2.2; in ab units
    uniform_share: float = 0.5  # lambda, section 2.2
    decoding_temperature: float = 0.38  # T, section 2.3; for pictures only
    decoder_dim: int = 256  # conv8 of the published code
    crop_scale: tuple[float, float]


RECIPES = {
    "paper": ColorizationRecipe(  # published code (richzhang/colorization, train/solver.prototxt)
        epochs=16,  # 500,000 steps of 40 on 1.28 million images
        batch_size=40,  # published code
        optimiser="adamw",
        base_lr=3e-5,  # published code
        lr_scaling="none",
        schedule="step",
        lr_drops=(225 / 500,),
        weight_decay=1e-3,
        adam_betas=(0.9, 0.99),
        crop_scale=(0.47, 1.0),  # published code: 176 px of 256, 0.47 of the area
    ),
    "small": ColorizationRecipe(  # 32 px: ours
        epochs=100,
        batch_size=128,
        optimiser="adamw",
        base_lr=2e-3,
        lr_scaling="none",
        warmup_fraction=0.05,
        weight_decay=1e-3,
        decoder_dim=128,
        crop_scale=(0.47, 1.0),
    ),
}


def views(recipe: ColorizationRecipe, image: ImageSpec) -> MakeOneView:
    """Crop and mirror; colours are the question, so they are left alone."""
    return MakeOneView(Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0))


class Colorization(Method):
    """See the module's docstring. B images, Q bins, K neighbours, h, w places."""

    recipe: ColorizationRecipe

    def __init__(self, recipe: ColorizationRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        if not isinstance(backbone.network, LightnessOnly):
            raise RecipeError(
                f"colorization: it needs a network that does not see colour, but was given {backbone.spec.name}; "
                f"build {self.backbone_name(backbone.spec.name)}."
            )
        backbone.network.expect(setup.image.mean, setup.image.std)
        self.backbone = backbone
        self.bins = ColourBins(
            count_colours(backbone.network, setup),
            neighbours=recipe.neighbours,
            sigma=recipe.sigma,
            uniform=recipe.uniform_share,
        )
        channels, side = map_of(backbone, "colorization")
        self.decoder = Upsampler(
            channels,
            len(self.bins),
            side=side,
            wanted_side=setup.image.size // REDUCTION,
            width=recipe.decoder_dim,
            smallest_width=recipe.decoder_dim // 2,
        )

    @staticmethod
    def backbone_name(asked: str) -> str:
        return asked if asked.startswith(LIGHTNESS_PREFIX) else LIGHTNESS_PREFIX + asked

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        features, feature_map = self.backbone.features_and_map(batch.images)
        logits = self.decoder(feature_map).float()  # (B, Q, h, w)
        ab = self.colours(batch.images, logits.shape[-1])
        numbers, shares = self.bins.encode(ab)  # (B, K, h, w)
        coloured = (ab.abs() > GREY).any(dim=1).any(dim=1).any(dim=1)  # (B,)
        weights = self.bins.weights[numbers[:, 0]] * coloured[:, None, None]
        loss = colour_cross_entropy(logits, numbers, shares, weights)
        with torch.no_grad():
            plain = colour_cross_entropy(logits, numbers, shares, torch.ones_like(weights))
            right = (logits.argmax(dim=1) == numbers[:, 0]).float().mean()
        metrics = {"rebalanced": loss.detach(), "cross_entropy": plain, "bin_accuracy": right}
        return StepOutput(loss, metrics, features.detach())

    @property
    def network(self) -> LightnessOnly:
        """What the backbone wraps, for its conversion to Lab."""
        return self.backbone.network  # type: ignore[return-value]

    @torch.no_grad()
    def colours(self, images: Tensor, side: int) -> Tensor:
        """The colours to predict: every fourth pixel of a and b, not their mean, which would be paler. (B, 2, h, w)"""
        return F.interpolate(self.network.lab(images)[:, 1:], size=(side, side), mode="nearest")

    def answers(self, batch: OneView) -> Answers:
        """What the network sees, the colours it gives, how likely it holds the likeliest bins, and the truth."""
        logits = self.decoder(self.backbone.features_and_map(batch.images)[1]).float()
        ab = self.bins.decode(logits, temperature=self.recipe.decoding_temperature)
        side = batch.images.shape[-1]
        light = self.network.lab(batch.images)[:, :1]
        ab = F.interpolate(ab, size=(side, side), mode="bilinear", align_corners=False)
        grey, coloured = (
            (lab_to_rgb(torch.cat([light, colour], dim=1)) - self.network.mean) / self.network.std
            for colour in (torch.zeros_like(ab), ab)
        )
        sure = logits.softmax(dim=1).amax(dim=1).mean(dim=(1, 2)).tolist()
        off = (ab - self.network.lab(batch.images)[:, 1:]).norm(dim=1).mean(dim=(1, 2)).tolist()
        said = [f"sure {p:.0%}, off by {d:.0f}" for p, d in zip(sure, off)]
        shown = {"seen": grey, "colourised": coloured, "true": batch.images}
        return Answers(shown, {"colourised": said}, batch.index)


@torch.no_grad()
def count_colours(network: LightnessOnly, setup: Setup) -> Tensor:
    """How many of the training images' pixels are nearest to each bin, (Q,); the same on every process.

    Raises:
        RecipeError: none of the images has any colour.
    """
    chosen = np.unique(np.linspace(0, len(setup.images) - 1, min(COUNTED, len(setup.images))).astype(np.int64))
    view, counts, coloured = CentreView(setup.image), torch.zeros(len(gamut_bins()), dtype=torch.long), False
    for positions in np.array_split(chosen, max(len(chosen) // 100, 1)):
        pixels = view(setup.images.batch(positions))[..., ::REDUCTION, ::REDUCTION]
        ab = network.lab(pixels)[:, 1:].movedim(1, -1).reshape(-1, 2)
        counts += torch.bincount(nearest_bins(ab), minlength=len(counts))
        coloured |= bool((ab.abs() > GREY).any())
    if not coloured:
        raise RecipeError(
            f"colorization: none of {len(chosen)} images of {setup.images.name} has any colour, so there is nothing to "
            "learn from. For grey images take rotation or inpainting."
        )
    return counts


METHOD = Colorization
