"""SSKD: the four terms, which rows each of them sees, and three stages joined by files."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import RecipeError
from attar.losses import cosine_margin, error_rank_gate, kl_divergence
from attar.methods.base import make_views, resolve_recipe
from attar.methods.distill import sskd, sskd_teacher
from attar.methods.distill.self_supervision import task_head, task_scores
from attar.models.teachers import FrozenTeacher, load_teacher
from attar.views.draws import Draws
from attar.views.transformed import shuffled, turned, turned_at_random
from tests.methods.conftest import IMAGE, make_images, tiny_backbone

TASKS = ("contrastive", "exemplar", "rotation", "jigsaw")


def test_the_recipe_has_the_published_numbers():
    released = sskd.RECIPES["released"]
    weights = released.ce_weight, released.kd_weight, released.transformed_weight, released.self_supervision_weight
    assert weights == (0.1, 0.9, 2.7, 10.0)
    temperatures = released.temperature, released.transformed_temperature, released.self_supervision_temperature
    assert temperatures == (4.0, 4.0, 0.5)
    assert (released.transformed_keep_wrong, released.keep_wrong) == (1.0, 0.75)
    assert (released.epochs, released.batch_size, released.flip) == (240, 64, 0.0)
    assert released.peak_lr == pytest.approx(0.05)
    second = sskd_teacher.RECIPES["released"]
    assert (second.epochs, second.temperature) == (60, 1.0) and second.peak_lr == pytest.approx(0.05)
    assert [round(60 * drop) for drop in second.lr_drops] == [30, 45]


def test_paper_and_released_differ_in_their_transformations():
    kinds = {
        name: make_views("sskd", recipe, IMAGE, tiny_backbone()).transformation for name, recipe in sskd.RECIPES.items()
    }
    assert kinds == {"paper": turned_at_random, "released": turned, "small": turned}
    assert make_views(
        "sskd", resolve_recipe("sskd", None, {"task": "jigsaw"}), IMAGE, tiny_backbone()
    ).transformation is (shuffled)


def parts(bench):
    """Logits and features of both networks for a batch of the bench, upright rows first."""
    method, teacher, batch = bench.method.eval(), bench.setup.teacher, bench.batch(0)
    images = torch.cat([batch.images, batch.transformed])
    features, seen = method.backbone(images), teacher.backbone(images)
    return batch, method.classifier(features), teacher.head(seen), method.head(features), teacher.projector(seen)


def test_the_loss_has_four_terms(bench):
    bench = bench("sskd")
    batch, s, t, z, w = parts(bench)
    output = bench.method.step(batch, bench.progress(0))
    labels = batch.labels.repeat(3)
    cosines = [torch.stack([F.cosine_similarity(x[None], rows[:6]) for x in rows[6:]]) for rows in (z, w)]
    source = torch.arange(6).repeat(3)
    wrong = cosines[1].argmax(1) != source
    expected = {
        "cross_entropy": F.cross_entropy(s[:6], batch.labels),
        "soft_targets": kl_divergence(s[:6], t[:6], temperature=4.0),
        "transformed": kl_divergence(s[6:], t[6:], temperature=4.0),  # all rows
        "self_supervision": kl_divergence(
            *cosines, temperature=0.5, weights=error_rank_gate(cosines[1], source, keep_wrong=0.75)
        ),
    }
    for name, value in expected.items():
        torch.testing.assert_close(output.metrics[name], value.detach(), msg=lambda m, name=name: f"{name}: {m}")
    weights = {"cross_entropy": 0.1, "soft_targets": 0.9, "transformed": 2.7, "self_supervision": 10.0}
    total = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(output.loss, total)
    assert wrong.any() and output.metrics["teacher_task_accuracy"] == pytest.approx(1 - wrong.float().mean().item())
    assert output.metrics["teacher_accuracy"] == (t[:6].argmax(1) == batch.labels).float().mean()
    assert labels.shape == (18,)


def test_only_the_least_wrong_rows_are_transferred(bench):
    bench = bench("sskd", keep_wrong=0.0, transformed_keep_wrong=0.0)
    batch, s, t, z, w = parts(bench)
    output = bench.method.step(batch, bench.progress(0))
    right = t[6:].argmax(1) == batch.labels.repeat(3)
    expected = kl_divergence(s[6:][right], t[6:][right], temperature=4.0) if right.any() else torch.zeros(())
    torch.testing.assert_close(output.metrics["transformed"], expected.detach())
    rows, source = F.normalize(w, dim=1), torch.arange(6).repeat(3)
    cosines = rows[6:] @ rows[:6].T
    solved = cosines.argmax(1) == source
    mine = F.normalize(z, dim=1)
    expected = kl_divergence((mine[6:] @ mine[:6].T)[solved], cosines[solved], temperature=0.5)
    torch.testing.assert_close(output.metrics["self_supervision"], expected.detach())


def test_a_student_that_is_the_teacher_has_nothing_to_learn_but_labels(bench):
    bench = bench("sskd", ce_weight=0.0)
    teacher, method = bench.setup.teacher, bench.method.eval()
    method.backbone.load_state_dict(teacher.backbone.state_dict())
    method.classifier.load_state_dict(teacher.head.state_dict())
    method.head.load_state_dict(teacher.projector.state_dict())
    output = method.step(bench.batch(0), bench.progress(0))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0, abs=1e-5)
    assert all(p.grad.abs().max() < 1e-4 for p in method.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_a_head_and_a_student(bench, task):
    teacher_bench = bench("sskd_teacher", task=task)
    losses = [teacher_bench.train(range(1))[0] for _ in range(12)]
    assert losses[-1] < losses[0], "the same batch twelve times"
    method = teacher_bench.method
    teacher = FrozenTeacher(tiny_backbone(seed=7), IMAGE, method.classifier, projector=method.projector)
    recipe = resolve_recipe("sskd", "small", {"task": task, "batch_size": 6})
    student = sskd.METHOD(recipe, tiny_backbone(), replace(teacher_bench.setup, teacher=teacher))
    canvases = teacher_bench.images.batch(range(6))
    batch = make_views("sskd", recipe, IMAGE, student.backbone)(canvases, Draws(0, canvases.index))
    output = student.step(batch, teacher_bench.progress(0))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in student.head.parameters() if p.ndim > 1)
    answers = student.head(student.backbone(torch.cat([batch.images, batch.transformed])))
    scores, targets = task_scores(task, answers, batch)
    if task in ("contrastive", "exemplar"):
        assert scores.shape == (18, 6) and targets.tolist() == [0, 1, 2, 3, 4, 5] * 3
    else:
        assert scores.shape == (24, task_head(task, 8).num_features_out) and targets[:6].tolist() == [0] * 6


def test_stage_two_keeps_the_teacher_as_it_is(bench):
    bench = bench("sskd_teacher")
    before = {k: v.clone() for k, v in bench.setup.teacher.backbone.state_dict().items()}
    bench.method.train()
    bench.train(range(2))
    assert not bench.method.backbone.training and bench.method.projector.training
    for network in (bench.method.backbone, bench.setup.teacher.backbone):
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for mine, its in zip(bench.method.classifier.parameters(), bench.setup.teacher.head.parameters()):
        assert torch.equal(mine, its) and mine is not its


def test_without_a_temperature_a_contrastive_answer_cannot_be_sure():
    """The trap of the published code: at best e / (e + 63 / e) among 64 images."""
    perfect = 2 * torch.eye(64) - 1
    assert perfect.softmax(1).max().item() == pytest.approx(0.105, abs=1e-3)


def test_the_margin_loss_is_over_all_other_columns():
    cosines = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.9]])
    loss = cosine_margin(cosines, torch.tensor([0, 1]), margin=0.5)
    assert loss.item() == pytest.approx(((0.1 + 0.0) / 2 + (0.4 + 1.1) / 2) / 2)
    assert cosine_margin(torch.ones(3, 4), torch.zeros(3, dtype=torch.long), margin=0.5).item() == pytest.approx(0.5)


def test_errors_say_which_stage_is_missing(bench, backbone):
    built = bench("sskd")
    recipe, teacher = built.method.recipe, built.setup.teacher
    without = FrozenTeacher(teacher.backbone, IMAGE, teacher.head)
    with pytest.raises(RecipeError, match="has no self-supervised head.*--method sskd_teacher"):
        sskd.METHOD(recipe, backbone(), replace(built.setup, teacher=without))
    with pytest.raises(RecipeError, match="task=rotation needs a teacher's head of width 4, and this one has 32"):
        sskd.METHOD(replace(recipe, task="rotation"), backbone(), built.setup)
    second = bench("sskd_teacher")
    with pytest.raises(RecipeError, match=r"this one is resnet8, stem .*Give --backbone resnet8x0.5\."):
        sskd_teacher.METHOD(second.method.recipe, backbone(name="resnet8"), second.setup)
    with pytest.raises(RecipeError, match="leave out --image-size"):
        other = replace(second.setup, image=replace(IMAGE, mean=(0.1, 0.2, 0.3)))
        sskd_teacher.METHOD(second.method.recipe, backbone(), other)


def test_three_stages_joined_by_files_and_each_resumable(tmp_path):
    images = make_images(24)
    shared = dict(backbone="resnet8x0.5", epochs=1, batch_size=8, device="cpu", progress=False, resume=True)
    taught = tmp_path / "teacher", tmp_path / "teacher_ss"
    for _ in range(2):  # the second time nothing is left to do
        attar.pretrain(images, out=taught[0], method="supervised", **shared)
        attar.distill(images, teacher=taught[0], out=taught[1], method="sskd_teacher", **shared)
        done = attar.distill(images, teacher=taught[1], out=tmp_path / "student", method="sskd", **shared)
    assert done.fit is None
    first, second = (load_teacher(folder, output="logits") for folder in taught)
    x = torch.randn(3, 3, 32, 32)
    ask = lambda teacher: teacher(x, torch.arange(3), teacher.image)  # noqa: E731
    assert torch.equal(ask(first), ask(second)), "stage 2 changes no answer of the teacher"
    assert first.projector is None and second.projector is not None and second.classes == ("a", "b", "c")
    assert first.digest != second.digest
    assert set(load_teacher(tmp_path / "student", output="logits").backbone.state_dict()) == set(
        tiny_backbone().state_dict()
    )


def test_a_head_of_another_task_or_of_other_views_is_refused_though_it_is_as_wide(bench):
    setup = bench("sskd").setup
    setup.teacher.settings = {"task": "exemplar"}
    with pytest.raises(RecipeError, match="task=contrastive, and the teacher's head was trained for task=exemplar"):
        sskd.METHOD(resolve_recipe("sskd", "small"), tiny_backbone(), setup)
    setup.teacher.settings = json.loads(json.dumps(asdict(resolve_recipe("sskd_teacher", "small"))))  # as a run says it
    sskd.METHOD(resolve_recipe("sskd", "small"), tiny_backbone(), setup)
    with pytest.raises(RecipeError, match="transformations=four, and .*=rotations. Use -s transf.*rotat"):
        sskd.METHOD(resolve_recipe("sskd", "paper"), tiny_backbone(), setup)
    with pytest.raises(RecipeError, match=r"crop=resized, .* -s crop=padded, or train .* -s crop=resized -s crop"):
        sskd.METHOD(resolve_recipe("sskd", "small", {"crop": "resized"}), tiny_backbone(), setup)
    setup.teacher.settings |= {"crop": "resized", "crop_scale": [0.2, 1.0]}
    with pytest.raises(RecipeError, match="Use -s crop_scale=0.2,1.0, or"):
        sskd.METHOD(resolve_recipe("sskd", "small", {"crop": "resized"}), tiny_backbone(), setup)
    setup.teacher.settings |= {"task": "exemplar", "transformations": "four"}  # which exemplar does not have
    own = {"crop": "resized", "crop_scale": (0.2, 1.0), "task": "exemplar"}
    sskd.METHOD(resolve_recipe("sskd", "small", own), tiny_backbone(), setup)


@pytest.mark.parametrize(
    ("own", "its"),
    [
        ({"transformations": "four"}, {"task": "rotation"}),
        ({"task": "jigsaw"}, {"transformations": "four"}),
        ({"crop": "resized", "crop_scale": (0.2, 1.0)}, {"crop": "padded"}),
        ({"crop": "padded"}, {"crop": "resized", "crop_scale": (0.2, 1.0)}),
    ],
)
def test_settings_that_are_advised_are_all_used(bench, own, its):
    setup = bench("sskd").setup
    setup.teacher.settings = asdict(resolve_recipe("sskd_teacher", "small", its))
    setup.teacher.projector = task_head(its.get("task", "contrastive"), setup.teacher.backbone.num_features)
    with pytest.raises(RecipeError) as error:
        sskd.METHOD(resolve_recipe("sskd", "small", own), tiny_backbone(), setup)
    take, train = (
        dict(setting.split("=") for setting in re.findall(r"-s (\S+=[^\s]*[^\s,.])", part))
        for part in str(error.value).split(", or train a head")
    )
    assert its.items() <= {name: getattr(resolve_recipe("sskd", "small", take), name) for name in its}.items()
    assert sskd.METHOD(resolve_recipe("sskd", "small", take), tiny_backbone(), setup)
    assert resolve_recipe("sskd_teacher", "small", train)
