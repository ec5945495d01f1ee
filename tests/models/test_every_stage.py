"""Features out of every stage: the maxima of each map, by a name, for convnets; every weight gets a gradient."""

import pytest
import torch

from attar.errors import BackboneError
from attar.models.backbones import build_backbone, check_name
from attar.models.saved import load_backbone, timm_image

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "stem"), [("resnet8", "standard"), ("resnet18", "small"), ("mobilenetv3_small_100", "standard")]
)
def test_features_are_the_largest_values_of_each_map_and_every_weight_gets_a_gradient(name, stem):
    torch.manual_seed(0)
    plain = build_backbone(name, image_size=32, stem=stem)
    read = build_backbone(f"stages_{name}", image_size=32, stem=stem)
    read.network.whole.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        maps = plain.eval().stages(IMAGES)
    expected = [float(m[1, c].max()) for m in maps.values() for c in range(m.shape[1])]
    features = read.eval()(IMAGES)
    assert features.shape == (2, read.num_features) == (2, len(expected))
    torch.testing.assert_close(features[1], torch.tensor(expected))
    assert list(read.stages(IMAGES)) == list(maps)
    torch.testing.assert_close(read.features_and_map(IMAGES)[1], list(maps.values())[-1])
    read.train()(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in read.parameters())


def test_it_is_a_backbone_by_name():
    torch.manual_seed(0)
    first, again = (build_backbone("stages_exit2_resnet20x0.5", channels=1, image_size=32) for _ in range(2))
    assert first.num_features == 8 + 8 + 16  # stem, stage1, stage2
    again.load_state_dict(first.state_dict())
    torch.testing.assert_close(again.eval()(IMAGES[:, :1]), first.eval()(IMAGES[:, :1]))


def test_refusals():
    for name in ("vit_micro_p8", "hog"):
        with pytest.raises(
            BackboneError, match=f"stages_{name}: {name} has no maps that shrink on the way. Take a convnet"
        ):
            build_backbone(f"stages_{name}", image_size=32)
    with pytest.raises(BackboneError, match="'resnet_8'"):
        check_name("stages_resnet_8")


def test_published_weights_come_with_what_they_were_trained_on():
    plain, read = (build_backbone(name, image_size=64) for name in ("resnet18", "stages_resnet18"))
    assert timm_image(read, 64) == timm_image(plain, 64)
    with pytest.raises(BackboneError, match="lab_resnet18 has no published weights of its own"):
        timm_image(build_backbone("lab_resnet18", image_size=64), 64)
    with pytest.raises(BackboneError, match="stages_resnet8 has no published weights; as a teacher"):
        load_backbone("stages_resnet8")


def test_its_name_comes_first():
    check_name("stages_lab_resnet8")
    with pytest.raises(BackboneError, match="stages_ stands first in a name"):
        check_name("lab_stages_resnet8")
