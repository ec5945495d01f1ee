"""Relational KD: features without an adapter, and the weights of the comparisons."""

from __future__ import annotations

import torch

from attar.losses import relational_angle, relational_distance
from attar.methods.distill.relational_kd import METHOD, RECIPES
from tests.methods.conftest import tiny_backbone


def test_the_weights_are_one_to_two():
    assert (RECIPES["small"].distance_weight, RECIPES["small"].angle_weight) == (25.0, 50.0)
    assert METHOD.batch_coupled


def test_the_loss_compares_pooled_features(bench):
    bench = bench("relational_kd")
    method, batch = bench.method.eval(), bench.batch(0)
    output = method.step(batch, bench.progress(0))
    s, t = method.backbone(batch.images), bench.setup.teacher.backbone(batch.images)
    relations = 25 * relational_distance(s, t) + 50 * relational_angle(s, t)
    torch.testing.assert_close(output.loss, output.metrics["cross_entropy"] + relations)


def test_any_widths_meet(bench):
    built = bench("relational_kd")
    student = tiny_backbone(name="vit_micro_p8")
    assert student.num_features != built.setup.teacher.backbone.num_features
    method = METHOD(built.method.recipe, student, built.setup)
    assert method.step(built.batch(0), built.progress(0)).loss.isfinite()
