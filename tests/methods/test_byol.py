"""BYOL: both directions, teacher by a cosine momentum, no gradient to the targets."""

from __future__ import annotations

import pytest
import torch

from attar.losses import byol_regression
from attar.methods.base import Progress
from attar.methods.momentum import cosine_to_one
from attar.methods.siamese.byol import RECIPES, views
from tests.methods.conftest import assert_same_step


def test_momentum_rises_by_a_cosine():
    schedule = [cosine_to_one(0.996, Progress(step, 4, 0, 1)) for step in range(5)]
    assert schedule == pytest.approx([0.996, 0.9965858, 0.998, 0.9994142, 1.0], abs=1e-7)


def test_the_loss_sums_both_directions(bench):
    bench = bench("byol")
    output = bench.backward(0)
    one, two = output.metrics["view_1_to_2"], output.metrics["view_2_to_1"]
    torch.testing.assert_close(output.loss.detach(), one + two)
    assert 0 < one < 4 and one != two


def test_each_prediction_meets_the_teacher_of_the_other_view(bench):
    bench = bench("byol")
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    views = (batch.view1, batch.view2)
    predictions = [method.predictor(method.projector(method.backbone(view))) for view in views]
    targets = [method.teacher(view) for view in views]
    crossed = byol_regression(predictions[0], targets[1]) + byol_regression(predictions[1], targets[0])
    assert_same_step(method, output.loss, crossed)


def test_the_teacher_follows_backbone_and_projector_but_not_the_predictor(bench):
    bench = bench("byol", momentum=0.9)
    bench.backward(0)
    bench.optimiser.step()
    old = [p.clone() for p in bench.method.teacher.parameters()]
    assert len(old) == len(list(bench.method.encoder.parameters()))
    bench.method.after_step(bench.progress(4))  # half of 8 steps
    m = cosine_to_one(0.9, bench.progress(4))
    assert m == pytest.approx(0.95)
    for t, o, s in zip(bench.method.teacher.parameters(), old, bench.method.encoder.parameters()):
        torch.testing.assert_close(t, m * o + (1 - m) * s)


def test_views_are_asymmetric_as_in_table_6(bench):
    maker = views(RECIPES["photo"], bench("byol").setup.image)
    assert (maker.first.blur, maker.first.solarise) == (1.0, 0.0)
    assert (maker.second.blur, maker.second.solarise) == (0.1, 0.2)
