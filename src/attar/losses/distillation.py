"""Losses that carry a teacher's soft targets to a student. The teacher never gets a gradient.

Reduction everywhere: sum over targets, mean over samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
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
def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * mean_i KL( softmax(teacher_i / T) || softmax(student_i / T) ).

    The factor T^2 is included: the gradient of the soft targets shrinks with 1 / T^2, and with the factor its weight
    against a hard loss stays when T changes.

    Args:
        student_logits, teacher_logits: (B, N). The teacher's are detached.
        temperature: T, > 0, of both.

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
    # kl_div wants the student's log-probabilities first; "batchmean" is the sum over N and the mean over B
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


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
) -> Tensor:
    """The student's similarities to the anchors must be distributed as the teacher's.

    loss = mean_i  - sum_a  softmax_a( <t_i, a> / t_T )  log softmax_a( <s_i, a> / t_S ),  cosine similarities,
    over the anchors, with the own teacher embedding t_i before them if include_self.

    Args:
        student, teacher: (B, E), row i of both from the same image, any scale. The teacher is detached.
        anchors: (Q, E), a queue of teacher embeddings, any scale, detached.
        student_temperature, teacher_temperature: > 0. SEED: 0.2 and 0.01; CompRess: 0.04 and 0.04.
        include_self: SEED True, CompRess False. With it and a teacher temperature of 0.01 or less, practically all
            of the teacher's probability lies on the image itself, and the loss is InfoNCE with the teacher's key.

    Returns:
        Scalar in nats; all rows equal: log(Q), or log(1 + Q) with include_self.

    Raises:
        ShapeError: if the shapes do not fit. RecipeError: a temperature <= 0.

    Source: Fang et al. 2021 (SEED), arXiv:2101.04731, eq. 4 to 6; Koohpayegani et al. 2020 (CompRess),
        arXiv:2010.14713, eq. 1 to 3.
    Differs: CompRess writes KL, which has the same gradient.
    """
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
