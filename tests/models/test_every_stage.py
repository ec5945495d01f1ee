"""Features out of every stage: the maxima of each map, by a name, for convnets; every weight gets a gradient."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from attar.errors import BackboneError, CheckpointError
from attar.models.backbones import build_backbone, check_name
from attar.models.saved import load_backbone, plain_image, save_backbone, start_from, timm_image

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
    with pytest.raises(BackboneError, match=r"'stage_resnet18'\. Did you mean stages_resnet18\?"):
        check_name("stage_resnet18")
    with pytest.raises(BackboneError, match="unknown backbone 'stages_'"):
        check_name("stages_")


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


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_it_takes_the_weights_of_the_network_it_reads(name, tmp_path):
    """From a run, from a file of published weights, and from its own export; what it cuts off is left over there."""
    torch.manual_seed(0)
    plain = build_backbone(name, image_size=32)
    (tmp_path / "run").mkdir()
    save_backbone(tmp_path / "run", plain, plain_image(32, 3), provenance={})
    torch.save(plain.timm_state_dict(), tmp_path / "weights.pth")
    with torch.no_grad():
        expected = list(plain.eval().stages(IMAGES).values())
    for init in (tmp_path / "run", f"{name}@{tmp_path}/weights.pth", f"stages_{name}@{tmp_path}/weights.pth"):
        read = build_backbone(f"stages_{name}", image_size=32)
        start_from(read, init)
        with torch.no_grad():
            maps = list(read.eval().stages(IMAGES).values())
        assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    save_file(read.timm_state_dict(), tmp_path / "exported.safetensors")
    again = load_backbone(f"stages_{name}@{tmp_path}/exported.safetensors", image_size=32)[0]
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES), read(IMAGES), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="is a resnet14, and the backbone a stages_"):
        start_from(read, f"resnet14@{tmp_path}/weights.pth")
    other = build_backbone("stages_resnet20", image_size=32)
    with pytest.raises(CheckpointError, match=f"holds a {name}, whose weights do not fit stages_resnet20"):
        start_from(other, tmp_path / "run")


@pytest.mark.parametrize(("name", "inner"), [("resnet18", "layer1"), ("resnet8", "body.stage1")])
def test_activations_can_be_computed_again_instead_of_kept(name, inner):
    torch.manual_seed(0)
    kept = build_backbone(f"stages_{name}", image_size=32).double()
    again = copy.deepcopy(kept)
    again.checkpoint_activations()
    computed = []
    again.network.whole.network.get_submodule(inner)[0].conv1.register_forward_hook(lambda *_: computed.append(1))
    for backbone in (kept, again):
        backbone(IMAGES.double()).square().sum().backward()
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert len(computed) == 2
    with pytest.raises(BackboneError, match="stages_vgg11_bn cannot recompute its activations"):
        build_backbone("stages_vgg11_bn", image_size=32).checkpoint_activations()


def test_a_last_map_of_one_pixel_is_no_reason_to_warn():
    assert build_backbone("resnet18", image_size=32).reduces_to_a_pixel(32)
    assert not build_backbone("stages_resnet18", image_size=32).reduces_to_a_pixel(32)
