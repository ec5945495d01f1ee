"""Soft targets: closed forms, invariances, edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError, ShapeError
from attar.losses import (
    anchor_similarities,
    kl_divergence,
    similarity_distillation,
    soft_cross_entropy,
    token_similarity,
)

B, N, E, Q = 5, 6, 7, 11
S, T = torch.randn(2, B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_student_equal_to_teacher_is_the_minimum():
    student = T.clone().requires_grad_()
    entropy = soft_cross_entropy(student, T, student_temperature=2.0, teacher_temperature=2.0)
    divergence = kl_divergence(student, T, temperature=2.0)
    (entropy + divergence).backward()
    p = torch.softmax(T / 2, dim=1)
    torch.testing.assert_close(entropy.detach(), -(p * p.log()).sum(1).mean())
    assert divergence.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(T), atol=1e-12, rtol=0)


def test_kl_is_cross_entropy_minus_entropy_times_t_squared():
    cross = soft_cross_entropy(S, T, student_temperature=3.0, teacher_temperature=3.0)
    entropy = soft_cross_entropy(T, T, student_temperature=3.0, teacher_temperature=3.0)
    torch.testing.assert_close(kl_divergence(S, T, temperature=3.0), 9 * (cross - entropy))


def test_scaling_logits_and_temperature_together_leaves_kl_times_t_squared():
    torch.testing.assert_close(kl_divergence(4 * S, 4 * T, temperature=4.0), 16 * kl_divergence(S, T, temperature=1.0))


def test_a_cold_teacher_is_a_hard_label():
    soft = soft_cross_entropy(S, T, student_temperature=1.0, teacher_temperature=1e-4)
    torch.testing.assert_close(soft, F.cross_entropy(S, T.argmax(1)))


def test_duplicating_the_batch_changes_no_loss():
    anchors = torch.randn(Q, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    settings = dict(student_temperature=0.2, teacher_temperature=0.1, include_self=True)
    for loss in (
        lambda s, t: kl_divergence(s, t, temperature=2.0),
        lambda s, t: similarity_distillation(s, t, anchors, **settings),
    ):
        torch.testing.assert_close(loss(torch.cat([S, S]), torch.cat([T, T])), loss(S, T))


@pytest.mark.parametrize("include_self, expected", [(True, math.log(1 + Q)), (False, math.log(Q))])
def test_equal_rows_give_the_log_of_the_number_of_anchors(include_self, expected):
    ones = torch.ones(B, E)
    settings = dict(student_temperature=0.2, teacher_temperature=0.01)
    loss = similarity_distillation(ones, ones, torch.ones(Q, E), include_self=include_self, **settings)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_own_key_comes_first():
    own = anchor_similarities(S, T, S[:2])
    assert own.shape == (B, 3)
    torch.testing.assert_close(own[:, 0], F.cosine_similarity(S, T))
    torch.testing.assert_close(own[:, 1:], anchor_similarities(S, None, S[:2]))


def test_two_spaces_that_are_the_same_are_one():
    anchors = torch.randn(Q, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    settings = dict(student_temperature=0.2, teacher_temperature=0.1, include_self=False)
    two = similarity_distillation(S, T, anchors, student_anchors=anchors, **settings)
    torch.testing.assert_close(two, similarity_distillation(S, T, anchors, **settings))
    with pytest.raises(RecipeError, match="include_self needs one space"):
        similarity_distillation(S, T, anchors, student_anchors=anchors, **settings | {"include_self": True})
    with pytest.raises(ShapeError, match="student_anchors has 10 rows and anchors 11"):
        similarity_distillation(S, T, anchors, student_anchors=anchors[1:], **settings)


def test_tokens_are_compared_with_those_of_their_own_image():
    tokens = torch.randn(2, 3, N, E, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    both = token_similarity(tokens[0], tokens[1], temperature=0.07)
    each = [token_similarity(s[None], t[None], temperature=0.07) for s, t in zip(*tokens)]
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_a_rotated_space_has_the_same_token_similarities():
    tokens = torch.randn(3, N, E, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rotation = torch.linalg.qr(torch.randn(E, E, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    student = (2 * tokens @ rotation).requires_grad_()
    loss = token_similarity(student, tokens, temperature=0.07)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(tokens), atol=1e-12, rtol=0)
    with pytest.raises(ShapeError, match="Resize one of the maps"):
        token_similarity(student, tokens[:, 1:], temperature=0.07)


def test_refusals():
    anchors = torch.randn(Q, E)
    settings = dict(student_temperature=0.2, teacher_temperature=0.01, include_self=True)
    with pytest.raises(ShapeError, match=r"student has shape \(5, 6\) and teacher \(5, 7\).*projector as wide"):
        similarity_distillation(torch.randn(5, 6), torch.randn(5, 7), anchors, **settings)
    with pytest.raises(ShapeError, match=r"anchors has shape \(11, 7\); it must be \(N, 6\)"):
        similarity_distillation(S, T, anchors, **settings)
    with pytest.raises(ShapeError, match="kl_divergence"):
        kl_divergence(S, T[:4], temperature=1.0)
    with pytest.raises(RecipeError, match="teacher_temperature=-1"):
        soft_cross_entropy(S, T, student_temperature=1.0, teacher_temperature=-1)
