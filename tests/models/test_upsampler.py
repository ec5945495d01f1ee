"""Upsampler: as many doublings as it takes, and which networks have a map to begin with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.errors import BackboneError, RecipeError
from attar.models.backbones import build_backbone
from attar.models.upsampler import Upsampler, map_of


@pytest.mark.parametrize(
    "side, wanted, made, widths", [(7, 56, 56, [64, 32, 24, 24]), (8, 8, 8, [64]), (3, 25, 48, [64, 32, 24, 24, 24])]
)
def test_it_doubles_until_the_side_is_reached(side, wanted, made, widths):
    up = Upsampler(5, 11, side=side, wanted_side=wanted, width=64, smallest_width=24)
    assert up.side == made
    assert up(torch.randn(2, 5, side, side)).shape == (2, 11, made, made)
    assert [m.num_features for m in up if isinstance(m, nn.BatchNorm2d)] == widths


def test_the_map_of_a_network_is_what_its_features_are_pooled_from():
    for name, expected in (("resnet8", (64, 8)), ("lightness_resnet8", (64, 8)), ("resnet18", (512, 1))):
        backbone = build_backbone(name, image_size=32)
        assert map_of(backbone, "test") == expected and backbone.training
    with pytest.raises(RecipeError, match="test: vit_micro_p8 makes"):
        map_of(build_backbone("vit_micro_p8", image_size=32), "test")
    with pytest.raises(BackboneError, match="hog shows no map"):
        map_of(build_backbone("hog", image_size=32), "test")
