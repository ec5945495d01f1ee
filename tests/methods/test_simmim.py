"""SimMIM: mask tokens at the input, raw pixels of hidden patches only, weight decay."""

from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError
from attar.losses import masked_l1
from attar.methods.base import Setup
from attar.methods.masked.simmim import RECIPES, SimMIM, views
from attar.models.backbones import build_backbone
from attar.models.tokens import patchify, tokens_of
from attar.train.optimisers import parameter_groups
from tests.methods.conftest import assert_same_step


def test_step_is_the_l1_loss_of_a_linear_layer_on_all_tokens(bench):
    bench = bench("simmim")
    method, batch = bench.method.eval(), bench.batch(0)
    tokens = tokens_of(method.backbone, batch.images, masked=batch.mask, mask_token=method.mask_token)
    expected = masked_l1(method.head(tokens.patches), patchify(batch.images, 8), batch.mask)
    assert_same_step(method, method.step(batch, bench.progress(0)).loss, expected)


def test_the_network_sees_no_hidden_pixel_and_visible_ones_are_no_target(bench):
    bench = bench("simmim")
    batch = bench.batch(0)
    with torch.no_grad():
        bench.method.head.weight.zero_()
        bench.method.head.bias.fill_(0.25)
    mask = batch.mask.view(6, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch.images = torch.where(mask, 0.75, 100.0 * torch.randn_like(batch.images))
    assert bench.method(batch, bench.progress(0)).loss.item() == pytest.approx(0.5)
    features = bench.method(batch, bench.progress(0)).embeddings
    batch.images = torch.where(mask, -3.0, batch.images)
    assert torch.equal(bench.method(batch, bench.progress(0)).embeddings, features)


def test_the_mask_token_starts_small_but_not_at_zero(bench):
    """Published code: a truncated normal of 0.02."""
    token = bench("simmim").method.mask_token
    assert token.unique().numel() == token.numel() > 100
    assert 0.015 < token.std() < 0.025 and token.mean().abs() < 0.01


def test_masks_come_in_cells_of_a_seventh_of_the_side(bench):
    image = bench("simmim").setup.image
    of_224 = views(RECIPES["photo"], image.__class__(size=224, channels=3, mean=image.mean, std=image.std), 16)
    assert (of_224.grid, of_224.cell, of_224.num_masked) == (14, 2, 30)
    small = views(RECIPES["small"], image, 4)
    assert (small.grid, small.cell, small.num_masked) == (8, 2, 10)
    assert small.view.scale == (0.67, 1.0) and small.view.jitter is None
    assert views(RECIPES["small"], image, 16).cell == 1


def test_learned_tokens_and_positions_are_not_decayed(bench):
    method = bench("simmim").method
    groups = parameter_groups(method, method.recipe)
    decayed = {id(p) for g in groups if g["weight_decay_scale"] for p in g["params"]}
    named = dict(method.named_parameters())
    assert sum(len(g["params"]) for g in groups) == len(named)
    out = {name for name, p in named.items() if id(p) not in decayed}
    assert {"mask_token", "backbone.network.pos_embed"} <= out
    assert {n for n in out if named[n].ndim > 1} == {"mask_token", "backbone.network.pos_embed"}


def test_a_backbone_that_reads_its_class_token_is_refused(bench):
    built = bench("simmim")
    backbone = build_backbone("vit_micro_p8", image_size=32)
    with pytest.raises(BackboneError, match="simmim trains the patch tokens only.*vit_tiny_p4_gap"):
        SimMIM(built.method.recipe, backbone, Setup(image=built.setup.image, images=built.images))
