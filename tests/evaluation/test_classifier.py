"""The run's own classifier: classes by name, calibration, agreement, and what cannot be measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from attar.errors import RecipeError
from attar.evaluation.classifier import OwnClassifier
from attar.evaluation.evaluation import evaluate
from attar.evaluation.intervals import bootstrap_interval, resampled, resamples
from attar.evaluation.metrics import ece, nll
from attar.evaluation.subject import Classifier
from attar.evaluation.verdict import Comparison
from attar.models.backbones import build_backbone

QUIET = dict(device="cpu", progress=False, num_resamples=200)
FEATURES = np.random.default_rng(0).normal(size=(8, 3))
LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 1])


def linear(seed=0, inputs=3, outputs=3):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


@pytest.fixture
def subject(make_subject):
    return make_subject(FEATURES, LABELS, FEATURES, LABELS)  # classes "class 0", "class 1", "class 2"


def test_probabilities_are_the_softmax_of_its_logits(subject):
    head = linear()
    subject.classifier = Classifier(head, ("class 0", "class 1", "class 2"))
    (outcome,) = OwnClassifier(temperature=2.0).run(subject)
    logits = FEATURES @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(outcome.scores[0], softmax(logits / 2, axis=1), rtol=1e-5)
    assert not outcome.by_image


def test_classes_are_matched_by_name(subject):
    head = linear()
    subject.classifier = Classifier(head, ("class 0", "class 1", "class 2"))
    (plain,) = OwnClassifier().run(subject)
    turned = nn.Linear(3, 3)
    order = [2, 0, 1]
    turned.load_state_dict({k: v[order] for k, v in head.state_dict().items()})
    subject.classifier = Classifier(turned, ("class 2", "class 0", "class 1"))
    (other,) = OwnClassifier().run(subject)
    np.testing.assert_allclose(plain.scores[0], other.scores[0], rtol=1e-6)


def test_other_classes_and_no_classifier_are_errors(subject):
    with pytest.raises(RecipeError, match="model has none"):
        OwnClassifier().run(subject)
    subject.classifier = Classifier(linear(), ("class 0", "class 1", "cat"))
    with pytest.raises(RecipeError, match=r"of model, its classifier tells 3 classes apart .*'cat'.* the same"):
        OwnClassifier().run(subject)
    with pytest.raises(RecipeError, match="temperature=0"):
        OwnClassifier(temperature=0).run(subject)


def test_agreement_is_the_share_of_equal_predictions(subject, make_subject):
    teacher = make_subject(FEATURES, LABELS, FEATURES, LABELS)
    teacher.name = "teacher"
    names = ("class 0", "class 1", "class 2")
    subject.classifier, teacher.classifier = Classifier(linear(), names), Classifier(linear(5), names)
    subject.teacher = teacher
    (own,), (taught,) = OwnClassifier().run(subject), OwnClassifier().run(teacher)
    expected = own.scores[0].argmax(1) == taught.scores[0].argmax(1)
    assert 0 < expected.mean() < 1
    assert (own.by_image["agreement"] == expected).all() and not taught.by_image
    teacher.classifier = Classifier(linear(), ("a", "b", "c"))
    assert "agreement" not in OwnClassifier().run(subject)[0].by_image


def test_calibration_against_a_loop_over_bins():
    random = np.random.default_rng(1)
    scores = softmax(3 * random.normal(size=(200, 4)), axis=1)
    labels = random.integers(4, size=200)
    total = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        rows = [i for i in range(200) if low < scores[i].max() <= high]
        if rows:
            right = np.mean([scores[i].argmax() == labels[i] for i in rows])
            total += len(rows) / 200 * abs(right - np.mean([scores[i].max() for i in rows]))
    assert ece(scores, labels) == pytest.approx(total)
    assert nll(scores, labels) == pytest.approx(np.mean([-np.log(p[y]) for p, y in zip(scores, labels)]))


def test_calibration_where_it_is_known():
    labels = np.array([0, 0, 0, 1])  # three in four are right at a confidence of three in four
    assert ece(np.tile([0.75, 0.25], (4, 1)), labels) == pytest.approx(0)
    assert ece(np.tile([1.0, 0.0], (4, 1)), labels) == pytest.approx(0.25)
    assert nll(np.full((4, 2), 0.5), labels) == pytest.approx(np.log(2))
    assert nll(np.tile([1.0, 0.0], (4, 1)), labels) == pytest.approx(-np.log(1e-12) / 4)


def test_intervals_of_calibration_hold_the_value():
    random = np.random.default_rng(2)
    scores = softmax(random.normal(size=(300, 5)), axis=1)
    labels = np.array([random.choice(5, p=p) for p in scores])  # perfectly calibrated: noise alone
    counts = resamples(300, num_resamples=300)
    for metric, function in (("ece", ece), ("nll", nll)):
        low, high = bootstrap_interval(resampled(metric, scores, labels, counts), num_test=300)
        assert low < function(scores, labels) < high
    drawn = np.repeat(np.arange(300), counts[:, 0].astype(int))
    assert resampled("nll", scores, labels, counts)[0] == pytest.approx(nll(scores[drawn], labels[drawn]), rel=1e-5)


def test_lower_calibration_error_is_better():
    worse = Comparison("classifier", "", "ece", "teacher", 0.2, 0.1, 0.05, 0.15)
    assert worse.outcome == "worse"
    assert Comparison("classifier", "", "nll", "teacher", 1.0, 2.0, -1.2, -0.8).outcome == "better"
    assert Comparison("classifier", "", "top1", "teacher", 0.2, 0.1, 0.05, 0.15).outcome == "better"


def test_the_table_has_the_classifier_of_model_and_teacher_and_no_verdict_reads_error_as_accuracy(striped, spec):
    torch.manual_seed(3)
    backbone = build_backbone("resnet8", channels=3, image_size=16)
    own, taught = (Classifier(linear(s, backbone.num_features, 2), ("columns", "rows")) for s in (0, 1))
    result = evaluate(
        backbone,
        spec,
        striped(60),
        striped(40, seed=1, first_id=500),
        protocols=("classifier", "knn"),
        controls=("pixels",),
        teacher=(backbone, spec),
        classifier=own,
        teacher_classifier=taught,
        **QUIET,
    )
    found = {(r["metric"], r["subject"]) for r in result.rows if r["protocol"] == "classifier"}
    usual = ("top1", "roc_auc", "balanced_accuracy", "nll", "ece")
    assert found == {(m, s) for m in usual for s in ("model", "teacher")} | {("agreement", "model")}
    assert not any("classifier of" in name for name in result.details["omitted"])
    assert result.verdict.splitlines()[1].startswith("knn")
    for row in result.rows:
        assert row["low"] <= row["value"] <= row["high"]
    result.table()

    alone = evaluate(
        backbone, spec, striped(60), protocols=("classifier",), controls=(), classifier=own, **QUIET
    ).verdict
    assert alone.split(":")[0] in ("NO GAIN", "ABOVE CHANCE")
    assert alone.splitlines()[1].startswith("classifier, top-1")
    noisy = evaluate(
        backbone,
        spec,
        striped(60),
        protocols=("classifier", "linear"),
        controls=(),
        classifier=own,
        label_noise="symmetric:0.3",
        **QUIET,
    )
    assert {r["protocol"] for r in noisy.rows if "label_noise" in r["settings"]} == {"linear"}
    with pytest.raises(RecipeError, match="--label-noise would be ignored: classifier learns from no labels"):
        evaluate(
            backbone, spec, striped(60), protocols=("classifier",), classifier=own, label_noise="symmetric:0.3", **QUIET
        )
