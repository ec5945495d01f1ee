"""Backbones: the papers' sizes, named stages, and errors that say what fits."""

import copy
import math

import pytest
import torch

from attar.errors import BackboneError
from attar.models import small_nets
from attar.models.backbones import BackboneSpec, build_backbone


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "classes"),
    [
        ("resnet20", 0.27, 10),  # He et al. 2016, table 6
        ("resnet56", 0.85, 10),
        ("resnet110", 1.73, 10),
        ("wrn_16_2", 0.70, 100),  # distillation literature, with the 100-way classifier
        ("wrn_40_2", 2.26, 100),
        ("resnet8x4", 1.23, 100),
        ("resnet8", 0.08, 100),
        ("resnet32", 0.47, 100),
        ("resnet32x4", 7.43, 100),
        ("wrn_40_1", 0.57, 100),
        ("vgg8_small", 3.97, 100),
        ("vgg13_small", 9.46, 100),
        ("mobilenetv2_small", 0.81, 100),
        ("shufflenetv1_small", 0.95, 100),
        ("shufflenetv2_small", 1.36, 100),
    ],
)
def test_sizes_are_the_published_ones(name, millions, classes):
    backbone = build_backbone(name, image_size=32)
    classifier = (backbone.num_features + 1) * classes
    assert (parameters(backbone) + classifier) / 1e6 == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        "resnet8x0.5",
        "wrn_16_1",
        "vgg8_small",
        "nin4",
        "mobilenetv2_small",
        "shufflenetv1_small",
        "shufflenetv2_small",
    ],
)
def test_own_nets_show_their_stages_and_pool_the_last(name):
    backbone = build_backbone(name, channels=1, image_size=16).eval()
    images = torch.randn(2, 1, 16, 16)
    stages = backbone.stages(images)
    assert list(stages) == list(backbone.network.body)
    last = list(stages.values())[-1]
    assert torch.allclose(last.mean(dim=(2, 3)), backbone(images), atol=1e-6)
    assert backbone(images).shape == (2, backbone.num_features)


@pytest.mark.parametrize("name", [n for n in small_nets.EXAMPLES if n != "alexnet"])
def test_every_own_net_gives_features_and_stages_in_one_pass_at_32_pixels(name):
    backbone = build_backbone(name, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    features, maps = backbone.features_and_stages(images)
    assert torch.equal(features, backbone(images))
    assert list(maps) == list(backbone.stages(images)) and all(m.ndim == 4 for m in maps.values())
    sizes = [m.shape[2] for m in maps.values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 2, "a picture remains to the end"


def test_shuffling_mixes_the_groups():
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert small_nets._shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    unit = small_nets.ShuffleUnitV2(8, 8, 1).eval()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x)[:, ::2], x[:, :4]), "half of the channels pass"


def test_mobilenet_takes_a_width():
    assert build_backbone("mobilenetv2_smallx1", image_size=32).num_features == 1280
    widths = [build_backbone(n, image_size=32).stages(torch.zeros(1, 3, 32, 32))["stage2"].shape[1] for n in (
        "mobilenetv2_small", "mobilenetv2_smallx0.5", "mobilenetv2_smallx1")]  # fmt: skip
    assert widths == [16, 16, 32]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "regnety_002", "convnext_atto"])
def test_timm_convnets_show_maps_that_shrink(name):
    backbone = build_backbone(name, channels=5, image_size=64).eval()
    maps = list(backbone.stages(torch.randn(2, 5, 64, 64)).values())
    assert len(maps) >= 4 and all(m.ndim == 4 for m in maps)
    assert [m.shape[-1] for m in maps] == sorted((m.shape[-1] for m in maps), reverse=True)


def test_a_vit_takes_crops_of_another_size():
    backbone = build_backbone("vit_tiny_patch16_224", image_size=64).eval()
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 192)
    assert all(m.shape[0] == 2 for m in backbone.stages(torch.randn(2, 3, 64, 64)).values())


@pytest.mark.parametrize(
    ("own", "timms"), [("vit_tiny_p16", "vit_tiny_patch16_224"), ("vit_small_p16", "vit_small_patch16_224")]
)
def test_small_vits_have_timms_weights(own, timms):
    shapes = [
        {k: v.shape for k, v in build_backbone(name, image_size=32).timm_state_dict().items()} for name in (own, timms)
    ]
    assert shapes[0] == shapes[1]


def test_registers_have_no_position():
    network = build_backbone("vit_micro_p8_reg4", image_size=32).network
    assert network.pos_embed.shape == (1, 16, 128)
    with torch.no_grad():
        network.reg_token.normal_()
    tokens = network._pos_embed(network.patch_embed(torch.randn(2, 3, 32, 32)))
    assert tokens.shape == (2, 1 + 4 + 16, 128)
    assert torch.equal(tokens[:, 1:5], network.reg_token.expand(2, -1, -1))


def test_small_vits_have_any_patch_registers_and_mean_pooling():
    backbone = build_backbone("vit_micro_p8_reg2_gap", channels=1, image_size=24, drop_path=0.1).eval()
    network = backbone.network
    assert network.patch_embed.patch_size == (8, 8) and network.reg_token.shape == (1, 2, 128)
    assert network.cls_token is None and len(network.blocks) == 6 and backbone.num_features == 128
    images = torch.randn(2, 1, 24, 24)
    torch.testing.assert_close(backbone(images), network.forward_features(images)[:, 2:].mean(1))


def test_the_small_stem_keeps_the_resolution():
    small = build_backbone("resnet18", image_size=32, stem="small")
    assert next(iter(small.stages(torch.randn(2, 3, 32, 32)).values())).shape[-1] == 32
    assert (
        next(iter(build_backbone("resnet18", image_size=32).stages(torch.randn(2, 3, 32, 32)).values())).shape[-1] == 16
    )


def test_the_same_generator_state_gives_the_same_weights():
    def weights():
        torch.manual_seed(3)
        return torch.cat([p.flatten() for p in build_backbone("resnet8x0.5", image_size=16).parameters()])

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("resnet19", {}), r"unknown backbone 'resnet19'\. Did you mean"),
        (("alexnet", {"image_size": 16}), r"cannot take images of 16 x 16 pixels.*it needs at least 64"),
        (("vit_tiny_patch16_224", {"stem": "small", "image_size": 32}), "small is defined for ResNets"),
        (("resnet20", {"stem": "small"}), "takes no stem=small"),
        (("resnet20", {"pretrained": True}), "takes no pretrained"),
        (("vit_tiny_p5", {}), "patches of 5 x 5 pixels; 32 is not a multiple of 5. Use --image-size 30 or 35"),
        (("vit_tiny_p4", {"stem": "small"}), "takes no stem=small"),
        (("resnet18", {"stem": "tiny"}), "accepted: standard, small"),
    ],
)
def test_what_cannot_be_built_is_explained(arguments, text):
    name, options = arguments
    with pytest.raises(BackboneError, match=text):
        build_backbone(name, **{"image_size": 32, **options})


def test_spec_round_trip():
    spec = build_backbone("resnet8", channels=1, image_size=16).spec
    assert BackboneSpec.from_json(spec.to_json()) == spec


def test_hog_sees_edges_only():
    hog = build_backbone("hog", channels=1, image_size=32)
    flat = torch.full((1, 1, 32, 32), 0.4)
    assert hog(flat).abs().max() == 0
    edge = flat.clone()
    edge[..., 16:] = 0.9
    cells = hog.stages(edge)["cells"][0]  # (9, H, W): a vertical edge has a horizontal gradient, between bins 0 and 8
    assert cells[[0, 8]].sum() == pytest.approx(cells.sum().item()) and cells.sum() > 0
    noise = torch.rand(2, 1, 32, 32)
    assert torch.allclose(hog(noise), hog(noise + 0.3), atol=1e-5)
    assert torch.allclose(hog(noise), hog(noise * 3), atol=1e-4)


def test_hog_agrees_with_scikit_image():
    from skimage.feature import hog as reference

    image = torch.nn.functional.interpolate(
        torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), size=64, mode="bicubic"
    )
    ours = build_backbone("hog", channels=1, image_size=64).stages(image)["blocks"][0]  # (36, 7, 7)
    theirs = torch.from_numpy(reference(image[0, 0].numpy(), cells_per_block=(2, 2), feature_vector=False)).float()
    theirs = theirs.permute(2, 3, 4, 0, 1).reshape(36, 7, 7)
    # scikit-image has no interpolation between bins: the codes are alike, not equal; with centres at 0, 20, … 0.94
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.98


def test_centres_of_hogs_bins_are_at_10_30_and_so_on_degrees():
    place = torch.arange(32.0)
    for number in range(9):
        angle = torch.tensor(math.radians(10 + 20 * number))
        ramp = angle.cos() * place + angle.sin() * place[:, None]  # its gradient has this angle everywhere
        cells = build_backbone("hog", channels=1, image_size=32).stages(ramp[None, None])["cells"][0, :, 1:-1, 1:-1]
        assert (cells[number] / cells.sum(dim=0)).min() > 0.999


def test_pixels_are_the_averaged_image():
    pixels = build_backbone("pixels", channels=3, image_size=32)
    image = torch.rand(2, 3, 32, 32)
    assert torch.allclose(pixels(image), torch.nn.functional.avg_pool2d(image, 2).flatten(1))


@pytest.mark.parametrize("name, width", [("lab_resnet8", 128), ("lab_resnet18", 1024)])
def test_a_lab_network_is_two_networks_seen_as_one(name, width):
    backbone = build_backbone(name, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    features = backbone(images)
    assert features.shape == (2, width) and backbone.num_features == width
    light, colour = backbone.network.split(images)
    assert torch.equal(features, torch.cat([backbone.network.lightness(light), backbone.network.colour(colour)], dim=1))
    last = list(backbone.stages(images).values())[-1]
    assert torch.allclose(last.mean(dim=(2, 3)), features, atol=1e-5)


def test_a_lab_network_keeps_the_normalisation_with_its_weights():
    backbone, images = build_backbone("lab_resnet8x0.5", image_size=16).eval(), torch.rand(2, 3, 16, 16)
    expected = backbone((images - backbone.network.mean) / backbone.network.std)
    backbone.network.expect((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    assert torch.allclose(backbone((images - mean) / std), expected, atol=1e-4)
    again = build_backbone("lab_resnet8x0.5", image_size=16).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.network.mean, mean)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "nin4", "resnet18", "mobilenetv3_small_100", "convnext_atto", "efficientnet_b0"]
)
def test_features_and_their_map_come_from_one_pass(name):
    backbone, images = build_backbone(name, image_size=64).eval(), torch.randn(2, 3, 64, 64)
    features, feature_map = backbone.features_and_map(images)
    assert torch.equal(features, backbone(images))
    assert feature_map.ndim == 4 and feature_map.shape[-1] >= 2


def test_handcrafted_features_have_no_map():
    with pytest.raises(BackboneError, match="hog shows no map"):
        build_backbone("hog", image_size=32).features_and_map(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["resnet8x0.5", "resnet10t", "regnety_002", "vit_micro_p8"])
def test_recomputed_activations_give_the_same_gradients(name):
    torch.manual_seed(0)
    plain = build_backbone(name, image_size=32).train()
    again = copy.deepcopy(plain)
    again.checkpoint_activations()
    images = torch.randn(4, 3, 32, 32)
    saved: list[int] = []
    for network in (plain, again):
        count = 0

        def keep(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(images).square().sum()
        saved.append(count)
        loss.backward()
    for (key, one), two in zip(plain.named_parameters(), again.parameters()):
        torch.testing.assert_close(two.grad, one.grad, msg=lambda m, key=key: f"{key}: {m}")
    assert saved[1] < 0.7 * saved[0], "less is kept"


def test_a_network_without_blocks_cannot_recompute():
    with pytest.raises(BackboneError, match="hog cannot recompute its activations"):
        build_backbone("hog", image_size=32).checkpoint_activations()
