"""Maps and relations: what leaves them unchanged, edges; and which rows a teacher's errors let through."""

from __future__ import annotations

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import attention_transfer, error_rank_gate, kl_divergence, relational_angle, relational_distance

B, N = 6, 5
S, T = torch.randn(2, B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(3, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_relations_know_neither_position_nor_scale_nor_width(loss):
    rotation = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    alike = (3 * S @ rotation + 7).requires_grad_()
    value = loss(alike, S)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and alike.grad.abs().max() < 1e-9
    assert loss(S, torch.cat([T, torch.zeros(B, 9, dtype=torch.float64)], dim=1)) == pytest.approx(loss(S, T).item())


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_equal_rows_give_no_nan_gradient(loss):
    rows = S.clone()
    rows[1] = rows[0]
    rows.requires_grad_()
    loss(rows, T).backward()
    assert rows.grad.isfinite().all() and rows.grad.any()
    with pytest.raises(ShapeError, match="relations need at least 2"):
        loss(S[:1], T[:1])
    with pytest.raises(ShapeError, match="row i of both from the same sample"):
        loss(S, T[:4])


def test_attention_knows_no_scale_and_no_width_and_meets_at_the_smaller_size():
    wide = torch.cat([MAP, MAP], dim=1) * 5
    assert attention_transfer(MAP, wide).item() == pytest.approx(0, abs=1e-12)
    small = MAP.square().view(3, 4, 3, 2, 4, 2).mean(dim=(3, 5)).sqrt()  # energies averaged by 2 x 2
    assert attention_transfer(MAP, small).item() == pytest.approx(0, abs=1e-12)
    assert attention_transfer(small, MAP).item() == pytest.approx(0, abs=1e-12)
    here, there = torch.zeros(2, 3, 1, 4, 4)
    here[..., 0, 0], there[..., 3, 3] = 1, 1
    assert attention_transfer(here, there).item() == pytest.approx(2 / 16)
    with pytest.raises(ShapeError, match="both must be maps"):
        attention_transfer(MAP, MAP.flatten(2))


def test_duplicating_the_batch_changes_nothing():
    for loss, s, t in ((relational_distance, S, T), (attention_transfer, MAP[:2], MAP[1:])):
        torch.testing.assert_close(loss(torch.cat([s, s]), torch.cat([t, t])), loss(s, t))


# the true column is 0; ranks of the truth by row: 0, 0, 1, 1, 2, 3
TEACHER = torch.tensor(
    [[9.0, 0, 0, 0], [5, 4, 0, 0], [3, 4, 0, 0], [0, 4, -1, -1], [1, 3, 3, 0], [0, 1, 2, 3]], dtype=torch.float64
)
TRUTH = torch.zeros(6, dtype=torch.long)


@pytest.mark.parametrize(
    ("keep", "kept"), [(0.0, [0, 1]), (0.25, [0, 1, 2]), (0.5, [0, 1, 2, 3]), (0.75, [0, 1, 2, 3, 4]), (1.0, range(6))]
)
def test_the_gate_keeps_what_is_right_and_what_is_least_wrong(keep, kept):
    weights = error_rank_gate(TEACHER, TRUTH, keep_wrong=keep)
    assert weights.nonzero().flatten().tolist() == list(kept)
    assert weights.mean().item() == pytest.approx(1) and len(weights[weights > 0].unique()) == 1
    student = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gated = kl_divergence(student, TEACHER, temperature=2.0, weights=weights)
    rows = torch.tensor(list(kept))
    torch.testing.assert_close(gated, kl_divergence(student[rows], TEACHER[rows], temperature=2.0))


def test_the_gate_does_not_see_where_a_row_stands():
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    for keep in (0.25, 0.5, 0.75):
        weights = error_rank_gate(TEACHER, TRUTH, keep_wrong=keep)
        assert torch.equal(error_rank_gate(TEACHER[order], TRUTH, keep_wrong=keep), weights[order])


def test_the_gate_gives_no_gradient_and_may_let_nothing_through():
    wrong = TEACHER[2:].clone().requires_grad_()
    assert not error_rank_gate(wrong, TRUTH[2:], keep_wrong=0.5).requires_grad
    nothing = error_rank_gate(wrong, TRUTH[2:], keep_wrong=0.0)
    assert not nothing.any()
    assert kl_divergence(TEACHER[:4], wrong, temperature=1.0, weights=nothing) == 0
    with pytest.raises(RecipeError, match=r"keep_wrong=1.5 is not accepted; give a share in \[0, 1\]"):
        error_rank_gate(TEACHER, TRUTH, keep_wrong=1.5)
    with pytest.raises(ShapeError, match="error_rank_gate"):
        error_rank_gate(TEACHER, TRUTH[:2], keep_wrong=0.5)
    with pytest.raises(ShapeError, match="one a row is needed"):
        kl_divergence(TEACHER, TEACHER, temperature=1.0, weights=torch.ones(2))
