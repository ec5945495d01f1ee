"""NCE against a bank, the non-parametric softmax and InvaSpread: closed forms and edges."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import info_nce, instance_softmax, inva_spread, nce, nce_partition


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k, expected", [(4096, 9.317888), (1, 2 * math.log(2))])
def test_probability_of_one_in_n_everywhere_gives_the_closed_form(k, expected):
    """All rows equal: P = exp(1/t) / Z = 1/n with the Z of that batch."""
    v, negatives = torch.ones(3, 2, dtype=torch.float64), torch.ones(k, 2, dtype=torch.float64)
    z = nce_partition(v, v, negatives, temperature=0.07, num_images=50)
    assert z.item() == pytest.approx(50 * math.exp(1 / 0.07))
    value = nce(v, v, negatives, temperature=0.07, num_images=50, partition=z)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(math.log(1 + k) + k * math.log(1 + 1 / k), abs=1e-6)


def test_the_partition_is_n_times_the_mean_score_and_has_no_gradient():
    v, own, drawn = rows(5, 1).requires_grad_(), rows(5, 2), rows(11, 3)
    unit = torch.nn.functional.normalize
    u, o, d = unit(v, dim=1), unit(own, dim=1), unit(drawn, dim=1)
    scores = torch.cat([(u * o).sum(1, keepdim=True), u @ d.T], dim=1).div(0.3).exp()  # (B, K + 1)
    z = nce_partition(v, own, drawn, temperature=0.3, num_images=40)
    torch.testing.assert_close(z, 40 * scores.detach().mean())
    assert not z.requires_grad


def test_negatives_are_summed_not_averaged():
    v, own, drawn = rows(5, 1), rows(5, 2), rows(11, 3)
    z = torch.tensor(90.0, dtype=torch.float64)
    once = nce(v, own, drawn, temperature=0.3, num_images=40, partition=z)
    # twice the negatives among twice the images: the same K/n, so the sum over negatives doubles
    twice = nce(v, own, drawn.repeat(2, 1), temperature=0.3, num_images=80, partition=z)
    four = nce(v, own, drawn.repeat(4, 1), temperature=0.3, num_images=160, partition=z)
    torch.testing.assert_close(four - twice, 2 * (twice - once))


def test_a_sure_answer_costs_nothing_and_a_wrong_one_stays_finite():
    v = torch.eye(2)[:1]
    sure = nce(v, v, -v, temperature=0.01, num_images=100, partition=torch.tensor(1.0))
    wrong = nce(v, -v, v, temperature=0.01, num_images=100, partition=torch.tensor(1.0))
    assert sure.item() == pytest.approx(0, abs=1e-6) and wrong.item() == pytest.approx(200, rel=0.1)


def test_nce_refuses_what_does_not_fit():
    v, z = rows(5), torch.tensor(1.0)
    with pytest.raises(ShapeError, match=r"negatives has shape \(11, 3\); it must be \(N, 7\)"):
        nce(v, v, torch.ones(11, 3), temperature=1, num_images=4, partition=z)
    with pytest.raises(ShapeError, match="partition has shape"):
        nce(v, v, v, temperature=1, num_images=4, partition=torch.ones(5))
    with pytest.raises(RecipeError, match="num_images=0"):
        nce(v, v, v, temperature=1, num_images=0, partition=z)


def test_equal_rows_of_the_bank_give_log_n():
    value = instance_softmax(rows(4), torch.ones(13, 7).double(), torch.arange(4), temperature=0.1)
    assert value.item() == pytest.approx(math.log(13))


def test_the_softmax_over_a_bank_of_own_and_others_is_info_nce():
    v, own, others = rows(1, 1), rows(1, 2), rows(9, 3)
    value = instance_softmax(v, torch.cat([others, own]), torch.tensor([9]), temperature=0.2)
    torch.testing.assert_close(value, info_nce(v, own, temperature=0.2, negatives=others))


def test_the_softmax_takes_one_position_a_row():
    with pytest.raises(ShapeError, match="positions have shape"):
        instance_softmax(rows(4), rows(9), torch.arange(3), temperature=0.1)


@pytest.mark.parametrize("b", [4, 6])
def test_inva_spread_closed_forms(b):
    eye, ones = torch.eye(b, dtype=torch.float64), torch.ones(b, 3, dtype=torch.float64)
    e, m = math.exp(1 / 0.1), 2 * b - 2
    floor = -math.log(e / (e + m)) - m * math.log(1 - 1 / (e + m))
    assert inva_spread(eye, eye, temperature=0.1).item() == pytest.approx(floor, rel=1e-6)
    collapse = math.log(2 * b - 1) + m * math.log((2 * b - 1) / m)
    assert inva_spread(ones, ones, temperature=0.1).item() == pytest.approx(collapse)
    if b == 4:
        assert (floor, collapse) == pytest.approx((5.446941e-4, 2.870814), rel=1e-6)


def test_inva_spread_survives_a_negative_that_takes_all():
    z1, z2 = torch.eye(2).requires_grad_(), torch.eye(2).flip(0).requires_grad_()  # every partner is a stranger's twin
    loss = inva_spread(z1, z2, temperature=0.01)
    loss.backward()
    assert loss.isfinite() and z1.grad.isfinite().all() and z2.grad.isfinite().all()


def test_inva_spread_needs_two_images():
    with pytest.raises(ShapeError, match="no negatives"):
        inva_spread(torch.ones(1, 3), torch.ones(1, 3), temperature=0.1)
