"""DINO: pairs of views, centre, schedules, parameter groups."""

from __future__ import annotations

import pytest
import torch

from attar.losses import dino
from attar.methods.base import Progress
from attar.methods.siamese.dino import RECIPES
from tests.methods.conftest import assert_same_step


def test_the_teacher_sees_global_views_the_student_all(bench):
    bench = bench("dino")
    batch = bench.batch(0)
    assert len(batch.global_views) == 2 and len(batch.local_views) == 2
    assert batch.local_views[0].shape[-1] == 16 and batch.global_views[0].shape[-1] == 32
    seen = []
    bench.method.teacher.register_forward_pre_hook(lambda m, inputs: seen.append(tuple(inputs[0].shape)))
    bench.method.step(batch, bench.progress(0))
    assert seen == [(12, 3, 32, 32)]


def test_step_is_the_loss_of_the_scores(bench):
    bench = bench("dino", teacher_temperature=0.07, teacher_temperature_fraction=0.75)  # 3 epochs of 4
    bench.method.centre.normal_(generator=torch.Generator().manual_seed(0))
    bench.method.eval()  # batch statistics would tie the rows together
    batch = bench.batch(2)
    output = bench.method.step(batch, bench.progress(2))  # in epoch 1
    student = [bench.method.head(bench.method.backbone(view)) for view in batch.global_views + batch.local_views]
    teacher = [bench.method.teacher(view) for view in batch.global_views]
    expected = dino(student, teacher, centre=bench.method.centre, student_temperature=0.1, teacher_temperature=0.055)
    assert_same_step(bench.method, output.loss, expected)
    compared = bench.method.head.embedding(bench.method.backbone(batch.global_views[0]))  # health is measured on it
    torch.testing.assert_close(output.embeddings, compared, rtol=1e-4, atol=1e-5)


def test_the_centre_is_a_running_mean_of_raw_teacher_scores_moved_after_the_step(bench):
    bench = bench("dino", centre_momentum=0.8)
    bench.method.centre.fill_(1.0)
    seen = []
    bench.method.teacher.register_forward_hook(lambda m, inputs, output: seen.append(output))
    bench.backward(0)
    assert (bench.method.centre == 1).all()
    bench.method.after_step(bench.progress(0))
    torch.testing.assert_close(bench.method.centre, 0.8 + 0.2 * seen[0].mean(0, keepdim=True))


def test_teacher_temperature_rises_per_epoch(bench):
    bench = bench("dino", teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_temperature_fraction=0.3)
    at = lambda epoch: bench.method.teacher_temperature(Progress(epoch * 10 + 3, 100, epoch, 10))  # noqa: E731
    assert [at(e) for e in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert bench.method.teacher_temperature(Progress(0, 10, 0, 1)) == 0.07  # too short for a warm-up


def test_the_last_layer_is_a_group_of_its_own_and_every_parameter_is_in_one(bench):
    method = bench("dino").method
    others, last = method.parameter_groups()
    assert last["frozen_fraction"] == RECIPES["small"].freeze_last_layer_fraction > 0
    assert {id(p) for p in last["params"]} == {id(p) for p in method.head.last_layer.parameters()}
    assert {id(p) for g in (others, last) for p in g["params"]} == {id(p) for p in method.parameters()}
