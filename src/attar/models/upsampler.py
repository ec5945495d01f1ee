"""Upsampler: from a feature map back to a picture, for methods that predict pixels with a convnet."""

from __future__ import annotations

from torch import nn

from attar.errors import RecipeError
from attar.models.backbones import Backbone


class Upsampler(nn.Sequential):
    """A 3x3 convolution, then a transposed convolution for each doubling of the side, then 1x1 to the output.

    All but the last are followed by batch norm and ReLU. The side grows from `side` by doublings until it is at least
    `wanted_side` (never less than `side`); what is left to the exact size is the caller's.

    Args:
        in_dim, out_dim: channels of the map and of the output.
        width: of the first convolution. Each doubling halves it, down to no less than smallest_width.
    """

    def __init__(self, in_dim: int, out_dim: int, *, side: int, wanted_side: int, width: int, smallest_width: int):
        layers: list[nn.Module] = [nn.Conv2d(in_dim, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        while side < wanted_side:
            narrower = max(width // 2, min(smallest_width, width))
            layers.append(nn.ConvTranspose2d(width, narrower, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(narrower), nn.ReLU()]
            side, width = 2 * side, narrower
        super().__init__(*layers, nn.Conv2d(width, out_dim, 1))
        self.side = side


def map_of(backbone: Backbone, method: str) -> tuple[int, int]:
    """Channels and side of the map that a convnet's features are pooled from.

    Raises:
        RecipeError: for networks without a square map, such as vision transformers.
    """
    shape = backbone.map_shape()
    if len(shape) != 3 or shape[1] != shape[2]:
        raise RecipeError(
            f"{method}: {backbone.spec.name} makes {shape} of an image; it needs a convnet with a square map "
            "(D, H, W), such as resnet18 or resnet20. For vision transformers take mae or simmim."
        )
    return shape[0], shape[1]
