"""What is measured, and when. Point values come from scikit-learn; their intervals are in intervals.py.

Scores are class probabilities (M, N): float64, rows sum to 1, column c belongs to class c. A metric with a value of
its own for each test image (`recall@k`, `agreement`) is the mean of these.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FEW_CLASSES = 10
UNEVEN = 1.5  # largest class / smallest class above which accuracy alone misleads
CALIBRATION_BINS = 15  # of confidence, for ece
LEAST_PROBABILITY = 1e-12  # nll of a class that was ruled out
LOWER_IS_BETTER = ("nll", "ece")
NO_SHARES = ("roc_auc", *LOWER_IS_BETTER)  # written as plain numbers; all others are shares, in percent


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of test images whose highest score is the right class."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, scores.argmax(axis=1)))


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes present in `labels` of the share recognised."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, scores.argmax(axis=1), labels=np.unique(labels), average="macro"))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Two classes: area under the ROC curve of class 1. More: mean over classes, each against the rest.

    Only defined when every class occurs in `labels`.
    """
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(labels == c, scores[:, c]) for c in auc_classes(scores.shape[1])]))


def nll(scores: np.ndarray, labels: np.ndarray) -> float:
    """Negative log-likelihood: mean of -log of the right class' probability, in nats. Knowing nothing: log N."""
    return float(surprise(scores, labels).mean())


def surprise(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log of the right class' probability, one value for each test image."""
    return -np.log(np.maximum(scores[np.arange(len(labels)), labels], LEAST_PROBABILITY))


def ece(scores: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, in bins of equal width of confidence.

    sum over bins of |number right - sum of confidences| / M,  confidence = the highest probability.
    Guo et al. 2017, arXiv:1706.04599, eq. 3, with 15 bins.
    """
    bins, excess = calibration(scores, labels)
    return float(np.abs(np.bincount(bins, weights=excess)).sum() / len(labels))


def calibration(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each test image its bin of confidence, (0, 1/15], (1/15, 2/15], …, and (1 if right else 0) - confidence."""
    confidence = scores.max(axis=1)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins, (scores.argmax(axis=1) == labels) - confidence


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1": top1,
    "roc_auc": roc_auc,
    "balanced_accuracy": balanced_accuracy,
    "nll": nll,
    "ece": ece,
}


def auc_classes(num_classes: int) -> list[int]:
    """The classes whose one-against-rest areas are averaged: with two classes the second says it all."""
    return [1] if num_classes == 2 else list(range(num_classes))


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (N, N): row = true class, column = predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, scores.argmax(axis=1), labels=range(scores.shape[1]))


def metrics_for(test_labels: np.ndarray, num_classes: int) -> tuple[list[str], dict[str, str]]:
    """The metrics worth reporting, the telling one first, and why others are left out.

    top1 always; roc_auc and balanced_accuracy with at most ten classes or uneven ones. With uneven classes
    the first is roc_auc (no threshold, blind to how frequent classes are), or balanced_accuracy where it is undefined.
    """
    counts = np.bincount(test_labels, minlength=num_classes)
    uneven = counts.max() > UNEVEN * counts[counts > 0].min()
    if num_classes > FEW_CLASSES and not uneven:
        return ["top1"], {}
    if (counts == 0).any():
        missing = int((counts == 0).sum())
        reason = f"{missing} of {num_classes} classes have no image in the test data"
        return (["balanced_accuracy", "top1"] if uneven else ["top1", "balanced_accuracy"]), {"roc_auc": reason}
    return (["roc_auc", "balanced_accuracy", "top1"] if uneven else ["top1", "roc_auc", "balanced_accuracy"]), {}


def chance(metric: str, test_labels: np.ndarray, num_classes: int) -> float:
    """What knowing only the classes' frequencies reaches; of recall@k, what a random order reaches."""
    if metric == "roc_auc":
        return 0.5
    if metric.startswith("recall@"):
        return _chance_of_recall(int(metric.removeprefix("recall@")), test_labels)
    if metric == "balanced_accuracy":
        return 1 / len(np.unique(test_labels))
    return float(np.bincount(test_labels, minlength=num_classes).max() / len(test_labels))


def _chance_of_recall(k: int, labels: np.ndarray) -> float:
    """Mean over the images of the probability that k of the others, drawn at random, hold one of the same class."""
    counts = np.bincount(labels)
    others = len(labels) - 1
    drawn = np.arange(min(k, others))
    different = (len(labels) - counts)[:, None]  # of each class, (N, k)
    missed = np.prod(np.maximum(different - drawn, 0) / (others - drawn), axis=1)
    return float((counts * (1 - missed)).sum() / len(labels))
