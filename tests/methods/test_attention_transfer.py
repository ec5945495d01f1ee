"""Attention transfer: every stage beside the teacher's of the same name, and who has none."""

from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError
from attar.losses import attention_transfer
from attar.methods.distill.attention_transfer import METHOD, RECIPES
from attar.methods.distill.stages import paired
from tests.methods.conftest import tiny_backbone


def test_the_recipe_has_the_papers_weight():
    assert RECIPES["small"].attention_weight == 1000.0 and RECIPES["small"].kd_weight == 0.0


def test_the_loss_sums_over_stages(bench):
    bench = bench("attention_transfer")
    method, batch = bench.method.eval(), bench.batch(0)
    output = method.step(batch, bench.progress(0))
    mine, theirs = (net.stages(batch.images) for net in (method.backbone, bench.setup.teacher.backbone))
    expected = sum(attention_transfer(mine[f"stage{n}"], theirs[f"stage{n}"]) for n in (1, 2, 3))
    torch.testing.assert_close(output.metrics["attention"], expected.detach())
    torch.testing.assert_close(output.loss.detach(), output.metrics["cross_entropy"] + 1000 * expected.detach())


def test_networks_of_another_kind_are_paired_from_the_end():
    maps = {name: torch.zeros(1, 1, 2, 2) for name in ("stem", "stage1", "stage2", "stage3")}
    blocks = {f"block{n}": torch.zeros(1, 1, 2, 2) for n in range(1, 6)}
    assert paired("x", maps, maps) == [(f"stage{n}", f"stage{n}") for n in (1, 2, 3)]
    assert paired("x", maps, blocks) == [("stage1", "block3"), ("stage2", "block4"), ("stage3", "block5")]
    with pytest.raises(BackboneError, match="x: it compares maps of convnets"):
        paired("x", maps, {"stage1": torch.zeros(1, 5, 3)})


def test_a_vgg_may_learn_from_a_resnet(bench):
    built = bench("attention_transfer")
    method = METHOD(built.method.recipe, tiny_backbone(name="vgg8_small"), built.setup)
    assert method.step(built.batch(0), built.progress(0)).metrics["attention"] > 0
