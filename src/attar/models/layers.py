"""Intermediate maps as features: tokens laid out as a map, a map average-pooled to a grid and flattened."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import BackboneError, unknown_name
from attar.models.backbones import Backbone


def pooled(feature_map: Tensor, side: int) -> Tensor:
    """Averages over a grid of at most side x side cells, flattened.

    Args:
        feature_map: (B, C, H, W), or tokens (B, N, C). Tokens that fill no square (there are others beside those of
            the patches) have no places, and are averaged.

    Returns:
        (B, C * min(H, side) * min(W, side)); a map that is no larger than the grid stays as it is.
    """
    feature_map = laid_out(feature_map)
    height, width = feature_map.shape[2:]
    return F.adaptive_avg_pool2d(feature_map, (min(height, side), min(width, side))).flatten(1)


def laid_out(feature_map: Tensor) -> Tensor:
    """A map (B, C, H, W) as it is; tokens (B, N, C) as one, of a single place where they fill no square."""
    if feature_map.ndim != 3:
        return feature_map
    tokens = feature_map.transpose(1, 2)  # (B, C, N)
    rows = math.isqrt(tokens.shape[2])
    square = rows * rows == tokens.shape[2]
    return tokens.unflatten(2, (rows, rows)) if square else tokens.mean(dim=2)[..., None, None]


def side_for(feature_map: Tensor, values: int) -> int:
    """The side of the grid at which a map has about so many values.

    AlexNet's widths 96, 256, 384, 384, 256 get 10, 6, 5, 5, 6 at 9,000 values, as in Zhang et al. 2016.
    """
    channels = feature_map.shape[1] if feature_map.ndim == 4 else feature_map.shape[2]
    return max(round(math.sqrt(values / channels)), 1)


class LayerFeatures(nn.Module):
    """A backbone that answers with some of its maps, pooled, one after another: (B, sum of widths).

    Args:
        layers: names out of `backbone.stages`; None for all of them, from the input to the output.
        side: of the grid; or values: about how many a layer keeps.

    Raises:
        BackboneError: a layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[str] | None = None,
        *,
        side: int | None = None,
        values: int | None = None,
    ):
        super().__init__()
        self.backbone, self.side, self.values = backbone, side, values
        maps = backbone.stages_of_blank()
        if not maps:
            raise BackboneError(f"{backbone.spec.name} shows no maps, so there are no layers to look at.")
        self.layers = list(maps if layers is None else layers)
        for layer in self.layers:
            if layer not in maps:
                raise BackboneError(f"{backbone.spec.name}: " + unknown_name("layer", layer, maps))
        self.widths = [self._pooled(maps[layer]).shape[1] for layer in self.layers]
        self.num_features = sum(self.widths)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone.stages(images)
        return torch.cat([self._pooled(maps[layer]) for layer in self.layers], dim=1)

    def _pooled(self, feature_map: Tensor) -> Tensor:
        return pooled(feature_map, self.side or side_for(feature_map, self.values or 1))
