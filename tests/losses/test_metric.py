"""Metric losses where the answer is known, and who is compared with whom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError, ShapeError
from attar.losses import (
    all_pairs,
    center,
    center_steps,
    class_pairs,
    contrastive_pair,
    info_nce,
    mined_triplets,
    n_pair,
    triplet,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_triplet_of_equal_rows_is_the_margin_and_of_far_negatives_zero():
    x = torch.ones(4, 3)
    assert triplet(x, x, x, margin=0.2) == pytest.approx(0.2)
    assert triplet(x, x, x + 1, margin=0.2) == 0
    nothing = torch.zeros(0, 3, requires_grad=True)
    triplet(nothing, nothing, nothing, margin=0.2).backward()


def test_n_pair_with_two_classes_is_softplus_and_with_unit_rows_info_nce():
    a, p = ROWS[:2], ROWS[2:4]
    expected = sum(F.softplus(a[i] @ p[1 - i] - a[i] @ p[i]) for i in range(2)) / 2
    torch.testing.assert_close(n_pair(a, p), expected)
    a, p = F.normalize(ROWS[:3], dim=1), F.normalize(ROWS[3:], dim=1)
    torch.testing.assert_close(n_pair(a, p), info_nce(a, p, temperature=1.0))
    assert n_pair(torch.ones(5, 2), torch.ones(5, 2)) == pytest.approx(torch.tensor(5.0).log().item())


def test_contrastive_pair_at_its_margin_and_at_distance_zero():
    a, b = torch.zeros(2, 3), torch.tensor([[2.0, 0, 0], [1.0, 0, 0]])
    assert contrastive_pair(a, b, torch.tensor([True, False]), margin=1.0) == pytest.approx(1.0)
    x = torch.ones(3, 2, requires_grad=True)
    contrastive_pair(x, x.detach(), torch.tensor([False, False, True]), margin=1.0).backward()
    assert x.grad.isfinite().all()


def test_centres_step_towards_the_mean_by_the_share_of_rows_and_one():
    x, centres = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([[0.0], [5.0], [9.0]])
    steps = center_steps(x, torch.tensor([0, 0, 1]), centres)
    torch.testing.assert_close(steps, torch.tensor([[4 / 3], [0.0], [0.0]]))
    slow = [
        sum((row - c for row, label in zip(x, (0, 0, 1), strict=True) if label == j), torch.zeros(1))
        / (1 + (0, 0, 1).count(j))
        for j, c in enumerate(centres)
    ]
    torch.testing.assert_close(steps, torch.stack(slow))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_centres_against_a_slow_loop(dtype):
    generator = torch.Generator().manual_seed(0)
    x, centres = torch.randn(5, 7, generator=generator).to(dtype), torch.randn(3, 7, generator=generator)
    labels = [0, 2, 0, 0, 2]
    wanted = torch.zeros(3, 7)
    for j in range(3):
        rows = [x[i].float() - centres[j] for i in range(5) if labels[i] == j]
        for row in rows:
            wanted[j] += row / (1 + len(rows))
    steps = center_steps(x, torch.tensor(labels), centres)
    assert steps.dtype == torch.float32
    torch.testing.assert_close(steps, wanted)


def test_center_of_the_class_means_is_half_the_variance():
    x = torch.tensor([[0.0], [2.0], [5.0]])
    assert center(x, torch.tensor([0, 0, 1]), torch.tensor([[1.0], [5.0]])) == pytest.approx(1 / 3)


def test_wrong_shapes_and_margins_are_errors():
    with pytest.raises(ShapeError, match=r"triplet: the rows have shapes \(6, 3\), \(5, 3\)"):
        triplet(ROWS, ROWS[:5], ROWS, margin=0.1)
    with pytest.raises(RecipeError, match="margin=0"):
        triplet(ROWS, ROWS, ROWS, margin=0)
    with pytest.raises(ShapeError, match="same has shape"):
        contrastive_pair(ROWS, ROWS, torch.ones(5, dtype=torch.bool), margin=1.0)
    with pytest.raises(ValueError, match="mining='easy'"):
        mined_triplets(ROWS, LABELS, mining="easy")


def test_pairs_of_a_batch():
    i, j, same = all_pairs(LABELS)
    assert len(i) == 15 and (i < j).all() and same.sum() == 4
    ((anchors, positives),) = class_pairs(LABELS)
    assert [(int(a), int(p)) for a, p in zip(anchors, positives)] == [(0, 2), (1, 4)], "class 2 has one image"
    assert class_pairs(torch.tensor([3])) == [] and class_pairs(torch.tensor([1, 0, 2])) == []
    found = class_pairs(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]))
    assert [(a.tolist(), p.tolist()) for a, p in found] == [([0, 4, 9], [1, 5, 10]), ([2, 6], [3, 7])]
    assert class_pairs(torch.tensor([5, 5, 5, 5])) == [], "a tuple of one class has no negatives"


@pytest.mark.parametrize("mining", ["hard", "semihard", "all"])
def test_mining_equals_a_loop(mining):
    def d(i, j):
        return float((ROWS[i] - ROWS[j]).norm())

    expected = set()
    for i in range(6):
        positives = [j for j in range(6) if j != i and LABELS[j] == LABELS[i]]
        negatives = [j for j in range(6) if LABELS[j] != LABELS[i]]
        if mining == "hard" and positives:
            expected.add((i, max(positives, key=lambda j: d(i, j)), min(negatives, key=lambda j: d(i, j))))
        for p in positives if mining == "semihard" else ():
            beyond = [n for n in negatives if d(i, n) > d(i, p)]
            expected.add(
                (i, p, min(beyond, key=lambda n: d(i, n)) if beyond else max(negatives, key=lambda n: d(i, n)))
            )
        if mining == "all":
            expected |= {(i, p, n) for p in positives for n in negatives}
    found = [tuple(map(int, t)) for t in zip(*mined_triplets(ROWS, LABELS, mining=mining))]
    assert len(found) == len(set(found)) and set(found) == expected


@pytest.mark.parametrize("mining", ["hard", "semihard", "all"])
def test_a_batch_of_one_class_has_no_triplets(mining):
    assert all(len(part) == 0 for part in mined_triplets(ROWS, torch.zeros(6, dtype=torch.long), mining=mining))
