"""Early exits: the same maps as the whole network, none of its later layers, and names that build them again."""

import pytest
import torch

from attar.errors import BackboneError
from attar.models.backbones import build_backbone, check_name, cut_at_exit
from attar.models.early_exit import exits_of

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("resnet8", "standard", ["stage1", "stage2"]),
        ("vgg8_small", "standard", ["stage1", "stage2", "stage3"]),
        ("resnet18", "small", ["stage1", "stage2", "stage3"]),
        ("mobilenetv3_small_100", "standard", ["stage1", "stage2", "stage3"]),
    ],
)
def test_exits_are_the_last_maps_of_each_size_and_compute_what_the_whole_network_does(name, stem, stages):
    torch.manual_seed(0)
    whole = build_backbone(name, image_size=32, stem=stem)
    exits = exits_of(whole)
    assert list(exits) == stages
    before = sum(p.numel() for p in whole.parameters())
    features, maps = whole.eval().features_and_stages(IMAGES)
    torch.testing.assert_close(features, whole(IMAGES))
    for number, (stage, branch) in enumerate(exits.items(), 1):
        cut = cut_at_exit(whole, number, branch).eval()
        expected = branch.eval()(maps[stage])
        torch.testing.assert_close(cut(IMAGES), expected)
        assert cut.num_features == whole.num_features == expected.shape[1]
        assert list(cut.stages(IMAGES)) == list(maps)[: list(maps).index(stage) + 1]
    assert sum(p.numel() for p in cut.network.network.parameters()) < before
    assert sum(p.numel() for p in whole.parameters()) == before


def test_an_exit_is_a_backbone_by_name():
    torch.manual_seed(0)
    whole = build_backbone("resnet8", image_size=32)
    cut = cut_at_exit(whole, 1)
    again = build_backbone("exit1_resnet8", image_size=32)
    again.load_state_dict(cut.state_dict())
    torch.testing.assert_close(again.eval()(IMAGES), cut.eval()(IMAGES))
    assert cut.spec == again.spec and not any("stage2" in key for key in cut.state_dict())


def test_refusals():
    with pytest.raises(BackboneError, match="exit3_resnet8: resnet8 has 2 early exits, exit1 to exit2"):
        build_backbone("exit3_resnet8", image_size=32)
    with pytest.raises(BackboneError, match="vit_micro_p8 has no early exits"):
        build_backbone("exit1_vit_micro_p8", image_size=32)
    with pytest.raises(BackboneError, match="'resnet_8'"):
        check_name("exit1_resnet_8")
