"""DINO's loss: closed forms, the centre, edges."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import dino

B, K = 5, 7
SETTINGS = dict(student_temperature=0.1, teacher_temperature=0.05)


def scores(n: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(n, B, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_equal_scores_and_temperatures_give_the_teachers_entropy():
    same = scores(1, 0) * 2
    loss = dino(same, same, centre=torch.zeros(1, K), student_temperature=0.3, teacher_temperature=0.3)
    p = torch.softmax(same[0] / 0.3, dim=1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(1).mean())


def test_zero_scores_give_log_k_and_a_teacher_at_the_centre_gives_a_uniform_target():
    zero = [torch.zeros(2, 65536)] * 2
    assert dino(zero, zero, centre=torch.zeros(1, 65536), **SETTINGS).item() == pytest.approx(11.0904, abs=1e-4)
    student, centre = scores(3, 1), torch.randn(1, K, dtype=torch.float64)
    loss = dino(student, [centre.expand(B, K)] * 2, centre=centre, **SETTINGS)
    # views 1 and 2 meet one teacher view each, view 3 both
    per_view = torch.stack([(s / 0.1).logsumexp(1).mean() - (s / 0.1).mean() for s in student])
    torch.testing.assert_close(loss, (per_view[0] + per_view[1] + 2 * per_view[2]) / 4)


def test_a_shift_of_teacher_and_centre_changes_nothing_and_the_student_is_not_centred():
    student, teacher = scores(4, 2), scores(2, 3)
    centre, shift = torch.randn(2, 1, K, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    loss = dino(student, teacher, centre=centre, **SETTINGS)
    shifted = dino(student, [t + shift for t in teacher], centre=centre + shift, **SETTINGS)
    torch.testing.assert_close(shifted, loss)
    assert abs(dino([s + shift for s in student], teacher, centre=centre, **SETTINGS) - loss) > 0.1


def test_same_view_terms_are_skipped():
    """With two views and nothing else, the student's view 1 meets only the teacher's view 2."""
    student, teacher = scores(2, 5), scores(2, 6)
    one = dino(student, teacher, centre=torch.zeros(1, K), **SETTINGS)
    crossed = [dino([teacher[0], student[1 - g]], [teacher[g]], centre=torch.zeros(1, K), **SETTINGS) for g in (0, 1)]
    torch.testing.assert_close(one, sum(crossed) / 2)


def test_refusals():
    zero = torch.zeros(1, K)
    with pytest.raises(ShapeError, match="1 student and 1 teacher views"):
        dino(scores(1, 0), scores(1, 0), centre=zero, **SETTINGS)
    with pytest.raises(ShapeError, match=r"\(4, 7\), \(5, 7\)"):
        dino([scores(1, 0)[0], scores(1, 0)[0][:4]], scores(1, 0), centre=zero, **SETTINGS)
    with pytest.raises(ShapeError, match=r"centre has shape \(1, 6\)"):
        dino(scores(2, 0), scores(2, 0), centre=torch.zeros(1, 6), **SETTINGS)
    with pytest.raises(RecipeError, match="teacher_temperature=0"):
        dino(scores(2, 0), scores(2, 0), centre=zero, student_temperature=0.1, teacher_temperature=0.0)
    assert math.isfinite(dino([s[:1] for s in scores(2, 0)], [s[:1] for s in scores(1, 0)], centre=zero, **SETTINGS))
