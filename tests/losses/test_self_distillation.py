"""Losses between views, layers and peers: closed forms, invariances, edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError, ShapeError
from attar.losses import confidence_weighted_cross_entropy, feature_hint, mean_discrepancy, peer_similarity

A, B = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_mean_discrepancy_is_taken_for_each_dimension():
    """A shift that keeps the mean over all dimensions is seen; published code that averages over them sees nothing."""
    shift = torch.tensor([2.0, -2.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    assert mean_discrepancy(A + shift, A).item() == pytest.approx(float(shift.square().sum()))
    assert (A + shift).mean().item() == pytest.approx(A.mean().item())
    assert mean_discrepancy(A, A[torch.tensor([2, 0, 1, 5, 4, 3])]).item() == pytest.approx(0, abs=1e-12)


def test_duplicating_the_batch_changes_no_hint_and_no_discrepancy():
    twice = torch.cat([A, A]), torch.cat([B, B])
    for loss in (mean_discrepancy, feature_hint):
        torch.testing.assert_close(loss(*twice), loss(A, B))


def test_an_equally_sure_teacher_leaves_plain_cross_entropy():
    labels = torch.tensor([0, 4, 1, 1, 2, 3])
    torch.testing.assert_close(
        confidence_weighted_cross_entropy(A, labels, B[:1].expand(6, 5)), F.cross_entropy(A, labels)
    )


def test_equal_similarities_are_the_minimum_whatever_the_width_of_the_peer():
    student = [A.clone().requires_grad_(), B.clone().requires_grad_()]
    turned, _ = torch.linalg.qr(torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    loss = peer_similarity(*student, 3 * A @ turned.T, B @ turned.T, temperature=0.1)  # turned into 9 dimensions
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(s.grad.abs().max() < 1e-9 for s in student)


def test_half_precision_is_raised():
    half, full = (peer_similarity(*[x.to(d) for x in (A, B, B, A)], temperature=0.1) for d in (torch.half, torch.float))
    assert half.dtype == torch.float32 and abs(half - full) < 0.02


def test_refusals():
    with pytest.raises(ShapeError, match=r"mean_discrepancy: a has shape \(6, 5\) and b \(5, 5\)"):
        mean_discrepancy(A, B[:5])
    with pytest.raises(ShapeError, match="peer_similarity: 6 rows of the student and 5 of the peer"):
        peer_similarity(A, B, A[:5], B[:5], temperature=0.1)
    with pytest.raises(RecipeError, match="temperature=0"):
        peer_similarity(A, B, A, B, temperature=0)
    with pytest.raises(ShapeError, match="feature_hint"):
        feature_hint(A, B[:, :3])
