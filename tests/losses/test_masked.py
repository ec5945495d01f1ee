"""Losses over masked patches and KoLeo: closed forms, what is ignored, edges."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import (
    koleo,
    masked_distillation,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    normalise_patches,
    sinkhorn,
    weighted_mse,
)

B, N, D = 3, 4, 48
MASK = torch.tensor([[True, True, True, False], [False] * 4, [False, True, False, False]])


def patches(seed: int) -> torch.Tensor:
    return torch.randn(B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_zeros_against_normalised_patches_give_one_less_a_degree_of_freedom():
    target = normalise_patches(7 * patches(0) + 3)
    torch.testing.assert_close(target.mean(-1), torch.zeros(B, N, dtype=torch.float64))
    torch.testing.assert_close(target.var(-1), torch.ones(B, N, dtype=torch.float64), rtol=1e-6, atol=0)
    loss = masked_mse(torch.zeros_like(target), target, torch.ones(B, N, dtype=torch.bool))
    assert loss.item() == pytest.approx((D - 1) / D, rel=1e-6)


def test_a_constant_offset_on_masked_patches_is_the_l1_loss_and_visible_ones_are_ignored():
    target = patches(0)
    off = target + torch.where(MASK, 0.3, 100.0)[..., None]
    full = torch.tensor([2 / 3])  # one image of three has no masked patch and counts 0
    torch.testing.assert_close(masked_l1(off, target, MASK), 0.3 * full[0].double())
    torch.testing.assert_close(masked_mse(off, target, MASK), 0.09 * full[0].double())
    torch.testing.assert_close(masked_smooth_l1(off, target, MASK), 0.045 * full[0].double())
    torch.testing.assert_close(masked_smooth_l1(off + 2, target, MASK), 1.8 * full[0].double())


def test_equal_scores_and_temperatures_give_the_mean_entropy():
    scores = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(1, 7, dtype=torch.float64)
    given = dict(centre=zero, student_temperature=0.3, teacher_temperature=0.3)
    entropy = torch.special.entr(torch.softmax(scores / 0.3, 1)).sum(1)
    expected = (entropy[:3].mean() + entropy[3]) / 3  # images with three, no, and one masked patch
    torch.testing.assert_close(masked_distillation(scores, scores, MASK, **given), expected)
    none = masked_distillation(scores[:0].requires_grad_(), scores[:0], torch.zeros(2, 4, dtype=torch.bool), **given)
    none.backward()
    assert none == 0
    certain = torch.full((4, 7), -math.inf).index_fill(1, torch.tensor([2]), 0.0)  # log of a certain target
    loss = masked_distillation(scores, certain, MASK, centre=zero, student_temperature=1, teacher_temperature=1)
    right = -torch.log_softmax(scores, 1)[:, 2]
    torch.testing.assert_close(loss, (right[:3].mean() + right[3]) / 3)


def test_koleo_of_orthonormal_and_of_equal_rows():
    assert koleo(5 * torch.eye(6)).item() == pytest.approx(-0.5 * math.log(2), abs=1e-6)
    double = torch.tensor([[1.0, 2, 3], [2, 4, 6]], dtype=torch.float64).requires_grad_()
    loss = koleo(double)
    assert loss.item() == pytest.approx(-math.log(1e-8 * math.sqrt(3) + 1e-8), abs=1e-3)
    loss.backward()
    assert double.grad.isfinite().all()


def test_sinkhorn_balances_prototypes():
    scores = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    q = sinkhorn(scores, epsilon=0.5, iterations=300)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-6, atol=0)
    assert sinkhorn(scores[:0], epsilon=0.5, iterations=3).shape == (0, 4)


def test_refusals():
    x = patches(0)
    with pytest.raises(ShapeError, match=r"mask has shape \(3, 4, 48\)"):
        masked_mse(x, x, x > 0)
    with pytest.raises(ShapeError, match="torch.float64; bool"):
        masked_l1(x, x, MASK.double())
    with pytest.raises(ShapeError, match=r"\(3, 3, 48\) and target \(3, 4, 48\)"):
        masked_smooth_l1(x[:, 1:], x, MASK)
    with pytest.raises(ShapeError, match="5 rows of scores for 4 masked patches"):
        masked_distillation(
            x[0, :1].expand(5, -1),
            x[0, :1].expand(5, -1),
            MASK,
            centre=x[0, :1],
            student_temperature=1,
            teacher_temperature=1,
        )
    with pytest.raises(RecipeError, match="teacher_temperature=0"):
        masked_distillation(x[0], x[0], MASK, centre=x[0, :1], student_temperature=1, teacher_temperature=0)
    with pytest.raises(ShapeError, match="no neighbour"):
        koleo(torch.ones(1, 3))
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\)"):
        koleo(torch.ones(2, 3, 4))


def test_weights_of_one_give_the_plain_error_and_ten_its_tenfold_gradient():
    prediction = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        weighted_mse(prediction, target, torch.ones(2, 1, 4, 4)), (prediction - target).square().mean()
    )
    weights = torch.ones(2, 1, 4, 4)
    weights[..., 0], weights[..., 1] = 10, 0
    (gradient,) = torch.autograd.grad(weighted_mse(prediction, target, weights), prediction)
    plain = 2 * (prediction - target).detach() / (2 * 3 * 12)  # 12 of 16 pixels are counted
    torch.testing.assert_close(gradient, plain * weights)


def test_a_weighted_error_of_wrong_shapes_is_refused():
    with pytest.raises(ShapeError, match=r"target \(2, 3, 4, 5\)"):
        weighted_mse(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.ones(2, 1, 4, 4))
    with pytest.raises(ShapeError, match=r"weights have shape \(2, 4, 4\)"):
        weighted_mse(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4))
