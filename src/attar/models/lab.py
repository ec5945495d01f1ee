"""Networks that take RGB images as any other does, and see them in Lab.

LabParts        one network made of two: one sees the lightness of an image, the other its colour; or of three, one for
                each of L, a and b (CMC)
LightnessOnly   one network that sees the lightness alone, one channel (colorization)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD
from attar.views.colour import rgb_to_lab

# The parts of an image that networks see, with their channels, by the prefix of a name: lab_resnet18 is two ResNet-18
PARTS = {"lab_": {"lightness": 1, "colour": 2}, "lab3_": {"lightness": 1, "green_red": 1, "blue_yellow": 1}}
LIGHTNESS_PREFIX = "lightness_"  # lightness_resnet18: one ResNet-18 of one channel

# Middle and half the width of the range of L, a and b over all sRGB colours.
_MIDDLE = (50.0, 6.025, -6.689)
_HALF_RANGE = (50.0, 92.208, 101.168)


class SeesLab(nn.Module):
    """What the networks below share: the normalisation of their inputs, undone before the conversion to Lab.

    mean, std: of the images' normalisation. They are saved with the weights; ImageNet's until `expect` says otherwise.
    """

    mean: Tensor
    std: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        for name, values in (("middle", _MIDDLE), ("half_range", _HALF_RANGE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def expect(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Inputs will come as (pixels - mean) / std."""
        self.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(std).view(1, 3, 1, 1))

    def lab(self, images: Tensor) -> Tensor:
        """L in [0, 100], a and b of normalised RGB images: (B, 3, H, W), float32."""
        return rgb_to_lab(images * self.std + self.mean)

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """L (B, 1, H, W) and ab (B, 2, H, W), both within [-1, 1]."""
        lab = (self.lab(images) - self.middle) / self.half_range
        return lab[:, :1], lab[:, 1:]


class LabParts(SeesLab):
    """RGB images (B, 3, H, W), normalised as usual -> features of V parts, one after the other, (B, V D).

    Each D of the features depend on their own part of Lab alone.

    Args:
        parts: the networks by name, in the order of L, a, b. channels: how many of these each one sees.
    """

    def __init__(self, parts: Mapping[str, nn.Module], channels: Sequence[int]):
        super().__init__()
        self.names, self.channels = tuple(parts), tuple(channels)
        for name, part in parts.items():
            self.add_module(name, part)

    def seen(self, images: Tensor) -> list[tuple[Any, Tensor]]:
        """Each network with what it sees: maps within [-1, 1]."""
        maps = torch.cat(self.split(images), dim=1).split(self.channels, dim=1)
        return [(getattr(self, name), part) for name, part in zip(self.names, maps)]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([network(part) for network, part in self.seen(images)], dim=1)

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        """All parts' maps by name, joined along the channels (of tokens: along the features)."""
        maps = [network.stages(part) for network, part in self.seen(images)]
        return {k: torch.cat([of[k] for of in maps], dim=1 if m.ndim == 4 else -1) for k, m in maps[0].items()}


class LightnessOnly(SeesLab):
    """RGB images (B, 3, H, W), normalised as usual -> features (B, D) of a network that sees L alone."""

    def __init__(self, lightness: nn.Module):
        super().__init__()
        self.lightness: Any = lightness

    def light(self, images: Tensor) -> Tensor:
        """What the network sees: L within [-1, 1], (B, 1, H, W)."""
        return self.split(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.lightness(self.light(images))

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        return self.lightness.stages(self.light(images))

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.lightness.features_and_map(self.light(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.lightness.network.set_grad_checkpointing(enable)


def prefix_of(name: str) -> str:
    """lab_, lab3_, lightness_, or "" for the name of an ordinary network."""
    return next((prefix for prefix in (*PARTS, LIGHTNESS_PREFIX) if name.startswith(prefix)), "")
