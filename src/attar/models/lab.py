"""LabHalves: one network made of two, of which one sees the lightness of an image and the other its colour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD
from attar.views.colour import rgb_to_lab

PREFIX = "lab_"  # lab_resnet18: two ResNet-18

# Middle and half the width of the range of L, a and b over all sRGB colours.
_MIDDLE = (50.0, 6.025, -6.689)
_HALF_RANGE = (50.0, 92.208, 101.168)


class LabHalves(nn.Module):
    """RGB images (B, 3, H, W), normalised as usual -> features of the L half, then of the ab half, (B, 2D).

    The first half of the features depends on L alone, the second on a and b alone.
    mean, std: of the images' normalisation, undone before the conversion. They are saved with the weights; ImageNet's
    until `expect` says otherwise.
    """

    mean: Tensor
    std: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self, lightness: nn.Module, colour: nn.Module):
        super().__init__()
        self.lightness, self.colour = lightness, colour
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        for name, values in (("middle", _MIDDLE), ("half_range", _HALF_RANGE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def expect(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Inputs will come as (pixels - mean) / std."""
        self.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(std).view(1, 3, 1, 1))

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """L (B, 1, H, W) and ab (B, 2, H, W), both within [-1, 1]."""
        lab = (rgb_to_lab(images * self.std + self.mean) - self.middle) / self.half_range
        return lab[:, :1], lab[:, 1:]

    def forward(self, images: Tensor) -> Tensor:
        light, colour = self.split(images)
        return torch.cat([self.lightness(light), self.colour(colour)], dim=1)

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        """Both halves' maps by name, joined along the channels (of tokens: along the features)."""
        light, colour = self.split(images)
        of_light, of_colour = self.lightness.stages(light), self.colour.stages(colour)  # type: ignore[operator]
        return {k: torch.cat([m, of_colour[k]], dim=1 if m.ndim == 4 else -1) for k, m in of_light.items()}
