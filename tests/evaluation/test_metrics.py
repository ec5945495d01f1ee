from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from attar.evaluation.metrics import balanced_accuracy, chance, confusion, metrics_for, roc_auc, top1


def scored(n, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=n - num_classes)])
    scores = rng.random((n, num_classes))
    scores[np.arange(n), labels] += 0.3
    return scores / scores.sum(axis=1, keepdims=True), labels


def test_values_equal_scikit_learn():
    scores, labels = scored(60, 4)
    assert top1(scores, labels) == np.mean(scores.argmax(1) == labels)
    assert balanced_accuracy(scores, labels) == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))
    scores, labels = scored(40, 2)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores[:, 1]))


def test_balanced_accuracy_takes_the_classes_present():
    scores = np.eye(3)[[0, 0, 1, 2]]  # predictions 0, 0, 1, 2
    assert balanced_accuracy(scores, np.array([0, 0, 1, 1])) == 0.75  # class 2 is predicted, but not present


def test_confusion_has_true_classes_in_rows():
    scores = np.eye(3)[[0, 1, 1]]
    assert confusion(scores, np.array([0, 0, 1])).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_which_metrics_are_reported():
    even, uneven = np.repeat(np.arange(4), 5), np.repeat([0, 1], [30, 5])
    assert metrics_for(even, 4) == (["top1", "roc_auc", "balanced_accuracy"], {})
    assert metrics_for(uneven, 2) == (["roc_auc", "balanced_accuracy", "top1"], {})
    assert metrics_for(np.repeat(np.arange(20), 5), 20) == (["top1"], {})
    assert metrics_for(np.repeat(np.arange(20), [50] + [5] * 19), 20)[0][0] == "roc_auc"
    metrics, undefined = metrics_for(even, 5)
    assert "roc_auc" not in metrics
    assert undefined == {"roc_auc": "1 of 5 classes have no image in the test data"}


def test_chance_is_what_class_frequencies_reach():
    labels = np.repeat([0, 1], [30, 10])
    assert (chance("top1", labels, 2), chance("balanced_accuracy", labels, 2), chance("roc_auc", labels, 2)) == (
        0.75,
        0.5,
        0.5,
    )
