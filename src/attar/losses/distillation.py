"""Losses that carry a teacher's soft targets to a student. The teacher never gets a gradient.

Reduction everywhere: sum over targets, mean over samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import RecipeError, ShapeError
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.inputs import check_pair, check_positive, check_width, full_precision


@full_precision
def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """mean_i  - sum_n  softmax(teacher_i / t_T)_n  log softmax(student_i / t_S)_n.

    Args:
        student_logits, teacher_logits: (B, N). The teacher's are detached.
        student_temperature, teacher_temperature: > 0. No factor T^2 is applied.

    Returns:
        Scalar in nats; equal logits and temperatures give the teacher's mean entropy, with zero gradient.

    Raises:
        ShapeError: if the shapes differ. RecipeError: a temperature <= 0.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    check_pair("soft_cross_entropy", student_logits, teacher_logits, ("student_logits", "teacher_logits"))
    check_positive(
        "soft_cross_entropy", student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    targets = torch.softmax(teacher_logits.detach() / teacher_temperature, dim=1)
    return -(targets * torch.log_softmax(student_logits / student_temperature, dim=1)).sum(dim=1).mean()


@full_precision
def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """T^2 * mean_i w_i KL( softmax(teacher_i / T) || softmax(student_i / T) ).

    The factor T^2 is included: the gradient of the soft targets shrinks with 1 / T^2, and with the factor its weight
    against a hard loss stays when T changes.

    Args:
        student_logits, teacher_logits: (B, N). The teacher's are detached.
        temperature: T, > 0, of both.
        weights: (B,) of the samples, without gradient; None: all 1. A gate has 0 for what is not transferred and a
            mean of 1 over all processes, as `error_rank_gate` gives it.

    Returns:
        Scalar >= 0 in nats; 0 for equal logits.

    Raises:
        ShapeError: if the shapes differ. RecipeError: if temperature <= 0.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    check_pair("kl_divergence", student_logits, teacher_logits, ("student_logits", "teacher_logits"))
    check_positive("kl_divergence", temperature=temperature)
    log_student = torch.log_softmax(student_logits / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher_logits.detach() / temperature, dim=1)
    # kl_div wants the student's log-probabilities first
    rows = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)  # (B,)
    if weights is not None:
        if weights.shape != rows.shape:
            raise ShapeError(
                f"kl_divergence: weights {tuple(weights.shape)} for {len(rows)} rows; one a row is needed."
            )
        rows = rows * weights.detach()
    return temperature**2 * rows.mean()


@full_precision
@torch.no_grad()
def error_rank_gate(teacher_logits: Tensor, targets: Tensor, *, keep_wrong: float) -> Tensor:
    """Weights that let through all rows the teacher gets right, and of the others those it gets least wrong.

    A row's error is the rank of the true column among the teacher's logits; 0 is right. Of the rows with an error
    above 0, int(keep_wrong * their number) with the smallest errors are kept; between equal ranks the teacher's
    probability of the truth decides.

    Args:
        teacher_logits: (B, N). targets: (B,) true columns. Across processes, pass local rows; ranks are gathered.
        keep_wrong: share of the wrong rows that is kept, in [0, 1]; SSKD 0.75.

    Returns:
        (B,): 0 for rows left out, otherwise one number, so that the mean over all rows of all processes is 1 and a
        mean of weighted rows is the mean over those kept. If none is kept: all 0.

    Source: Xu et al. 2020 (SSKD), arXiv:2006.07114, section 3.3.
    Differs: paper and published code leave ties to the order of the sort; here a row's place in the batch is no matter.
    """
    if teacher_logits.ndim != 2 or targets.shape != teacher_logits.shape[:1] or len(targets) == 0:
        raise ShapeError(
            f"error_rank_gate: teacher_logits have shape {tuple(teacher_logits.shape)} and targets "
            f"{tuple(targets.shape)}; give (B, N) and (B,)."
        )
    if not 0 <= keep_wrong <= 1:
        raise RecipeError(f"error_rank_gate: keep_wrong={keep_wrong} is not accepted; give a share in [0, 1].")
    true = teacher_logits.gather(1, targets[:, None])
    rank = (teacher_logits > true).sum(dim=1)
    probability = torch.softmax(teacher_logits, dim=1).gather(1, targets[:, None])[:, 0]
    error = gather_rows(torch.where(rank > 0, rank + 1 - probability.double(), 0.0))
    num_kept = int((error == 0).sum() + int(keep_wrong * (error > 0).sum()))
    kept = torch.zeros_like(error).index_fill_(0, error.argsort(stable=True)[:num_kept], 1.0)
    first = first_own_row(len(targets))
    return kept[first : first + len(targets)].to(teacher_logits) * len(kept) / max(num_kept, 1)


@full_precision
def anchor_similarities(embeddings: Tensor, own_key: Tensor | None, anchors: Tensor) -> Tensor:
    """Cosines of each row with its own key (column 0, if given) and with every anchor.

    Args:
        embeddings: (B, E), any scale. own_key: (B, E), the teacher's embedding of the same image, or None to leave
            the image itself out. anchors: (Q, E), any scale. The gradient goes to `embeddings` alone.

    Returns:
        (B, 1 + Q), or (B, Q) without own_key.
    """
    check_width("anchor_similarities", anchors, "anchors", embeddings.shape[1])
    rows = F.normalize(embeddings, dim=1)
    cosines = rows @ F.normalize(anchors.detach(), dim=1).T
    if own_key is None:
        return cosines
    check_pair("anchor_similarities", embeddings, own_key, ("embeddings", "own_key"))
    own = (rows * F.normalize(own_key.detach(), dim=1)).sum(dim=1, keepdim=True)
    return torch.cat([own, cosines], dim=1)


@full_precision
def similarity_distillation(
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    include_self: bool,
    student_anchors: Tensor | None = None,
) -> Tensor:
    """The student's similarities to the anchors must be distributed as the teacher's.

    loss = mean_i  - sum_a  softmax_a( <t_i, a> / t_T )  log softmax_a( <s_i, a> / t_S ),  cosine similarities,
    over the anchors, with the own teacher embedding t_i before them if include_self.

    Args:
        student, teacher: (B, E), row i of both from the same image, any scale. The teacher is detached.
        anchors: (Q, E), a queue of teacher embeddings, any scale, detached.
        student_anchors: (Q, E'), the same anchors in the student's own space, row a of both from the same image,
            detached; student is then (B, E') and compared with these. None: the student lives in the teacher's space.
        student_temperature, teacher_temperature: > 0. SEED: 0.2 and 0.01; CompRess: 0.04 and 0.04.
        include_self: SEED True, CompRess False. With it and a teacher temperature of 0.01 or less, practically all
            of the teacher's probability lies on the image itself, and the loss is InfoNCE with the teacher's key.

    Returns:
        Scalar in nats; all rows equal: log(Q), or log(1 + Q) with include_self.

    Raises:
        ShapeError: if the shapes do not fit. RecipeError: a temperature <= 0, or student_anchors with include_self:
            the image itself has no embedding in a second space.

    Source: Fang et al. 2021 (SEED), arXiv:2101.04731, eq. 4 to 6; Koohpayegani et al. 2020 (CompRess),
        arXiv:2010.14713, eq. 1 to 3.
    Differs: CompRess writes KL, which has the same gradient.
    """
    if student_anchors is not None:
        return _in_two_spaces(
            student, teacher, student_anchors, anchors, student_temperature, teacher_temperature, include_self
        )
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"similarity_distillation: student has shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}; "
            f"both must be (B, E) and equal. Give the student a projector as wide as the teacher's output."
        )
    own_key = teacher if include_self else None
    return soft_cross_entropy(
        anchor_similarities(student, own_key, anchors),
        anchor_similarities(teacher, own_key, anchors),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )


def _in_two_spaces(
    student: Tensor,
    teacher: Tensor,
    student_anchors: Tensor,
    anchors: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    include_self: bool,
) -> Tensor:
    if include_self:
        raise RecipeError("similarity_distillation: include_self needs one space; leave out student_anchors.")
    if len(student_anchors) != len(anchors):
        raise ShapeError(
            f"similarity_distillation: student_anchors has {len(student_anchors)} rows and anchors {len(anchors)}; "
            "row a of both is the same image."
        )
    return soft_cross_entropy(
        anchor_similarities(student, None, student_anchors),
        anchor_similarities(teacher, None, anchors),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )


@full_precision
def token_similarity(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The places of an image must resemble each other in the student as they do in the teacher.

    P = softmax over rows of cos(t_n, t_m) / T, Q the same of the student's tokens;
    loss = mean over images and places n of  KL( P_n || Q_n ) = sum_m P_nm log( P_nm / Q_nm ).

    Args:
        student: (B, N, D) tokens, any scale. teacher: (B, N, D'), token n of both from the same place; detached.
        temperature: T, > 0, of both.

    Returns:
        Scalar >= 0 in nats; 0 where all cosines agree, so a rotation of the space changes nothing.

    Raises:
        ShapeError: if the numbers of images or tokens differ. RecipeError: if temperature <= 0.

    Source: distillation v3 of lightly-train (2025), a library; no paper defines it.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            f"token_similarity: student has shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}; both must "
            "be (B, N, width) with the same tokens. Resize one of the maps."
        )
    check_positive("token_similarity", temperature=temperature)
    log_student, log_teacher = (
        torch.log_softmax(unit @ unit.transpose(1, 2) / temperature, dim=2).flatten(0, 1)
        for unit in (F.normalize(student, dim=2), F.normalize(teacher.detach(), dim=2))
    )
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)  # rows: B * N
