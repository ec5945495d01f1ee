"""Tokens of vision transformers: the whole path is the network's own, masks hide what they should, padding is inert."""

from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError, ShapeError
from attar.models.backbones import build_backbone
from attar.models.decoder import PatchDecoder, sine_cosine
from attar.models.tokens import (
    Tokens,
    check_tokens,
    class_attention,
    embed,
    indices_of,
    patch_size,
    patchify,
    pool,
    run_blocks,
    take,
    tokens_of,
)

NAMES = ["vit_micro_p8", "vit_micro_p8_reg4", "vit_micro_p8_gap", "vit_micro_p8_reg2_gap", "vit_tiny_patch16_224"]


def vit(name: str = "vit_micro_p8"):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32).eval()
    for parameter in backbone.parameters():  # class token and registers start near zero
        torch.nn.init.normal_(parameter, std=0.05) if parameter.std() < 1e-3 else None
    return backbone


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 16])
def test_without_masks_it_is_the_network_number_for_number(name, size):
    backbone, x = vit(name), images(size)
    tokens = tokens_of(backbone, x)
    assert torch.equal(pool(backbone, tokens), backbone(x))
    side = size // patch_size(backbone)
    last = list(backbone.stages(x).values())[-1]  # before the final norm, (B, D, H, W)
    normed = backbone.network.norm(last.flatten(2).transpose(1, 2))
    assert tokens.patches.shape == (2, side * side, backbone.num_features)
    torch.testing.assert_close(tokens.patches, normed)
    num_prefix = backbone.network.num_prefix_tokens
    assert tokens.prefix.shape == (2, num_prefix, backbone.num_features)


def test_a_mask_replaces_embeddings_at_the_input_and_keeps_positions():
    backbone, x = vit(), images()
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, 3] = masked[1, 7:9] = True
    token = torch.randn(1, 128)
    plain, hidden = embed(backbone, x), embed(backbone, x, masked=masked, mask_token=token)
    assert torch.equal(hidden.patches[~masked], plain.patches[~masked])
    positions = backbone.network.pos_embed[0, 1:].expand(2, -1, -1)
    torch.testing.assert_close(hidden.patches[masked], token + positions[masked])
    other = x.clone()
    other[0, :, :8, 24:] = 9.0  # the pixels of patch 3
    again = tokens_of(backbone, other, masked=masked, mask_token=token)
    assert torch.equal(again.patches, tokens_of(backbone, x, masked=masked, mask_token=token).patches)


def test_patches_are_in_reading_order_as_are_the_tokens():
    x = images()
    pixels = patchify(x, 8)
    assert pixels.shape == (2, 16, 192)
    assert torch.equal(pixels[1, 6].view(8, 8, 3), x[1, :, 8:16, 16:24].permute(1, 2, 0))
    backbone = vit()
    other = x.clone()
    other[:, :, 8:16, 16:24] = 0
    moved = (embed(backbone, other).patches - embed(backbone, x).patches).abs().sum(2) > 0
    assert moved.nonzero()[:, 1].tolist() == [6, 6]


@pytest.mark.parametrize("recomputes", [False, True])
def test_dropping_all_but_some_equals_running_on_them_alone_and_padding_is_inert(recomputes):
    backbone, x = vit(), images()
    if recomputes:
        backbone.checkpoint_activations()
    chosen = torch.zeros(2, 16, dtype=torch.bool)
    chosen[0, [1, 5, 9]] = chosen[1, 2:9] = True
    indices, valid = indices_of(chosen)
    assert indices.shape == (2, 7) and indices[0, :3].tolist() == [1, 5, 9] and valid.sum(1).tolist() == [3, 7]
    prefix, patches = embed(backbone, x)
    together = run_blocks(backbone, Tokens(prefix, take(patches, indices)), valid=valid)
    for b in range(2):
        alone = run_blocks(backbone, Tokens(prefix[b : b + 1], patches[b, chosen[b]][None]))
        torch.testing.assert_close(together.patches[b, valid[b]], alone.patches[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.cls[b], alone.cls[0], rtol=1e-4, atol=1e-5)


def test_the_decoder_ignores_order_and_padding_and_tells_places_apart():
    torch.manual_seed(0)
    decoder = PatchDecoder(6, 5, width=16, depth=2, heads=2, grid=3).eval()
    tokens = Tokens(torch.randn(1, 1, 6), torch.randn(1, 4, 6))
    seen, wanted = torch.tensor([[0, 4, 5, 8]]), torch.tensor([[1, 3]])
    said = decoder(tokens, seen, wanted)
    assert said.shape == (1, 2, 5) and (said[0, 0] - said[0, 1]).abs().max() > 1e-3
    order = torch.tensor([2, 0, 3, 1])
    shuffled = decoder(Tokens(tokens.prefix, tokens.patches[:, order]), seen[:, order], wanted.flip(1))
    torch.testing.assert_close(shuffled.flip(1), said)
    junk = Tokens(tokens.prefix, torch.cat([tokens.patches, 9 * torch.randn(1, 2, 6)], dim=1))
    padded = decoder(
        junk,
        torch.tensor([[0, 4, 5, 8, 0, 2]]),
        torch.tensor([[1, 3, 0]]),
        seen_valid=torch.tensor([[True] * 4 + [False] * 2]),
        wanted_valid=torch.tensor([[True, True, False]]),
    )
    torch.testing.assert_close(padded[:, :2], said)


def test_what_the_decoder_says_depends_on_the_places_of_the_seen_patches():
    torch.manual_seed(0)
    decoder = PatchDecoder(6, 5, width=16, depth=2, heads=2, grid=3).eval()
    tokens, wanted = Tokens(torch.randn(1, 1, 6), torch.randn(1, 4, 6)), torch.tensor([[1, 3]])
    said = decoder(tokens, torch.tensor([[0, 4, 5, 8]]), wanted)
    for elsewhere in ([2, 4, 5, 8], [4, 0, 5, 8]):  # one has moved, two have changed places
        moved = decoder(tokens, torch.tensor([elsewhere]), wanted)
        assert ((moved - said).abs().amax(dim=2) > 1e-3).all(), elsewhere


def test_sine_cosine_positions():
    positions = sine_cosine(3, 8)
    assert positions.shape == (9, 8) and positions.unique(dim=0).shape[0] == 9
    # columns of width 8: rows as sin, sin, cos, cos with frequencies 1 and 1 / 100, then columns
    expected = [torch.tensor(v).sin() for v in (2.0, 0.02)] + [torch.tensor(v).cos() for v in (2.0, 0.02)]
    torch.testing.assert_close(positions[7, :4], torch.stack(expected))  # row 2, column 1
    expected = [torch.tensor(v).sin() for v in (1.0, 0.01)] + [torch.tensor(v).cos() for v in (1.0, 0.01)]
    torch.testing.assert_close(positions[7, 4:], torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "needs", "text"),
    [
        ("resnet8", "any", "m masks the patches of a vision transformer, and resnet8 is none.*vit_tiny_p4"),
        ("resnet18", "mean", "vit_tiny_p4_gap"),
        ("deit_tiny_distilled_patch16_224", "any", "is none that it can"),
        ("vit_micro_p8_gap", "class", "trains the class token, and the features of vit_micro_p8_gap"),
        ("vit_micro_p8", "mean", "patch tokens only, and the features of vit_micro_p8 are its class token"),
    ],
)
def test_other_backbones_are_refused_with_names_of_those_that_fit(name, needs, text):
    backbone = build_backbone(name, image_size=32)
    with pytest.raises(BackboneError, match=text):
        check_tokens(backbone, "m", needs)


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(ShapeError, match=r"masked has shape \(2, 9\).*\(2, 16\) is needed"):
        embed(vit(), images(), masked=torch.zeros(2, 9, dtype=torch.bool), mask_token=torch.zeros(1, 128))


@pytest.mark.parametrize("name", ["vit_micro_p8", "vit_tiny_p8_reg4"])
def test_class_attention_is_what_the_last_block_computes(name):
    """Timm's own attention, caught at the softmax (its unfused path)."""
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32).eval()
    images = torch.randn(2, 3, 32, 24 + 8)
    attention = backbone.network.blocks[-1].attn
    attention.fused_attn = False
    caught = []
    attention.attn_drop.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    backbone(images)
    shares = class_attention(backbone, images)
    prefix = backbone.network.num_prefix_tokens
    assert shares.shape == (2, attention.num_heads, 4, 4)
    torch.testing.assert_close(shares.flatten(2), caught[0][:, :, 0, prefix:])
    assert shares.sum(dim=(2, 3)).max() < 1


def test_networks_without_a_class_token_have_no_class_attention():
    images = torch.randn(2, 3, 32, 32)
    assert class_attention(build_backbone("vit_micro_p8_gap", image_size=32), images) is None
    assert class_attention(build_backbone("resnet8", image_size=32), images) is None
