from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from attar.evaluation import intervals
from attar.evaluation.intervals import (
    at_least,
    bootstrap_interval,
    next_draw_margin,
    paired_interval,
    resampled,
    resampled_mean,
    resamples,
    seeds_interval,
)


def scored(n, num_classes, seed=0, gain=0.3, decimals=None):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=n - num_classes)])
    scores = rng.random((n, num_classes))
    scores[np.arange(n), labels] += gain
    scores /= scores.sum(axis=1, keepdims=True)
    return scores if decimals is None else scores.round(decimals), labels


def test_resamples_draw_as_many_as_there_are():
    counts = resamples(17, num_resamples=50, seed=3)
    assert counts.shape == (17, 50)
    assert (counts.sum(axis=0) == 17).all()
    assert (counts == resamples(17, num_resamples=50, seed=3)).all()
    assert (counts != resamples(17, num_resamples=50, seed=4)).any()


@pytest.mark.parametrize(("num_classes", "decimals"), [(2, None), (2, 1), (3, None), (3, 1)])
def test_resampled_metrics_equal_scikit_learn_on_the_drawn_images(num_classes, decimals):
    scores, labels = scored(50, num_classes, decimals=decimals)  # one decimal: many ties
    counts = resamples(50, num_resamples=20)
    drawn = [np.repeat(np.arange(50), c.astype(int)) for c in counts.T]
    got = {m: resampled(m, scores, labels, counts) for m in ("top1", "balanced_accuracy", "roc_auc")}
    for i, rows in enumerate(drawn):
        p, y = scores[rows], labels[rows]
        areas = [roc_auc_score(y == c, p[:, c]) for c in ([1] if num_classes == 2 else range(num_classes))]
        assert got["top1"][i] == pytest.approx(np.mean(p.argmax(1) == y))
        assert got["balanced_accuracy"][i] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))
        assert got["roc_auc"][i] == pytest.approx(np.mean(areas))


def test_projected_area_agrees_with_the_exact_one_on_many_images():
    scores, labels = scored(4000, 2, decimals=2)
    counts = resamples(4000, num_resamples=200)
    exact = intervals._area(scores[:, 1], labels == 1, counts)
    projected = intervals._projected_area(scores[:, 1], labels == 1, counts)
    assert np.abs(exact - projected).max() < 0.15 * exact.std()
    ones = np.ones((4000, 1), dtype=np.float32)
    assert intervals._projected_area(scores[:, 1], labels == 1, ones)[0] == pytest.approx(
        roc_auc_score(labels, scores[:, 1])
    )


def test_large_sets_take_the_projection(monkeypatch):
    scores, labels = scored(60, 3)
    counts = resamples(60, num_resamples=30)
    exact = resampled("roc_auc", scores, labels, counts)
    monkeypatch.setattr(intervals, "EXACT_AUC", 0)
    projected = resampled("roc_auc", scores, labels, counts)
    assert (exact != projected).any()
    assert exact == pytest.approx(projected, abs=0.05)


def test_a_class_that_a_resample_lacks_is_left_out():
    scores, labels = np.eye(3)[[0, 1, 2]], np.arange(3)
    counts = np.array([[3, 1], [0, 1], [0, 1]], dtype=np.float32)
    assert resampled("balanced_accuracy", scores, labels, counts).tolist() == [1.0, 1.0]
    assert np.isnan(resampled("roc_auc", scores, labels, counts)[0])  # only one class drawn: nothing is defined


def test_coverage_on_a_known_binomial():
    """The 95 % interval holds the true rate in about 95 % of repeated test sets."""
    truth, size, repeats = 0.7, 100, 300
    counts = resamples(size, num_resamples=400, seed=1)
    rng = np.random.default_rng(0)
    labels = np.zeros(size, dtype=np.int64)
    covered = 0
    for _ in range(repeats):
        right = rng.random(size) < truth
        values = resampled("top1", np.stack([right, ~right], axis=1).astype(float), labels, counts)
        low, high = bootstrap_interval(values, num_test=size)
        covered += low <= truth <= high
    assert 0.91 <= covered / repeats <= 0.98


def test_width_equals_the_binomial():
    labels = np.zeros(400, dtype=np.int64)
    right = np.arange(400) < 300
    values = resampled("top1", np.stack([right, ~right], axis=1).astype(float), labels, resamples(400))
    low, high = bootstrap_interval(values, num_test=400)
    assert (low, high) == pytest.approx(
        (binom.ppf(0.025, 400, 0.75) / 400, binom.ppf(0.975, 400, 0.75) / 400), abs=0.008
    )


def test_all_right_is_not_certainty():
    low, high = bootstrap_interval(np.ones(1000), num_test=50)
    assert high == 1
    assert low**50 == pytest.approx(0.025)
    assert bootstrap_interval(np.zeros(1000), num_test=50) == (0.0, 1 - low)


def test_paired_difference_has_the_sign_of_the_better_and_is_narrower_than_the_single_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    hard = rng.random(200) < 0.4  # both fail on the same hard images
    theirs = np.eye(2)[np.where(hard | (np.arange(200) < 20), 1 - labels, labels)]
    ours = np.eye(2)[np.where(hard, 1 - labels, labels)]
    counts = resamples(200)
    a, b = (resampled("top1", s, labels, counts) for s in (ours, theirs))
    low, high = paired_interval(a, b, num_test=200)
    assert 0 < low < high
    assert paired_interval(b, a, num_test=200) == pytest.approx((-high, -low))
    assert high - low < 0.8 * (np.percentile(a, 97.5) - np.percentile(a, 2.5))


def test_no_difference_seen_is_not_none():
    low, high = paired_interval(np.full(9, 0.8), np.full(9, 0.8), num_test=50)
    assert low == -high
    assert (1 - high) ** 50 == pytest.approx(0.025)  # a difference on more images than that would have shown


def test_a_mean_of_equal_networks_is_equal():
    drawn = np.arange(301) / 300
    mean = np.mean([drawn] * 5, axis=0)
    assert (mean != drawn).any(), "rounded"
    low, high = paired_interval(drawn, mean, num_test=300)
    assert low == -high < 0


def test_seeds_interval_equals_the_t_table():
    low, high = seeds_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * np.std([1, 2, 3, 4, 5], ddof=1) / 5**0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


def test_one_more_draw_lies_within_its_margin_19_times_of_20():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.8, 0.02, (4000, 6))
    above = [next_ - np.mean(seen) > next_draw_margin(seen) for *seen, next_ in draws]
    assert np.mean(above) == pytest.approx(0.025, abs=0.008)
    assert next_draw_margin([1.0, 2.0, 3.0]) == pytest.approx(4.303 * (4 / 3) ** 0.5, abs=1e-3)
    assert next_draw_margin([0.7]) == 0


def test_an_interval_is_widened_to_a_margin_where_it_is_narrower():
    assert at_least(0.5, 0.47, 0.55, 0.04) == (0.46, 0.55)
    assert at_least(0.5, 0.4, 0.7, 0.0) == (0.4, 0.7)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_a_network_whose_training_did_nothing_is_seldom_called_better(spread):
    """Six networks of one kind on the same 300 images; the first is said to be the model."""
    rng = np.random.default_rng(0)
    counts, better = resamples(300, num_resamples=200), []
    for _ in range(300):
        skill = 0.7 + np.clip(spread * rng.normal(size=(6, 1)), -0.3, 0.25)
        own, *others = rng.random((6, 300)) < skill
        drawn = [resampled_mean(right, counts) for right in (own, *others)]
        low, high = paired_interval(drawn[0], np.mean(drawn[1:], axis=0), num_test=300)
        values = [right.mean() for right in others]
        better.append(at_least(own.mean() - np.mean(values), low, high, next_draw_margin(values))[0] > 0)
    assert np.mean(better) < 0.05
