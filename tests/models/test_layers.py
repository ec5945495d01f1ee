from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError
from attar.models.backbones import build_backbone
from attar.models.layers import LayerFeatures, pooled, side_for


def test_pooling_is_the_mean_of_each_cell():
    feature_map = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled(feature_map, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert pooled(feature_map, 1).tolist() == [[7.5]]
    assert torch.equal(pooled(feature_map, 7), feature_map.flatten(1)), "a small map stays as it is"


def test_tokens_are_laid_out_in_reading_order_or_averaged():
    feature_map = torch.randn(2, 3, 4, 4)
    tokens = feature_map.flatten(2).transpose(1, 2)
    assert torch.equal(pooled(tokens, 2), pooled(feature_map, 2))
    with_class_token = torch.cat([torch.zeros(2, 1, 3), tokens], dim=1)
    torch.testing.assert_close(pooled(with_class_token, 2), tokens.sum(dim=1) / 17)


@pytest.mark.parametrize(("channels", "side"), [(96, 10), (256, 6), (384, 5), (9000, 1), (20_000, 1)])
def test_the_grids_of_alexnet_are_those_of_the_paper(channels, side):
    assert side_for(torch.zeros(1, channels, 13, 13), 9000) == side
    assert side_for(torch.zeros(1, 49, channels), 9000) == side


@pytest.mark.parametrize(
    ("name", "size", "layers", "widths"),
    [
        ("alexnet", 224, ["conv1", "conv2", "conv3", "conv4", "conv5"], [9600, 9216, 9600, 9600, 9216]),
        ("vgg8_small", 32, [f"stage{i}" for i in range(1, 6)], [9216, 128 * 64, 256 * 36, 512 * 16, 512 * 16]),
        ("resnet8", 32, ["stem", "stage1", "stage2", "stage3"], [16 * 576, 16 * 576, 32 * 256, 64 * 64]),
        ("vit_micro_p8", 32, [f"stage{i}" for i in range(1, 7)], [128 * 16] * 6),
        ("hog", 32, ["cells", "blocks"], [9 * 64, 36 * 49]),
    ],
)
def test_layers_of_all_families(name, size, layers, widths):
    backbone = build_backbone(name, image_size=size).train()
    features = LayerFeatures(backbone, values=9000)
    assert (features.layers, features.widths, features.num_features) == (layers, widths, sum(widths))
    assert backbone.training
    assert features.eval()(torch.randn(2, 3, size, size)).shape == (2, sum(widths))


def test_some_layers_are_the_columns_of_all():
    backbone = build_backbone("resnet8", image_size=16).eval()
    images = torch.randn(2, 3, 16, 16)
    every, one = LayerFeatures(backbone, side=2), LayerFeatures(backbone, ["stage2"], side=2)
    assert torch.equal(every(images)[:, 128:256], one(images))
    last = LayerFeatures(backbone, ["stage3"], side=1)
    torch.testing.assert_close(last(images), backbone(images))
    with pytest.raises(BackboneError, match=r"resnet8: unknown layer 'stage4'. Did you mean stage1\?"):
        LayerFeatures(backbone, ["stage4"], side=1)
