"""Inpainting (context encoder): a part of the picture is cut out; say what was there. The outline of a thing that is
half hidden can only be drawn by one who knows what it is.

Pathak, Krähenbühl, Donahue, Darrell and Efros 2016, arXiv:1604.07379.

    region: the middle square of a quarter of the area, or blots of the same area at random;  hole: the region without
    a band of 7 px of 128 along its edge, which stays visible
    F(x) = decoder(channel-wise linear(map of the backbone(x with the hole filled by the mean colour)))
    L2  = mean over the region's pixels of  w (F(x) - x)^2,      w = 10 on the band, 1 in the hole
    adv = - log D(F(x)),           the fill should look real; D has no gradient from it
    D's = - log D(x) - log (1 - D(F(x))),      D tells true regions from fills; F has no gradient from it
    loss = 0.999 L2 + 0.001 adv + D's

The channel-wise linear layer carries what is known at the border into the middle: every channel of the map is fully
connected to itself, and the first convolution of the decoder mixes channels. D sees the region only, never what is
around it, or it would look at the seam. Both are trained in one step, as in the published code: D with its own loss
and its own, ten times smaller learning rate. Set adversarial_weight=0 for L2 alone: there is then no D.

There is no state besides the weights.

Section numbers except 3.3 and the supplement's are from memory.

Differs: any convnet takes the encoder's place, its map instead of a bottleneck of 4000, and the decoder doubles that
map as often as it has to. Pixels are in [-1, 1], as in the published code, whatever the network's normalisation. Its
overlap is 4 px in place of 7, which the paper has and we follow. For blots that code predicts the whole picture; here,
as in eq. 1, the region counts, and D sees only the region, with zeros around it. L2 is the mean over the region. Recipe
"random" is the paper's for learning features: blots and L2 alone, since the adversarial loss did not converge there
with AlexNet (supplement B). "small" is ours: "random" with rates that suit a few thousand steps.

Cost: one view a step and the decoder, which grows with the picture; with D about twice the decoder's share more.

Choose it when pictures are not of single things in the middle, or for what it draws; its features know texture better
than kind: judge them by a linear probe, not by neighbours. Features from blots transfer better than those from the
middle (section 3.3), whose fills look better. For transformers mae is the same idea, cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import weighted_mse
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput, above, one_of, with_own_group
from attar.models.backbones import Backbone
from attar.models.upsampler import Upsampler, map_of
from attar.views.augmentation import Augmentation
from attar.views.batches import Holed
from attar.views.masks import MakeHoled, central_square


@dataclass(frozen=True, kw_only=True)
class InpaintingRecipe(Recipe):
    """The context encoder's own settings."""

    region: Literal["central", "random"]
    region_share: float = 0.25  # of the area; section 3.3: up to a quarter
    overlap: float = 7 / 128  # width of the band as a share of the image's side; section 3.2: 7 px, of 128
    overlap_weight: float = 10.0  # published code
    reconstruction_weight: float = 0.999  # published command
    adversarial_weight: float = 0.001  # published code: what is left of 1; 0: L2 alone
    discriminator_lr_scale: float = 0.1  # published code: the context encoder's rate is ten times D's
    decoder_dim: int = 512  # published code
    discriminator_dim: int = 64  # published code
    blot_cells: int = 8  # of the noise blots are made of; published code: 0.06 of 128 px
    crop_scale: tuple[float, float]

    used_with = {
        "overlap_weight": above("overlap"),
        "discriminator_lr_scale": above("adversarial_weight"),
        "discriminator_dim": above("adversarial_weight"),
        "blot_cells": one_of("region", "random"),
    }


RECIPES = {
    "paper": InpaintingRecipe(  # published code (pathak22/context-encoder, train.lua) and command (README.md)
        epochs=500,  # published command
        batch_size=64,  # published code
        optimiser="adamw",
        base_lr=2e-3,  # published code: 10 times 2e-4
        lr_scaling="none",
        schedule="constant",
        adam_betas=(0.5, 0.999),  # published code
        region="central",
        crop_scale=(0.13, 1.0),  # published code: 128 px of 350, 0.13 of the area
    ),
    "random": InpaintingRecipe(  # section 5.2; numbers of the published code (train_random.lua)
        epochs=500,
        batch_size=64,
        optimiser="adamw",
        base_lr=2e-4,  # published code, for L2 alone
        lr_scaling="none",
        schedule="constant",
        adam_betas=(0.5, 0.999),
        region="random",
        overlap=0.0,
        reconstruction_weight=1.0,
        adversarial_weight=0.0,
        crop_scale=(0.13, 1.0),
    ),
    "small": InpaintingRecipe(  # 32 px: ours, "random" at other rates
        epochs=100,
        batch_size=128,
        optimiser="adamw",
        base_lr=2e-3,
        lr_scaling="none",
        warmup_fraction=0.05,
        weight_decay=1e-3,
        region="random",
        overlap=0.0,
        reconstruction_weight=1.0,
        adversarial_weight=0.0,
        decoder_dim=128,
        crop_scale=(0.5, 1.0),
    ),
}


def views(recipe: InpaintingRecipe, image: ImageSpec) -> MakeHoled:
    """Crop and mirror, and a hole."""
    crop = Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0)
    return MakeHoled(
        crop,
        size=image.size,
        share=recipe.region_share,
        overlap=round(recipe.overlap * image.size),
        cells=recipe.blot_cells if recipe.region == "random" else None,
    )


class ChannelwiseLinear(nn.Module):
    """Each channel of a map (B, D, H, W) fully connected to itself: D matrices of HW x HW. Section 3.1."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        places = side * side
        self.weight = nn.Parameter(torch.empty(channels, places, places).uniform_(-1, 1) / places**0.5)
        self.bias = nn.Parameter(torch.zeros(channels, places))

    def forward(self, feature_map: Tensor) -> Tensor:
        values = torch.einsum("bdn,dmn->bdm", feature_map.flatten(2), self.weight) + self.bias
        return values.view_as(feature_map)


def discriminator(channels: int, side: int, width: int) -> nn.Sequential:
    """Halves a region's side until 4 px or fewer remain, then says how real it is, (B, 1, 1, 1). DCGAN's."""
    layers: list[nn.Module] = []
    widest = 8 * width
    while side > 4:
        first = not layers
        layers.append(nn.Conv2d(channels, width, 4, 2, 1, bias=first))
        layers += [] if first else [nn.BatchNorm2d(width)]
        layers.append(nn.LeakyReLU(0.2))
        channels, side, width = width, side // 2, min(2 * width, widest)
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, side))


class Inpainting(Method):
    """See the module's docstring. B images, C channels; P side of the window that the region lies in."""

    recipe: InpaintingRecipe
    mean: Tensor
    std: Tensor

    def __init__(self, recipe: InpaintingRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        if not recipe.reconstruction_weight and not recipe.adversarial_weight:
            raise RecipeError(
                "inpainting: reconstruction_weight and adversarial_weight are both 0, so nothing would be learned; set "
                "one of them to a number above 0."
            )
        self.backbone = backbone
        size, channels = setup.image.size, setup.image.channels
        central = recipe.region == "central"
        self.window = central_square(size, recipe.region_share) if central else slice(0, size)
        self.side = self.window.stop - self.window.start  # P
        width, side = map_of(backbone, "inpainting")
        self.decoder = nn.Sequential(
            ChannelwiseLinear(width, side),
            Upsampler(width, channels, side=side, wanted_side=self.side, width=recipe.decoder_dim, smallest_width=64),
        )
        adversarial = recipe.adversarial_weight > 0
        self.discriminator = discriminator(channels, self.side, recipe.discriminator_dim) if adversarial else None
        for name, values in (("mean", setup.image.mean), ("std", setup.image.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def parameter_groups(self) -> list[dict[str, object]] | None:
        if self.discriminator is None:
            return None
        return with_own_group(self, self.discriminator, lr_scale=self.recipe.discriminator_lr_scale)

    def step(self, batch: Holed, progress: Progress) -> StepOutput:
        features, feature_map = self.backbone.features_and_map(batch.seen)
        fill = self.fill(feature_map)  # (B, C, P, P)
        true, hole, region = (x[..., self.window, self.window] for x in (self.pixels(batch.images), *_masks(batch)))
        band = region - hole
        l2 = weighted_mse(fill, true, hole + self.recipe.overlap_weight * band)
        loss = self.recipe.reconstruction_weight * l2
        metrics = {"l2": l2.detach(), "hole_rmse": weighted_mse(fill, true, hole).detach().sqrt()}
        if self.discriminator is not None:
            adversarial, told_apart, fooled = self.compete(fill * region, true * region)
            loss = loss + self.recipe.adversarial_weight * adversarial + told_apart
            metrics |= {"adversarial": adversarial.detach(), "discriminator": told_apart.detach(), "fooled": fooled}
        return StepOutput(loss, metrics, features.detach())

    def compete(self, fill: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fill's loss, without gradient for D; D's loss, without gradient for the fill; share of fills D takes for
        real."""
        assert self.discriminator is not None
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        # batch norm's statistics move in copies, or two thirds of what D is evaluated with would be of fills
        fixed |= {name: b.clone() for name, b in self.discriminator.named_buffers()}
        looks_real = functional_call(self.discriminator, fixed, (fill,)).float()
        on_true, on_fill = self.discriminator(true).float(), self.discriminator(fill.detach()).float()
        told_apart = F.softplus(-on_true).mean() + F.softplus(on_fill).mean()  # -log D, -log (1 - D) of logits
        return F.softplus(-looks_real).mean(), told_apart, (on_fill.detach() > 0).float().mean()

    def fill(self, feature_map: Tensor) -> Tensor:
        """What the network would put into the window, in [-1, 1]."""
        drawn = self.decoder(feature_map).float()
        if drawn.shape[-1] != self.side:
            drawn = F.interpolate(drawn, size=(self.side, self.side), mode="bilinear", antialias=True)
        return torch.tanh(drawn)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images in [-1, 1]."""
        return 2 * (images * self.std + self.mean) - 1

    def answers(self, batch: Holed) -> Answers:
        """The picture with its hole, filled, and whole; how far off the fill is, and whether D takes it for real."""
        fill = self.fill(self.backbone.features_and_map(batch.seen)[1])
        filled = batch.images.clone()
        filled[..., self.window, self.window] = ((fill + 1) / 2 - self.mean) / self.std
        filled = torch.where(batch.hole, filled, batch.images)
        squared = ((filled - batch.images) * self.std).square().mean(dim=1).sum(dim=(1, 2))
        off = (squared / batch.hole.sum(dim=(1, 2, 3)).clamp_min(1)).sqrt()
        said = [f"off by {255 * value:.0f} of 255" for value in off.tolist()]
        if self.discriminator is not None:
            region = batch.region[..., self.window, self.window]
            real = self.discriminator(fill * region).sigmoid().flatten().tolist()
            said = [f"{text}, {p:.0%} real" for text, p in zip(said, real)]
        return Answers({"seen": batch.seen, "filled": filled, "true": batch.images}, {"filled": said}, batch.index)


def _masks(batch: Holed) -> tuple[Tensor, Tensor]:
    return batch.hole.float(), batch.region.float()


METHOD = Inpainting
