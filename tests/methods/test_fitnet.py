"""FitNet: which stages are compared, at which size, and when."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import BackboneError
from attar.methods.base import Progress
from attar.methods.distill.fitnet import METHOD, RECIPES
from attar.methods.distill.stages import chosen
from tests.methods.conftest import tiny_backbone


def test_the_small_recipe_is_that_of_the_comparisons():
    small = RECIPES["small"]
    assert (small.ce_weight, small.kd_weight, small.hint_weight, small.hint_fraction) == (1.0, 0.0, 100.0, 0.0)


def test_the_hint_is_the_mean_square_between_middle_stages(bench):
    bench = bench("fitnet")
    method, batch = bench.method.eval(), bench.batch(0)
    assert method.stages == ("stage2", "stage2")
    output = method.step(batch, bench.progress(0))
    mine = method.regressor(method.backbone.stages(batch.images)["stage2"])
    theirs = bench.setup.teacher.backbone.stages(batch.images)["stage2"]
    torch.testing.assert_close(output.metrics["hint"], ((mine - theirs) ** 2).mean().detach())
    features = method.backbone(batch.images)
    expected = F.cross_entropy(method.classifier(features), batch.labels) + 100 * output.metrics["hint"]
    torch.testing.assert_close(output.loss.detach(), expected.detach())


def test_stages_of_other_widths_and_sizes_meet(bench):
    built = bench("fitnet", student_stage="stage1", teacher_stage="stage3")
    output = built.backward(0)
    assert built.method.regressor[0].weight.shape[:2] == (32, 8) and output.metrics["hint"] > 0
    vgg = METHOD(built.method.recipe, tiny_backbone(name="vgg8_small"), built.setup)
    assert vgg.stages == ("stage1", "stage3")
    with pytest.raises(BackboneError, match="unknown.*stage9.*stage1"):
        bench("fitnet", student_stage="stage9")
    with pytest.raises(BackboneError, match="fitnet: it compares maps of convnets"):
        chosen("fitnet", {"stage1": torch.zeros(1, 5, 3)}, None)


def test_the_papers_two_stages_are_hints_alone_and_then_none(bench):
    bench = bench("fitnet", "paper", hint_fraction=0.5)
    bench.method.eval()
    outputs = [bench.method.step(bench.batch(0), Progress(step, 8, 0, 2)) for step in (0, 3, 4, 7)]
    for early in outputs[:2]:
        torch.testing.assert_close(early.loss, early.metrics["hint"])
    for late in outputs[2:]:
        torch.testing.assert_close(late.loss, late.metrics["cross_entropy"] + late.metrics["soft_targets"])


def test_no_statistics_move_while_it_is_built(bench, backbone):
    network = backbone()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    METHOD(bench("fitnet").method.recipe, network.train(), bench("fitnet").setup)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()) and network.training
