"""PIRL: two terms against one bank, which follows the images only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.losses import nce, nce_partition
from attar.methods.contrastive.pirl import RECIPES, views
from tests.methods.conftest import assert_same_step


def test_patches_are_64_pixels_of_224_and_at_least_8(bench):
    from attar.data.images import ImageSpec

    spec = lambda size: ImageSpec(size=size, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)  # noqa: E731
    made = views(RECIPES["photo"], spec(224))
    assert (made.patch.view_size, made.grid, made.share) == (64, 3, 64 / 85)
    assert made.view.scale == (0.08, 1.0) and made.patch.scale == (0.6, 1.0)
    assert views(RECIPES["small"], spec(32)).patch.view_size == 12
    assert views(RECIPES["small"], spec(16)).patch.view_size == 8


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_the_step_is_both_nce_terms_with_one_z(bench, weight):
    bench = bench("pirl", "photo", num_negatives=9, patch_weight=weight)
    method, bank, batch = bench.method.eval(), bench.method.bank, bench.batch(3)
    output = method.step(batch, bench.progress(3))
    f = method.projector(method.backbone(batch.images))
    parts = [method.patch_projector(method.backbone(batch.patches[:, i])) for i in range(9)]
    g = method.patches_projector(torch.cat(parts, dim=1))
    own, drawn = bank.rows[batch.index], bank.draw(9, step=3)
    assert not torch.equal(drawn, bank.draw(9, step=0)), "each step has negatives of its own"
    z = nce_partition(g, own, drawn, temperature=0.07, num_images=12)
    patches, images = (nce(e, own, drawn, temperature=0.07, num_images=12, partition=z) for e in (g, f))
    assert_same_step(method, output.loss, weight * patches + (1 - weight) * images)
    torch.testing.assert_close(bank.partition, z)


def test_patches_are_embedded_one_by_one_joined_in_their_order_and_projected(bench):
    bench = bench("pirl")
    method, batch = bench.method.eval(), bench.batch(0)
    parts = [method.patch_projector(method.backbone(batch.patches[:, i])) for i in range(9)]
    expected = method.patches_projector(torch.cat(parts, dim=1))
    output = method.step(batch, bench.progress(0))
    torch.testing.assert_close(output.positives, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.embeddings, method.projector(method.backbone(batch.images)).detach())


def test_the_bank_follows_the_images_not_the_patches_after_the_step(bench):
    bench = bench("pirl")
    before = bench.method.bank.rows.clone()
    output, index = bench.backward(0), bench.batch(0).index
    assert torch.equal(bench.method.bank.rows, before)
    bench.method.after_step(bench.progress(0))
    expected = F.normalize(0.5 * before[index] + 0.5 * F.normalize(output.embeddings, dim=1), dim=1)
    torch.testing.assert_close(bench.method.bank.rows[index], expected)
    assert (bench.method.bank.rows != before).any(dim=1).sum() == 6
