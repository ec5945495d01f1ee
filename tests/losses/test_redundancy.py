"""Barlow Twins, VICReg and SIGReg: closed forms, invariances, edges."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import barlow_twins, barlow_twins_terms, sigreg, vicreg, vicreg_terms

PAPER = dict(similarity_weight=25.0, variance_weight=25.0, covariance_weight=1.0)


def hadamard(n: int) -> torch.Tensor:
    """n rows of n - 1 centred, orthogonal columns of +-1; n a power of two."""
    rows = torch.arange(n)
    parity = [[bin(int(i) & int(j)).count("1") % 2 for j in rows[1:]] for i in rows]
    return 1.0 - 2.0 * torch.tensor(parity, dtype=torch.float64)


X = hadamard(16)[:, :8]


def test_barlow_twins_is_zero_for_equal_decorrelated_views_and_4e_for_opposite_ones():
    floor = 8 * (1 - 1 / (1 + 1e-5)) ** 2
    assert barlow_twins(X, X, redundancy_weight=0.0051).item() == pytest.approx(floor, rel=1e-6)
    assert barlow_twins(X, -X, redundancy_weight=0.0051).item() == pytest.approx(32.0, abs=1e-3)


def test_barlow_twins_of_one_repeated_dimension_counts_every_pair():
    same = X[:, :1].expand(16, 8)
    invariance, redundancy = barlow_twins_terms(same, same)
    assert invariance.item() == pytest.approx(0, abs=1e-6) and redundancy.item() == pytest.approx(56, rel=1e-4)
    assert barlow_twins(same, same, redundancy_weight=0.0051).item() == pytest.approx(0.285594, abs=1e-4)


def test_barlow_twins_of_independent_noise():
    a, b = torch.randn(2, 4096, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    invariance, redundancy = barlow_twins_terms(a, b)
    assert invariance.item() == pytest.approx(64 * (1 + 1 / 4095), rel=0.02)
    assert redundancy.item() == pytest.approx(64 * 63 / 4095, rel=0.1)


def test_barlow_twins_ignores_scale_and_shift_of_a_dimension_and_the_order_of_views():
    a, b = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = barlow_twins(a, b, redundancy_weight=0.1)
    moved = 100 * a * torch.arange(1, 6) + torch.arange(5)
    torch.testing.assert_close(barlow_twins(moved, b, redundancy_weight=0.1), loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(barlow_twins(b, a, redundancy_weight=0.1), loss)


def test_vicreg_is_zero_for_equal_decorrelated_views_of_unit_variance():
    assert vicreg(X, X, **PAPER).item() == pytest.approx(0, abs=1e-12)


def test_vicreg_of_constant_embeddings_is_the_variance_weight():
    ones = torch.ones(5, 3, dtype=torch.float64)
    assert vicreg(ones, ones, **PAPER).item() == pytest.approx(25 * 0.99)
    similarity, variance, covariance = vicreg_terms(ones, 3 * ones)
    assert (similarity.item(), variance.item(), covariance.item()) == pytest.approx((4.0, 0.99, 0.0))


def test_vicreg_of_one_repeated_dimension_counts_every_pair_in_both_views():
    same = X[:, :1].expand(16, 8)
    assert vicreg_terms(same, same)[2].item() == pytest.approx(2 * 7 * (16 / 15) ** 2)  # 15.928889


def test_vicreg_is_bounded_below_in_spread_only():
    """Spreading further than 1 costs nothing in the variance term."""
    assert vicreg_terms(5 * X, 5 * X)[1].item() == 0
    assert vicreg_terms(0.5 * X, 0.5 * X)[1].item() > 0.4


def test_sigreg_of_zeros_grows_with_the_batch():
    directions = torch.eye(4, dtype=torch.float64)
    for b in (1, 256):
        loss = sigreg(torch.zeros(b, 4, dtype=torch.float64), directions, num_knots=2001)
        assert loss.item() == pytest.approx(0.4022 * b, rel=1e-3)
    assert sigreg(torch.zeros(256, 4), torch.eye(4)).item() == pytest.approx(102.9, rel=5e-3)  # at 17 knots


def test_sigreg_of_gaussian_rows_is_near_its_floor_whatever_the_batch():
    expected = math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)) - math.sqrt(2 * math.pi / 3) * math.erf(
        3 * math.sqrt(1.5)
    )
    assert expected == pytest.approx(1.0527, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    for b in (64, 512):
        draws = [
            sigreg(torch.randn(b, 16, generator=generator), torch.randn(64, 16, generator=generator)).item()
            for _ in range(100)
        ]
        assert sum(draws) / len(draws) == pytest.approx(expected, abs=0.1)


def test_sigreg_sees_shift_scale_and_shape_and_not_the_length_of_directions():
    generator = torch.Generator().manual_seed(0)
    z, directions = torch.randn(256, 8, generator=generator), torch.randn(32, 8, generator=generator)
    loss = sigreg(z, directions)
    torch.testing.assert_close(sigreg(z, 7 * directions), loss)
    for other in (z + 1, 2 * z, z / 2, z.sign(), torch.cat([z[:, :4], z[:, :4]], dim=1)):
        assert sigreg(other, directions) > 2 * loss


def test_sigreg_never_trains_the_directions():
    directions = torch.randn(3, 4, requires_grad=True)
    sigreg(torch.randn(5, 4, requires_grad=True), directions).backward()
    assert directions.grad is None


def test_refusals():
    for loss in (lambda a, b: barlow_twins(a, b, redundancy_weight=1.0), lambda a, b: vicreg(a, b, **PAPER)):
        with pytest.raises(ShapeError, match=r"z1 has shape \(16, 8\) and z2 \(15, 8\)"):
            loss(X, X[1:])
        with pytest.raises(ShapeError, match=r"one row of shape \(1, 8\) has no variance; pass at least 2 rows"):
            loss(X[:1], X[:1])
        assert loss(X[:2], X[:2]).isfinite()
    with pytest.raises(ShapeError, match=r"sigreg: directions has shape \(3, 5\); it must be \(N, 8\)"):
        sigreg(X, torch.ones(3, 5))
    with pytest.raises(ShapeError, match=r"sigreg: embeddings have shape \(8,\)"):
        sigreg(X[0], torch.ones(3, 8))
    with pytest.raises(RecipeError, match="max_frequency=0"):
        sigreg(X, torch.ones(3, 8), max_frequency=0)
