"""KD: the two terms, their weights and T^2; and that teacher and student speak of the same classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import CheckpointError, RecipeError
from attar.methods.base import Setup
from attar.methods.distill.kd import METHOD, RECIPES
from attar.models.heads import MLP
from attar.models.teachers import CachedTeacher, FrozenTeacher, check_classes
from tests.methods.conftest import IMAGE, make_images, tiny_backbone

SHARED = ("kd", "fitnet", "attention_transfer", "relational_kd", "crd")


def test_the_small_recipe_is_that_of_the_comparisons():
    small = RECIPES["small"]
    assert (small.ce_weight, small.kd_weight, small.temperature) == (0.1, 0.9, 4.0)
    assert small.peak_lr == pytest.approx(0.05) and small.batch_size == 64 and small.epochs == 240
    assert [round(240 * drop) for drop in small.lr_drops] == [150, 180, 210] and small.weight_decay == 5e-4


def test_the_loss_is_labels_and_soft_targets_with_t_squared(bench):
    bench = bench("kd", ce_weight=0.3, kd_weight=0.7, temperature=3.0)
    method, batch = bench.method.eval(), bench.batch(0)
    output = method.step(batch, bench.progress(0))
    student = method.classifier(method.backbone(batch.images))
    teacher = bench.setup.teacher(batch.images, batch.index, IMAGE)
    p, q = (teacher / 3).softmax(1), (student / 3).log_softmax(1)
    soft = 9 * (p * (p.log() - q)).sum(1).mean()
    torch.testing.assert_close(output.loss, 0.3 * F.cross_entropy(student, batch.labels) + 0.7 * soft)
    torch.testing.assert_close(output.metrics["soft_targets"], soft.detach())


@pytest.mark.parametrize("name", SHARED)
def test_a_student_that_is_the_teacher_gets_no_gradient_from_its_soft_targets(bench, name):
    """Property 1: the same network, the same view."""
    bench = bench(name, ce_weight=0.0, kd_weight=1.0)
    teacher, method = bench.setup.teacher, bench.method.eval()
    method.backbone.load_state_dict(teacher.backbone.state_dict())
    method.classifier.load_state_dict(teacher.head.state_dict())
    output = method.step(bench.batch(0), bench.progress(0))
    assert output.metrics["soft_targets"].item() == pytest.approx(0, abs=1e-6)
    assert output.metrics["teacher_agreement"] == 1
    for own in ("attention", "distance", "angle"):
        assert output.metrics.get(own, torch.zeros(())).item() == pytest.approx(0, abs=1e-6)
    gradients = torch.autograd.grad(output.loss, list(method.classifier.parameters()))  # no other term has any here
    assert all(g.abs().max() < 1e-6 for g in gradients)


@pytest.mark.parametrize("name", SHARED)
def test_what_is_exported_holds_nothing_of_teacher_and_adapters(bench, name):
    method = bench(name).method
    assert set(method.backbone.state_dict()) == set(tiny_backbone().state_dict())
    assert method.projector is None and isinstance(method.classifier, MLP)
    assert method.classifier.num_features_out == 3


def frozen(num_classes: int, classes: tuple[str, ...] = ()) -> FrozenTeacher:
    backbone = tiny_backbone(seed=7)
    return FrozenTeacher(backbone, IMAGE, MLP([backbone.num_features, num_classes]), classes=classes)


@pytest.mark.parametrize("name", SHARED)
def test_a_teacher_of_other_classes_is_refused(bench, backbone, name):
    built = bench(name)
    for teacher, message in (
        (None, f"{name}: it distils and needs a teacher"),
        (frozen(4), f"{name}: the teacher tells 4 classes apart, and stripes has 3"),
        (frozen(3, ("a", "c", "b")), "number 1 is 'c' there and 'b' here"),
    ):
        with pytest.raises(RecipeError, match=message):
            type(built.method)(
                built.method.recipe, backbone(), Setup(image=IMAGE, images=built.images, teacher=teacher)
            )


def test_classes_are_compared_by_name_where_both_are_known():
    images = make_images()
    check_classes("kd", frozen(3, ("a", "b", "c")), images)
    check_classes("kd", frozen(3), images)
    check_classes("kd", frozen(3, ("x", "y", "z")), replace(images, classes=()))
    with pytest.raises(RecipeError, match="number 0 is 'x'"):
        check_classes("kd", CachedTeacher(np.zeros((1, 40, 3)), digest="", classes=("x", "b", "c")), images)


def test_a_method_that_looks_inside_refuses_a_table(bench, backbone):
    built = bench("crd")
    table = CachedTeacher(np.zeros((1, 40, 3), np.float32), digest="")
    with pytest.raises(RecipeError, match="crd: it looks inside its teacher"):
        type(built.method)(built.method.recipe, backbone(), replace(built.setup, teacher=table))
    METHOD(bench("kd").method.recipe, backbone(), replace(built.setup, teacher=table))  # kd takes answers from it


@pytest.fixture
def teacher(tmp_path):
    options = dict(method="supervised", backbone="resnet8x0.5", epochs=1, batch_size=8, device="cpu", progress=False)
    attar.pretrain(make_images(24), out=tmp_path / "teacher", **options)
    return tmp_path / "teacher"


def distil(images, teacher, out, **options):
    return attar.distill(
        images, teacher=teacher, out=out, backbone="resnet8x0.5", epochs=2, batch_size=8, device="cpu", progress=False,
        **{"method": "kd", **options},
    )  # fmt: skip


def test_a_distilled_run_can_teach_the_next_one(teacher, tmp_path):
    images = make_images(24)
    distil(images, teacher, tmp_path / "first")
    distil(images, tmp_path / "first", tmp_path / "second", settings={"teacher_views": 2}, cache=tmp_path / "cache")
    from attar.models.teachers import load_teacher

    assert load_teacher(tmp_path / "second", output="logits").classes == ("a", "b", "c")


def test_a_run_refuses_other_classes_and_teachers_without_labels(teacher, tmp_path):
    images = make_images(24)
    with pytest.raises(RecipeError, match="number 0 is 'a' there and 'x' here"):
        distil(replace(images, classes=("x", "y", "z")), teacher, tmp_path / "run")
    attar.pretrain(
        images, out=tmp_path / "rotation", method="rotation", backbone="resnet8x0.5", epochs=1, batch_size=8,
        device="cpu", progress=False,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="kept no classifier"):
        distil(images, tmp_path / "rotation", tmp_path / "run")
