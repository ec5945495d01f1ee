"""Supervised training, and what the shared layer does for every method with labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import CheckpointError, DataError, RunChanged
from attar.models.saved import classes_of, load_head
from attar.models.teachers import load_teacher


def test_the_loss_is_cross_entropy_with_smoothed_targets(bench):
    bench = bench("supervised", label_smoothing=0.1)
    method = bench.method.eval()
    batch = bench.batch(0)
    logits = method.classifier(method.backbone(batch.images))
    targets = 0.9 * F.one_hot(batch.labels, 3) + 0.1 / 3
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(method.step(batch, bench.progress(0)).loss, expected)


@pytest.fixture
def images():
    from tests.methods.conftest import make_images

    return make_images(24)


def train(images, out, **options):
    return attar.pretrain(
        images, out=out, method="supervised", backbone="resnet8x0.5", batch_size=8, device="cpu", progress=False,
        **{"epochs": 1, **options},
    )  # fmt: skip


def test_the_run_keeps_its_classifier_and_can_teach_with_its_logits(images, tmp_path):
    train(images, tmp_path / "run")
    head = load_head(tmp_path / "run", "classifier")
    assert head is not None and head.num_features_out == 3
    assert classes_of(tmp_path / "run") == ("a", "b", "c")
    teacher = load_teacher(tmp_path / "run", output="logits")
    x = torch.randn(2, 3, 32, 32)
    answers = teacher(x, torch.arange(2), teacher.image)
    torch.testing.assert_close(answers, head(teacher.backbone(x)))
    assert teacher.digest != load_teacher(tmp_path / "run", output="features").digest


def test_a_run_without_labels_has_no_logits_to_teach(images, tmp_path):
    attar.pretrain(
        images, out=tmp_path / "run", method="rotation", backbone="resnet8x0.5", epochs=1, batch_size=8, device="cpu",
        progress=False,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="kept no classifier.*--method supervised"):
        load_teacher(tmp_path / "run", output="logits")


def test_images_without_labels_or_with_gaps_are_refused(images, tmp_path):
    with pytest.raises(DataError, match="supervised is trained with labels, and stripes has none"):
        train(replace(images, labels=None, classes=()), tmp_path / "a")
    gaps = images.labels.copy()
    gaps[[3, 5]] = -1
    with pytest.raises(DataError, match="2 of 24 images have none"):
        train(replace(images, labels=gaps), tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_run_does_not_resume_with_other_labels(images, tmp_path):
    train(images, tmp_path / "run")
    train(images, tmp_path / "run", resume=True)
    with pytest.raises(RunChanged, match="labels: other ones"):
        train(replace(images, labels=np.roll(images.labels, 1)), tmp_path / "run", resume=True)


def test_the_report_says_that_labels_were_trained_on(images, tmp_path):
    train(images, tmp_path / "run")
    page = attar.report([tmp_path / "run"], out=tmp_path / "report.html").read_text()
    assert "images, with labels" in page and "images, no labels" not in page
