"""How sure: 95 % intervals by bootstrap over test images, paired for differences, or by Student's t over seeds
and over networks drawn at random.

One set of resamples serves every subject and metric of an evaluation, which is what makes differences paired:
the same images are drawn for both sides. A resample is a column of counts: how often each test image was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar.evaluation.metrics import auc_classes, calibration, ece, surprise

CONFIDENCE = 0.95
EXACT_AUC = 30_000  # test images * classes up to which the area is computed anew in every resample


def resamples(num_test: int, *, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Counts, float32 (num_test, R); each column sums to num_test."""
    rng = np.random.default_rng([seed, num_test])
    counts = np.empty((num_resamples, num_test), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_test, size=num_test), minlength=num_test)
    return np.ascontiguousarray(counts.T)


def resampled(metric: str, scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The metric on every resample, float64 (R,). A class that a resample lacks is left out of its mean."""
    if metric == "top1":
        correct = (scores.argmax(axis=1) == labels).astype(np.float32)
        return resampled_mean(correct, counts)
    if metric == "nll":
        return resampled_mean(surprise(scores, labels), counts)
    if metric == "ece":
        return _ece(scores, labels, counts)
    if metric == "balanced_accuracy":
        return _balanced_accuracy(scores.argmax(axis=1) == labels, labels, counts)
    area = _area if scores.size <= EXACT_AUC else _projected_area
    return _mean_where_defined([area(scores[:, c], labels == c, counts) for c in auc_classes(scores.shape[1])])


def _ece(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Moved to have the value itself as their mean: noise within the bins makes every resample's error larger."""
    bins, excess = calibration(scores, labels)
    members = bins == np.unique(bins)[:, None]  # (bins, M)
    drawn = np.abs((members * excess).astype(np.float32) @ counts).sum(axis=0, dtype=np.float64) / len(labels)
    return np.maximum(drawn - drawn.mean() + ece(scores, labels), 0)


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of a value that each test image has, on every resample; (R,)."""
    return (values.astype(np.float32) @ counts).astype(np.float64) / len(values)


def _balanced_accuracy(correct: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    starts = np.unique(labels[order], return_index=True)[1]
    drawn = np.add.reduceat(counts[order], starts, axis=0)  # (classes present, R)
    right = np.add.reduceat(counts[order] * correct[order, None], starts, axis=0)
    return _mean_where_defined(np.where(drawn > 0, right / np.maximum(drawn, 1), np.nan))


def _mean_where_defined(values: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is defined."""
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    return np.where(defined, values, 0).sum(axis=0) / np.where(defined.any(axis=0), defined.sum(axis=0), np.nan)


def _area(score: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve under counts: share of (positive, negative) pairs in the right order, ties half."""
    order = np.argsort(score, kind="stable")
    starts = np.unique(score[order], return_index=True)[1]  # groups of equal scores
    positives = np.add.reduceat(counts[order] * positive[order, None], starts, axis=0)
    negatives = np.add.reduceat(counts[order] * ~positive[order, None], starts, axis=0)
    below = np.cumsum(negatives, axis=0) - 0.5 * negatives  # exact: float32 counts up to 2^24
    pairs = np.einsum("gr,gr->r", positives, below, dtype=np.float64)
    total = positives.sum(axis=0, dtype=np.float64) * negatives.sum(axis=0, dtype=np.float64)
    return pairs / np.where(total > 0, total, np.nan)


def _projected_area(score: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same to first order, for large test sets: each image's mean share of pairs won, resampled.

    Source: DeLong et al. 1988 (placement values). The neglected term is of the order 1 / number of images.
    """
    from scipy.stats import rankdata

    placement = rankdata(score)  # ties take their mean rank
    for side in (positive, ~positive):
        placement[side] -= rankdata(score[side])  # how many of the other side lie below
    won = placement[positive] / (~positive).sum()
    lost = placement[~positive] / positive.sum()
    area = won.mean()
    for_positives = _weighted_mean(won - area, counts[positive])
    return area + for_positives + _weighted_mean((1 - lost) - area, counts[~positive])


def _weighted_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=0, dtype=np.float64)
    return (values.astype(np.float32) @ counts) / np.where(total > 0, total, np.nan)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(values: np.ndarray, *, num_test: int) -> tuple[float, float]:
    """Interval of one metric from its resampled values.

    Where every resample is perfect or hopeless (all 1 or all 0), none can show a miss: the exact binomial bound.
    """
    bound = _no_event(num_test)
    if np.all(values == 1):
        return 1 - bound, 1.0
    if np.all(values == 0):
        return 0.0, bound
    return percentiles(values)


def paired_interval(ours: np.ndarray, theirs: np.ndarray, *, num_test: int) -> tuple[float, float]:
    """Interval of the difference ours - theirs, both resampled with the same counts.

    Where every resample agrees, none can show a difference: the exact binomial bound on images that would differ.
    """
    if np.allclose(ours, theirs, rtol=0, atol=1e-12):  # a mean over networks is rounded
        return -_no_event(num_test), _no_event(num_test)
    return percentiles(ours - theirs)


def _no_event(num_test: int) -> float:
    """The largest rate of an event that may stay unseen in num_test images (two-sided 95 %)."""
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / num_test))


def seeds_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Interval of the mean over seeds, Student's t; needs at least two. For a difference pass differences by seed."""
    from scipy.stats import t

    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    mean = float(np.mean(values))
    return mean - float(half), mean + float(half)


def next_draw_margin(values: Sequence[float] | np.ndarray) -> float:
    """How far one more draw may lie from the mean of these, at 95 %: t s sqrt(1 + 1/n); of one, 0.

    It holds for a model that is such a draw itself: of networks whose training did nothing, one in forty lies higher.
    Measured on the same test images, the draws also differ by chance of these images, so that chance is in it.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return 0.0
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) * (1 + 1 / n) ** 0.5)


def at_least(value: float, low: float, high: float, margin: float) -> tuple[float, float]:
    """The interval (low, high) about value, on each side at least as wide as margin.

    Not their sum: both hold the chance of the test images.
    """
    return min(low, value - margin), max(high, value + margin)
