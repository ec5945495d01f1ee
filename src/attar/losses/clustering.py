"""Losses between distributions over prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    _check_views("dino", student_scores, teacher_scores, ("student", "teacher"))
    if centre.numel() != teacher_scores[0].shape[1]:
        raise ShapeError(f"dino: centre has shape {tuple(centre.shape)}, the scores {tuple(teacher_scores[0].shape)}.")
    check_positive("dino", student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    targets = [torch.softmax((g - centre).detach() / teacher_temperature, dim=1) for g in teacher_scores]
    log_predictions = [torch.log_softmax(s / student_temperature, dim=1) for s in student_scores]
    return _across_views(targets, log_predictions)


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


@full_precision
def swapped_prediction(scores: Sequence[Tensor], assignments: Sequence[Tensor], *, temperature: float) -> Tensor:
    """SwAV: every view must predict the assignment of another view of its image.

    loss = 1/A sum_a 1/(V - 1) sum_{v != a} mean_b  - sum_k Q_a,bk log P_v,bk,   P_v = softmax(scores_v / temperature)

    Args:
        scores: V >= 2 tensors (B, K); the first A of them from the views that were assigned, in the same order.
        assignments: A tensors (B, K), rows sum to 1 (see `sinkhorn`), detached here. 1 <= A <= V.
        temperature: > 0. Paper: 0.1.

    Returns:
        Scalar, mean over rows and pairs, in nats; at least the mean entropy of the assignments. Equal scores: log K.

    Raises:
        ShapeError: unequal shapes, fewer than two views, or fewer views than assignments.
        RecipeError: if temperature <= 0.

    Source: Caron et al. 2020, arXiv:2006.09882, eq. 1, 2 and 6.
    """
    _check_views("swapped_prediction", scores, assignments, ("predicting", "assigned"))
    check_positive("swapped_prediction", temperature=temperature)
    targets = [assignment.detach() for assignment in assignments]
    return _across_views(targets, [torch.log_softmax(s / temperature, dim=1) for s in scores])


@full_precision
def prototype_cross_entropy(embeddings: Tensor, prototypes: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """DeepCluster v2: an embedding must name its cluster among fixed prototypes, in each of several clusterings.

    loss = mean_h mean_b  -log softmax_k( <z_b, c_hk> / temperature )_{y_hb},   cosine similarities

    Args:
        embeddings: (B, E), any scale (normalised here). prototypes: (H, K, E), any scale, detached here.
        labels: (H, B), the cluster of each row in each clustering, 0 .. K - 1.
        temperature: > 0. Paper: 0.1.

    Returns:
        Scalar, mean over clusterings and rows, in nats. Equal prototypes give log K.

    Raises:
        ShapeError: if the shapes do not fit. RecipeError: if temperature <= 0.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix on DeepCluster-v2.
    """
    check_positive("prototype_cross_entropy", temperature=temperature)
    fits = embeddings.ndim == 2 and prototypes.ndim == 3 and embeddings.shape[1] == prototypes.shape[2]
    if not fits or labels.shape != (len(prototypes), len(embeddings)) or labels.numel() == 0:
        raise ShapeError(
            f"prototype_cross_entropy: embeddings {tuple(embeddings.shape)}, prototypes {tuple(prototypes.shape)} and "
            f"labels {tuple(labels.shape)} do not fit; they must be (B, E), (H, K, E) and (H, B)."
        )
    z, c = F.normalize(embeddings, dim=1), F.normalize(prototypes.detach(), dim=2)
    return torch.stack([F.cross_entropy((z / temperature) @ own.T, y) for own, y in zip(c, labels)]).mean()


def _across_views(targets: Sequence[Tensor], log_predictions: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy over pairs of a target g and the prediction of another view v."""
    terms = [
        -(target * log_prediction).sum(dim=1).mean()
        for g, target in enumerate(targets)
        for v, log_prediction in enumerate(log_predictions)
        if v != g  # the same view on both sides would teach nothing about invariance
    ]
    return torch.stack(terms).mean()


def _check_views(where: str, predicting: Sequence[Tensor], targets: Sequence[Tensor], names: tuple[str, str]) -> None:
    """V >= 2 predicting views, the first of them the 1 <= G <= V target views; all (B, K) and equal."""
    if len(predicting) < 2 or not 1 <= len(targets) <= len(predicting):
        raise ShapeError(
            f"{where}: {len(predicting)} {names[0]} and {len(targets)} {names[1]} views were given; at least two "
            f"{names[0]} views are needed, the first of them the {names[1]} views."
        )
    shapes = {tuple(rows.shape) for rows in [*predicting, *targets]}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ShapeError(
            f"{where}: {names[0]} and {names[1]} views have the shapes {sorted(shapes)}; all must be equal (B, K)."
        )
