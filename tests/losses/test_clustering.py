"""DINO's, SwAV's and DeepCluster's losses and Sinkhorn-Knopp: closed forms, the centre, balance, edges."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import dino, prototype_cross_entropy, sinkhorn, swapped_prediction

_spec = importlib.util.spec_from_file_location("slow_loops", Path(__file__).with_name("slow_loops.py"))
slow = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(slow)

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


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_equals_the_loop(iterations):
    ours = sinkhorn(scores(1, 7)[0], epsilon=0.3, iterations=iterations)
    loop = slow.sinkhorn(scores(1, 7)[0], 0.3, iterations)
    torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-12)


def test_sinkhorn_rows_sum_to_one_and_columns_in_the_limit():
    cosines = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    deviations = []
    for iterations in (1, 3, 10, 100):
        q = sinkhorn(cosines.double(), epsilon=0.05, iterations=iterations)
        torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64))
        deviations.append(float((q.sum(0) - 6.4).abs().max()))
    assert deviations[0] > deviations[1] > deviations[2] > 1e-3 > 1e-6 > deviations[3]


def test_sinkhorn_known_cases():
    eye = sinkhorn(torch.eye(6), epsilon=0.05, iterations=3)
    torch.testing.assert_close(eye, torch.eye(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(sinkhorn(torch.ones(4, 8), epsilon=0.05, iterations=3), torch.full((4, 8), 1 / 8))
    per_prototype = torch.randn(1, K, dtype=torch.float64)
    shifted = sinkhorn(scores(1, 8)[0] + per_prototype, epsilon=0.3, iterations=3)
    torch.testing.assert_close(shifted, sinkhorn(scores(1, 8)[0], epsilon=0.3, iterations=3))


def test_sinkhorn_has_no_gradient_and_holds_in_half_precision_where_exp_would_overflow():
    cosines = torch.linspace(-1, 1, B * K).view(B, K).half().requires_grad_()
    q = sinkhorn(cosines, epsilon=0.005, iterations=3)  # exp(200) is beyond float32
    assert q.dtype == torch.float32 and not q.requires_grad
    exact = sinkhorn(cosines.double(), epsilon=0.005, iterations=3)
    torch.testing.assert_close(q.double(), exact, rtol=1e-3, atol=1e-5)


def test_swapped_prediction_of_equal_scores_is_log_k_and_never_below_the_entropy_of_the_targets():
    uniform = [torch.full((B, K), 1 / K)] * 2
    flat = swapped_prediction([torch.ones(B, K)] * 3, uniform, temperature=0.1)
    assert flat.item() == pytest.approx(math.log(K), abs=1e-6)
    q = scores(1, 9)[0].softmax(1)
    best = swapped_prediction([0.1 * q.log()] * 2, [q] * 2, temperature=0.1)
    torch.testing.assert_close(best, torch.special.entr(q).sum(1).mean())


def test_swapped_prediction_leaves_out_a_view_and_its_own_assignment():
    s, q = scores(2, 10), [t.softmax(1) for t in scores(2, 11)]
    one = swapped_prediction(s, q[:1], temperature=0.5)
    torch.testing.assert_close(one, -(q[0] * torch.log_softmax(s[1] / 0.5, 1)).sum(1).mean())


def test_refusals_of_swav():
    with pytest.raises(RecipeError, match="epsilon=0"):
        sinkhorn(scores(1, 0)[0], epsilon=0.0, iterations=3)
    with pytest.raises(RecipeError, match="iterations=0"):
        sinkhorn(scores(1, 0)[0], epsilon=0.05, iterations=0)
    with pytest.raises(ShapeError, match=r"\(5,\)"):
        sinkhorn(torch.zeros(5), epsilon=0.05, iterations=3)
    with pytest.raises(ShapeError, match="1 predicting and 1 assigned views"):
        swapped_prediction(scores(1, 0), scores(1, 0), temperature=0.1)
    with pytest.raises(ShapeError, match=r"\(4, 7\), \(5, 7\)"):
        swapped_prediction(scores(2, 0), [scores(1, 0)[0][:4]], temperature=0.1)
    with pytest.raises(RecipeError, match="temperature=-1"):
        swapped_prediction(scores(2, 0), scores(1, 0), temperature=-1)


def test_prototype_cross_entropy_of_equal_prototypes_is_log_k_and_of_orthogonal_ones_known():
    z, labels = scores(1, 12)[0].float(), torch.zeros(2, B, dtype=torch.long)
    flat = prototype_cross_entropy(z, torch.ones(2, 4, K), labels, temperature=0.1)
    assert flat.item() == pytest.approx(math.log(4), abs=1e-6)
    found = prototype_cross_entropy(torch.eye(B, K), torch.eye(B, K)[None], torch.arange(B)[None], temperature=0.5)
    assert found.item() == pytest.approx(math.log(1 + (B - 1) * math.exp(-2)), abs=1e-6)


def test_refusals_of_deep_cluster():
    z, prototypes = torch.zeros(5, 7), torch.zeros(2, 4, 7)
    with pytest.raises(ShapeError, match=r"labels \(5, 2\)"):
        prototype_cross_entropy(z, prototypes, torch.zeros(5, 2, dtype=torch.long), temperature=0.1)
    with pytest.raises(ShapeError, match=r"prototypes \(2, 4, 6\)"):
        prototype_cross_entropy(z, prototypes[..., :6], torch.zeros(2, 5, dtype=torch.long), temperature=0.1)
    with pytest.raises(RecipeError, match="temperature=0"):
        prototype_cross_entropy(z, prototypes, torch.zeros(2, 5, dtype=torch.long), temperature=0)
