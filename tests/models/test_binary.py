"""Binary networks: two values a channel, the gradients of the paper, real and binary twins that fit; packed files."""

from __future__ import annotations

import pytest
import torch

from attar.data.images import ImageSpec
from attar.errors import CheckpointError, RecipeError
from attar.models.backbones import build_backbone
from attar.models.binary import BinaryConv2d, BinaryUnit, scales, sign
from attar.models.packed import load_packed, pack, save_packed, unpack
from attar.models.saved import load_backbone, save_backbone, start_from

IMAGE = ImageSpec(size=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def binary_layers(network):
    return [m for m in network.modules() if isinstance(m, BinaryConv2d)]


def trained(name: str = "bnn_resnet8"):
    """A network whose norms and shifts have moved."""
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32)
    for p in backbone.parameters():
        p.data += 0.1 * torch.randn_like(p)
    backbone(torch.randn(8, 3, 32, 32))
    return backbone.eval()


def test_the_sign_of_zero_is_plus_one_and_its_gradient_a_triangle():
    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = sign(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 0, 1.5, 2, 1, 0, 0]


def test_weights_have_two_values_a_channel_and_the_mean_as_scale():
    layer = BinaryConv2d(5, 4, 3, binary_weights=True)
    effective = layer.effective_weight()
    for own, real in zip(effective, layer.weight):
        assert own.abs().unique().tolist() == [pytest.approx(real.abs().mean().item(), rel=1e-6)]
        assert torch.equal(own > 0, real >= 0)
    with torch.no_grad():
        assert torch.equal(effective, layer.effective_weight()), "the same without a gradient"
    assert torch.equal(
        BinaryConv2d(5, 4, 3, binary_weights=False).eval().effective_weight()[0, 0].sign().abs(), torch.ones(3, 3)
    )


def test_the_gradient_passes_straight_through_within_one_and_the_scale_gets_none():
    layer = BinaryConv2d(2, 3, 1, binary_weights=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -1.5], [1.0, -0.1], [2.0, 0.0]])[..., None, None])
    given = torch.arange(1.0, 7).view(3, 2, 1, 1)
    (layer.effective_weight() * given).sum().backward()
    assert layer.weight.grad.flatten().tolist() == [1, 0, 3, 4, 0, 6]


@pytest.mark.parametrize("name", ["bnn_resnet8", "bnn_resnet20x2", "reactnet_x0.25"])
def test_real_and_binary_twins_have_the_same_parameters(name):
    binary, real = (build_backbone(n, image_size=64) for n in (name, f"{name}_real"))
    assert {k: v.shape for k, v in binary.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert all(layer.binary_weights for layer in binary_layers(binary))
    assert not any(layer.binary_weights for layer in binary_layers(real))
    first = next(binary.network.body.stem.children())
    assert type(first) is torch.nn.Conv2d, "the first layer is real"


def test_reactnet_is_the_papers():
    """29.3 M parameters with a classifier of 1000 (Liu et al. 2020): 1.03 M of it."""
    backbone = build_backbone("reactnet", image_size=32)
    assert backbone.num_features == 1024
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(28.3, abs=0.1)
    assert len(binary_layers(backbone)) == 26


def test_a_unit_is_its_formula():
    """RSign, convolution with +-scale, norm, plus the pooled and doubled input, RPReLU: by loops of the definition."""
    torch.manual_seed(1)
    unit = BinaryUnit(2, 4, 3, 2, binary_weights=True).eval()
    for p in unit.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        found = unit(x)[0]
        moved = torch.where(x[0] + unit.rsign.bias.view(2, 1, 1) >= 0, 1.0, -1.0)
        padded = torch.nn.functional.pad(moved, (1, 1, 1, 1))
        before, slope, after = unit.rprelu
        for c in range(4):
            weight = unit.conv.weight[c]
            binary = weight.abs().mean() * torch.where(weight >= 0, 1.0, -1.0)
            for i in range(2):
                for j in range(2):
                    y = (binary * padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum()
                    y = y / (1 + unit.bn.eps) ** 0.5 * unit.bn.weight[c] + unit.bn.bias[c]
                    y = y + x[0, c % 2, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() + before.bias[c]
                    y = (y if y >= 0 else slope.weight[c] * y) + after.bias[c]
                    torch.testing.assert_close(found[c, i, j], y, rtol=1e-5, atol=1e-5)


def test_odd_sizes_and_other_channels_fit():
    assert build_backbone("bnn_resnet8x0.5", channels=1, image_size=27)(torch.randn(2, 1, 27, 27)).shape == (2, 32)


def test_bits_and_scales_give_the_same_weights_again():
    weight = torch.randn(3, 5, 3, 3)
    weight[0, 0, 0, 0] = 0
    bits, scale = pack(weight)
    assert bits.dtype == torch.uint8 and len(bits) == -(-weight.numel() // 8)
    again = unpack(bits, scale, weight.shape)
    assert torch.equal(again >= 0, weight >= 0)
    assert torch.equal(scales(again), scale), "a packed network must not drift when it is packed again"


def test_a_packed_file_gives_identical_features_and_is_a_thirtieth(tmp_path):
    backbone, path = trained("bnn_resnet20"), tmp_path / "student.packed.safetensors"
    full, packed = save_packed(path, backbone, IMAGE, provenance={"method": "s2bnn"})
    assert 29 < full / packed < 32
    assert full == 4 * sum(layer.weight.numel() for layer in binary_layers(backbone))
    again, image, provenance = load_backbone(path)
    assert image == IMAGE and provenance["method"] == "s2bnn" and not again.training
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), backbone(images))
    second = tmp_path / "again.safetensors"
    save_packed(second, again, image, provenance={"method": "s2bnn"})
    assert load_packed(second)[2]["sha256"] == provenance["sha256"]


def test_a_damaged_or_another_file_is_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    save_packed(path, trained(), IMAGE, provenance={})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its digest differs"):
        load_packed(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_packed(path)
    save_backbone(tmp_path, build_backbone("resnet8", image_size=32), IMAGE, provenance={})
    with pytest.raises(CheckpointError, match="is no packed network"):
        load_backbone(tmp_path / "backbone.safetensors")


@pytest.mark.parametrize("name", ["resnet8", "bnn_resnet8_real"])
def test_real_weights_cannot_be_packed(tmp_path, name):
    with pytest.raises(RecipeError, match=f"{name} has none. Use safetensors or int8"):
        save_packed(tmp_path / "x", build_backbone(name, image_size=32), IMAGE, provenance={})


def test_a_run_starts_from_all_weights_of_another_or_not_at_all(tmp_path):
    first = trained("bnn_resnet8_real")
    save_backbone(tmp_path, first, IMAGE, provenance={})
    second = build_backbone("bnn_resnet8", image_size=32)
    start_from(second, tmp_path)
    for ours, theirs in zip(second.state_dict().values(), first.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match="covers"):
        start_from(build_backbone("bnn_resnet20", image_size=32), tmp_path)
    with pytest.raises(CheckpointError, match="no finished run"):
        start_from(second, tmp_path / "nowhere")


def test_a_binary_network_can_be_an_onnx_graph(tmp_path):
    """Its scales are folded into constants, whose names must not meet those of the normalisation."""
    pytest.importorskip("onnxscript")
    from attar.exporting import export_backbone

    torch.manual_seed(0)
    backbone = build_backbone("bnn_resnet8x0.5", image_size=16).eval()
    image = ImageSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    result = export_backbone(backbone, image, format="onnx", out=tmp_path / "b.onnx")
    assert max(result.parity.values()) < 1e-4
