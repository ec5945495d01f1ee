"""Losses between views, layers and peers of networks that learn together. Targets get no gradient.

Reduction everywhere: sum over targets or dimensions, mean over samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import gather_rows
from attar.losses.inputs import check_pair, check_positive, full_precision


@full_precision
def mean_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """sum_d ( mean_i a_id - mean_i b_id )^2: the squared distance between the mean features of two sets of samples.

    The maximum mean discrepancy with a linear kernel. The mean is taken for each dimension by itself; a mean over
    dimensions as well would leave one number for each set, which is nearly the same for any two views.

    Args:
        a, b: (B, D), any scale. Across processes, pass local rows: the means are over all of them, and every process
            returns the same value. Both get a gradient.

    Returns:
        Scalar >= 0; 0 for equal means.

    Source: Xu and Liu 2019 (DDGSD), DOI 10.1609/aaai.v33i01.33015565.
    """
    check_pair("mean_discrepancy", a, b, ("a", "b"))
    return (gather_rows(a).mean(dim=0) - gather_rows(b).mean(dim=0)).square().sum()


@full_precision
def feature_hint(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_i | s_i - t_i |^2; the teacher is detached.

    Args:
        student, teacher: (B, D), row i of both from the same image. Not normalised: the scale is part of the hint.

    Source: Zhang et al. 2019 (BYOT), arXiv:1905.08094, loss source 3.
    """
    check_pair("feature_hint", student, teacher, ("student", "teacher"))
    return (student - teacher.detach()).square().sum(dim=1).mean()


@full_precision
def confidence_weighted_cross_entropy(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the labels, each sample weighted by how sure the teacher is, right or wrong.

    loss = sum_i w_i CE(logits_i, y_i) / sum_i w_i,  w_i = max_n softmax(teacher_i)_n

    Args:
        logits, teacher_logits: (B, N); the teacher's are detached. labels: (B,). Across processes, pass local rows:
            the weights are normalised over all of them.

    Returns:
        Scalar in nats; plain cross-entropy where the teacher is equally sure of all samples.

    Source: Furlanello et al. 2018, arXiv:1805.04770, section 3.2 (CWTM).
    """
    check_pair("confidence_weighted_cross_entropy", logits, teacher_logits, ("logits", "teacher_logits"))
    weights = torch.softmax(teacher_logits.detach(), dim=1).amax(dim=1)
    weights = weights / gather_rows(weights).mean()
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


@full_precision
def peer_similarity(student1: Tensor, student2: Tensor, peer1: Tensor, peer2: Tensor, *, temperature: float) -> Tensor:
    """An image's similarities to the other images must be distributed as the peer network's.

    P = softmax_j( cos(student1_i, student2_j) / t ),  Q likewise of the peer;   loss = mean_i KL( Q_i || P_i )

    Args:
        student1, student2: (B, E), embeddings of two views, row i of both from the same image. peer1, peer2: (B, E'),
            the peer's, of views of its own of the same images; detached. Across processes, pass local rows: the second
            views are gathered, with gradient.
        temperature: > 0.

    Returns:
        Scalar >= 0 in nats; 0 where both networks see the same similarities.

    Raises:
        ShapeError: if the shapes do not fit. RecipeError: if temperature <= 0.

    Source: Bhat et al. 2021 (DoGo), arXiv:2104.09866.
    Differs: the published code takes the mean over all of the B x B entries, which is this divided by B.
    """
    check_positive("peer_similarity", temperature=temperature)
    check_pair("peer_similarity", student1, student2, ("student1", "student2"))
    check_pair("peer_similarity", peer1, peer2, ("peer1", "peer2"))
    if len(student1) != len(peer1):
        raise ShapeError(f"peer_similarity: {len(student1)} rows of the student and {len(peer1)} of the peer.")
    ours = torch.log_softmax(_cosines(student1, student2) / temperature, dim=1)
    theirs = torch.log_softmax(_cosines(peer1.detach(), peer2.detach()) / temperature, dim=1)
    # kl_div wants the student's log-probabilities first; "batchmean" is the sum over j and the mean over i
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _cosines(rows: Tensor, candidates: Tensor) -> Tensor:
    """(B, B * world_size)."""
    return F.normalize(rows, dim=1) @ gather_rows(F.normalize(candidates, dim=1)).T
