"""BYOL's and SimSiam's regression: closed forms and edges."""

from __future__ import annotations

import pytest
import torch

from attar.errors import ShapeError
from attar.losses import byol_regression, negative_cosine

X = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("target, both_ways", [(X, 0.0), (X.roll(1, 0), 4.0), (-X, 8.0)])
def test_identical_orthogonal_opposite(target, both_ways):
    loss = byol_regression(3 * X, target) + byol_regression(target, 3 * X)
    assert loss.item() == pytest.approx(both_ways, abs=1e-12)


def test_relation_of_the_two():
    p, z = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(byol_regression(p, z), 2 + 2 * negative_cosine(p, z))


def test_one_row_is_enough_and_unequal_shapes_are_refused():
    assert byol_regression(X[:1], X[:1]).item() == 0
    with pytest.raises(ShapeError, match=r"negative_cosine: prediction has shape \(4, 4\) and target \(3, 4\)"):
        negative_cosine(X, X[:3])
    with pytest.raises(ShapeError, match="not empty"):
        byol_regression(X[:0], X[:0])
