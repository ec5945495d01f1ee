"""Losses between distributions over prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import gather_rows
from attar.losses.inputs import check_positive, full_precision


@full_precision
def dino(
    student_scores: Sequence[Tensor],
    teacher_scores: Sequence[Tensor],
    *,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Self-distillation across views: the student's view v must predict the teacher's global view g, g != v.

    loss = 1/N sum_g sum_{v != g} mean_b  - sum_k  P_g,bk log Q_v,bk,
    P = softmax((teacher_scores - centre) / teacher_temperature), Q = softmax(student_scores / student_temperature),
    with N = G (V - 1) pairs; 2V - 2 for two global views.

    Args:
        student_scores: V tensors (B, K); the first G of them from the teacher's views, in the same order.
        teacher_scores: G tensors (B, K), detached here. 1 <= G, 2 <= V.
        centre: (1, K), subtracted from the teacher's scores only.
        student_temperature, teacher_temperature: > 0. Paper: 0.1, and 0.04 rising to 0.07.

    Returns:
        Scalar, mean over rows and pairs, in nats; at least the mean entropy of P. All scores equal: log K.

    Raises:
        ShapeError: unequal shapes, fewer than two student views, or fewer student views than teacher views.
        RecipeError: a temperature <= 0.

    Source: Caron et al. 2021, arXiv:2104.14294, eq. 3 and algorithm 1.
    """
    _check_views(student_scores, teacher_scores, centre)
    check_positive("dino", student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    targets = [torch.softmax((g - centre).detach() / teacher_temperature, dim=1) for g in teacher_scores]
    log_predictions = [torch.log_softmax(s / student_temperature, dim=1) for s in student_scores]
    terms = [
        -(target * log_prediction).sum(dim=1).mean()
        for g, target in enumerate(targets)
        for v, log_prediction in enumerate(log_predictions)
        if v != g  # the same view on both sides would teach nothing about invariance
    ]
    return torch.stack(terms).mean()


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Balanced soft assignments: as high a score as possible, with every prototype used equally often.

    Q = exp(scores / epsilon), then `iterations` times: divide each column by its sum over all samples, divide each
    row by its sum. That is Sinkhorn-Knopp for  max_Q <Q, scores> + epsilon H(Q)  with equal column sums, cut short.

    Args:
        scores: (B, K), similarity of samples to prototypes. Across processes, pass local rows: columns are summed
            over all of them, and the result is that of one process on the joined rows. The processes may hold
            different numbers of rows, also none.
        epsilon: > 0; small: nearly one-hot rows. SwAV: 0.05.
        iterations: >= 1. SwAV: 3.

    Returns:
        (B, K) without gradient. Rows sum to 1; columns to B / K only in the limit of many iterations. A vector added
        to all rows of the scores changes nothing.

    Raises:
        ShapeError: if the scores are not (B, K) with K >= 1. RecipeError: epsilon <= 0 or iterations < 1.

    Source: Caron et al. 2020, arXiv:2006.09882, eq. 3 to 5; Cuturi 2013, arXiv:1306.0895.
    """
    check_positive("sinkhorn", epsilon=epsilon, iterations=iterations)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ShapeError(f"sinkhorn: scores have shape {tuple(scores.shape)}; they must be (B, K) with K >= 1.")
    log_q = scores / epsilon  # exp(1 / 0.03) is 3e14, so all is done in logarithms
    for _ in range(iterations):
        column = torch.logsumexp(log_q, dim=0, keepdim=True)  # (1, K), of this process
        log_q = log_q - torch.logsumexp(gather_rows(column), dim=0, keepdim=True)
        log_q = torch.log_softmax(log_q, dim=1)
    return log_q.exp()


def _check_views(student_scores: Sequence[Tensor], teacher_scores: Sequence[Tensor], centre: Tensor) -> None:
    if len(student_scores) < 2 or not 1 <= len(teacher_scores) <= len(student_scores):
        raise ShapeError(
            f"dino: {len(student_scores)} student and {len(teacher_scores)} teacher views were given; at least two "
            f"student views are needed, the first of them the teacher's."
        )
    shapes = {tuple(scores.shape) for scores in [*student_scores, *teacher_scores]}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ShapeError(f"dino: scores have the shapes {sorted(shapes)}; all views must be (B, K) and equal.")
    if centre.numel() != teacher_scores[0].shape[1]:
        raise ShapeError(f"dino: centre has shape {tuple(centre.shape)}, the scores {tuple(teacher_scores[0].shape)}.")
