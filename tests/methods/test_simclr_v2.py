"""SimCLR v2's distillation: soft targets of any image, labels of some, classes by the teacher's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from attar import stages
from attar.errors import RecipeError
from attar.methods.base import Setup
from attar.methods.distill.simclr_v2 import METHOD, RECIPES
from attar.models.saved import classes_of
from attar.pipeline import run as run_pipeline

QUICK = dict(backbone="resnet8x0.5", image_size=8, epochs=1, batch_size=128, device="cpu", progress=False)


def test_the_recipe_is_the_papers():
    r = RECIPES["paper"]
    assert (r.optimiser, r.epochs, r.batch_size, r.temperature, r.label_weight) == ("lars", 400, 4096, 1.0, 0.0)
    assert r.peak_lr == pytest.approx(6.4)
    released = RECIPES["released"]  # the notebook's
    assert (released.peak_lr, released.warmup_fraction, released.temperature, released.weight_decay) == (2, 0, 1, 1e-4)


def test_step_is_the_cross_entropy_with_the_teachers_probabilities(bench):
    built = bench("simclr_v2", temperature=2.0)
    batch = built.batch(0)
    built.method.eval()
    output = built.method.step(batch, built.progress(0))
    s = built.method.classifier(built.method.backbone(batch.images))
    t = built.setup.teacher(batch.images, batch.index, built.setup.image)
    loss = 0.0
    for own, taught in zip(s, t):
        p, q = torch.exp(taught / 2) / torch.exp(taught / 2).sum(), torch.exp(own / 2) / torch.exp(own / 2).sum()
        loss = loss - 4 * (p * torch.log(q)).sum() / len(s)
    torch.testing.assert_close(output.loss, loss)


def test_labels_play_no_part_unless_they_are_weighed(bench):
    built = bench("simclr_v2")
    batch = built.batch(0)
    first = built.method.eval().step(batch, built.progress(0)).loss
    batch.labels = None
    assert torch.equal(built.method.step(batch, built.progress(0)).loss, first)


def test_the_mean_over_labelled_images_is_right_over_an_epoch(bench):
    """Batches hold different numbers of labelled images; their terms average to the mean over all labelled ones."""
    built = bench("simclr_v2", label_weight=0.3, label_fraction=0.5)
    method = built.method.eval()
    known = np.flatnonzero((method.labels >= 0).numpy())
    assert len(known) == 6 and set(known) < set(built.images.index)
    hard, losses = [], []
    for step in range(2):  # 12 images in batches of 6
        batch = built.batch(step)
        output = method.step(batch, built.progress(0))
        hard.append(output.metrics["cross_entropy"])
        losses.append(output.loss - 0.7 * output.metrics["soft_targets"] - 0.3 * output.metrics["cross_entropy"])
    expected = []
    for step in range(2):
        batch = built.batch(step)
        s = method.classifier(method.backbone(batch.images))
        expected += [F.cross_entropy(a, y) for a, y, i in zip(s, batch.labels, batch.index) if int(i) in known]
    torch.testing.assert_close(torch.stack(hard).mean(), torch.stack(expected).mean().detach())
    torch.testing.assert_close(torch.stack(losses).detach(), torch.zeros(2), atol=1e-5, rtol=0)


def test_classes_are_the_teachers(bench, backbone):
    built = bench("simclr_v2", label_weight=0.5)
    assert built.method.class_names == ("a", "b", "c")
    teacher = built.setup.teacher
    teacher.classes = ("c", "a", "b")
    method = METHOD(built.method.recipe, backbone(), built.setup)
    assert method.class_names == ("c", "a", "b")
    order = {"a": 1, "b": 2, "c": 0}
    for position, i in enumerate(built.images.index):
        assert method.labels[i] == order["abc"[built.images.labels[position]]]
    teacher.classes = ("c", "a", "x")
    with pytest.raises(RecipeError, match="the teacher knows no class 'b'"):
        METHOD(built.method.recipe, backbone(), built.setup)


def test_weighed_labels_must_be_there(bench, backbone):
    built = bench("simclr_v2", label_weight=0.5)
    built.images.labels = None
    with pytest.raises(RecipeError, match="stripes has none"):
        METHOD(built.method.recipe, backbone(), built.setup)
    with pytest.raises(RecipeError, match="label_weight=1.5"):
        bench("simclr_v2", label_weight=1.5)
    with pytest.raises(RecipeError, match="needs a teacher"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))


def test_an_unlabelled_run_keeps_the_teachers_classes(tmp_path):
    """Images without labels: only the teacher can name the classes of the classifier that is kept."""
    stages.pretrain("digits", out=tmp_path / "tuned", method="supervised", **QUICK)
    pixels = np.random.default_rng(0).integers(0, 255, (128, 8, 8), dtype=np.uint8)
    stages.distill(
        pixels,
        teacher=tmp_path / "tuned",
        out=tmp_path / "small",
        method="simclr_v2",
        settings={"teacher_views": 2},
        cache=tmp_path,
        **QUICK | {"batch_size": 64},
    )
    assert (
        classes_of(tmp_path / "small") == classes_of(tmp_path / "tuned") and len(classes_of(tmp_path / "small")) == 10
    )
    result = stages.evaluate(tmp_path / "small", "digits", protocols=("classifier",), device="cpu", progress=False)
    found = {(row["metric"], row["subject"]) for row in result.rows}
    assert {("agreement", "model"), ("ece", "teacher")} <= found
    assert {subject for _, subject in found} == {"model", "teacher"}


@pytest.mark.slow
def test_the_whole_system_is_a_pipeline(tmp_path):
    """The example of docs/pipelines.md at a size for tests."""
    doc = Path(__file__).parents[2] / "docs" / "pipelines.md"
    text = next(block for block in doc.read_text().split("```yaml")[1:] if "simclr_v2" in block).split("```")[0]
    plan = yaml.safe_load(text)
    random = np.random.default_rng(0)
    for name in ("photos", "others"):
        np.savez(
            tmp_path / f"{name}.npz", images=random.integers(0, 255, (60, 8, 8), np.uint8), labels=np.arange(60) % 3
        )
    plan["out"] = str(tmp_path / "out")
    for stage in plan["stages"]:
        (kind,) = stage.keys() - {"name"}
        given = stage[kind]
        given.pop("labels", None)
        given |= {k: f"{tmp_path}/{given[k].strip('/')}.npz" for k in ("source", "labelled", "test") if k in given}
        if kind in ("pretrain", "distill"):
            given |= {"epochs": 1, "batch_size": 2 if stage["name"] == "tuned" else 16, "device": "cpu"}
            given["backbone"] = "resnet8x0.5" if stage["name"] == "small" else "resnet8"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    result = run_pipeline(tmp_path / "plan.yaml")
    assert result.ran == ["big", "tuned", "small", "evaluate", "evaluate", "report"]
    rows = json.loads((tmp_path / "out" / "small" / "evaluation.json").read_text())["rows"]
    assert any(row["metric"] == "agreement" for row in rows)
    assert 'id="trade-off"' in (tmp_path / "out" / "report.html").read_text()
    assert run_pipeline(tmp_path / "plan.yaml").ran == []
