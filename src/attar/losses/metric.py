"""Metric losses of pairs and triplets, and who is compared with whom where labels tell it.

Rows are compared as they are given; normalise them first where the paper does. A batch that is spread over processes is
gathered by the caller (`gather_rows`), so that every process finds the same pairs and returns the same value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.inputs import check_pair, check_positive, full_precision

_LEAST = 1e-12  # of a squared distance under a root, whose gradient is infinite at 0


@full_precision
def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """mean_i  max(0, |a_i - p_i|^2 - |a_i - n_i|^2 + margin).

    Args:
        anchor, positive, negative: (T, E), row i of all three one triplet; T = 0 gives 0.
        margin: > 0. FaceNet: 0.2, on unit rows.

    Source: Schroff et al. 2015, arXiv:1503.03832, eq. 2.
    """
    _check_rows("triplet", anchor, positive, negative)
    check_positive("triplet", margin=margin)
    if len(anchor) == 0:
        return anchor.sum()
    apart = (anchor - positive).square().sum(dim=1) - (anchor - negative).square().sum(dim=1)
    return F.relu(apart + margin).mean()


@full_precision
def contrastive_pair(a: Tensor, b: Tensor, same: Tensor, *, margin: float) -> Tensor:
    """Pairs of one class attract, others repel up to a distance: half the sum of the means over both kinds.

    1/2 mean_same 1/2 d^2  +  1/2 mean_other 1/2 max(0, margin - d)^2,  d = |a_i - b_i|

    Args:
        a, b: (P, E), row i of both one pair. same: (P,), true where they are of one class. Without such pairs: 0.
        margin: > 0.

    Source: Hadsell et al. 2006, DOI 10.1109/CVPR.2006.100, eq. 4.
    Differs: the paper sums over given pairs; all pairs of a batch are mostly of different classes, hence two means.
    """
    _check_rows("contrastive_pair", a, b)
    check_positive("contrastive_pair", margin=margin)
    if same.shape != a.shape[:1]:
        raise ShapeError(f"contrastive_pair: same has shape {tuple(same.shape)}; it must be ({len(a)},).")
    squared = (a - b).square().sum(dim=1)
    distance = squared.clamp_min(_LEAST).sqrt()
    attract, repel = squared / 2, F.relu(margin - distance).square() / 2
    means = [terms[kind].sum() / max(int(kind.sum()), 1) for terms, kind in ((attract, same), (repel, ~same))]
    return (means[0] + means[1]) / 2


@full_precision
def n_pair(anchors: Tensor, positives: Tensor, *, norm_weight: float = 0.0) -> Tensor:
    """mean_i log(1 + sum_{j != i} exp(a_i p_j - a_i p_i)) + norm_weight mean of |row|^2, inner products.

    Args:
        anchors, positives: (N, E), row i of both from class i: every class once. Not normalised in the paper.
        norm_weight: >= 0, of the squared norms of all 2N rows.

    Returns:
        Scalar in nats; equal rows give log(N).

    Source: Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", eq. 6 and section 3.2.2.
    """
    check_pair("n_pair", anchors, positives, ("anchors", "positives"))
    loss = F.cross_entropy(anchors @ positives.T, torch.arange(len(anchors), device=anchors.device))
    return loss + norm_weight * torch.cat([anchors, positives]).square().sum(dim=1).mean()


@full_precision
def center(embeddings: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """1/2 mean_i |x_i - c_{y_i}|^2: how far the rows lie from their class' centre.

    Args:
        embeddings: (B, E). labels: int64 (B,) in 0 .. N-1. centres: (N, E), which `center_steps` moves.

    Source: Wen et al. 2016, DOI 10.1007/978-3-319-46478-7_31, eq. 2; the mean where there is a sum.
    """
    if centres.ndim != 2 or embeddings.ndim != 2 or centres.shape[1] != embeddings.shape[1]:
        raise ShapeError(f"center: {tuple(embeddings.shape)} rows and {tuple(centres.shape)} centres do not fit.")
    return (embeddings - centres[labels]).square().sum(dim=1).mean() / 2


@full_precision
@torch.no_grad()
def center_steps(embeddings: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """sum over the n_j rows of class j of (x_i - c_j), divided by 1 + n_j: towards their mean, not quite as far.

    Args and source as for `center`, eq. 4 with the opposite sign. Returns (N, E); 0 for classes without a row.
    """
    sums = torch.zeros_like(centres).index_add_(0, labels, (embeddings - centres[labels]).to(centres.dtype))
    return sums / (1 + labels.bincount(minlength=len(centres)))[:, None]


def all_pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every two of B rows once: positions i < j, and whether they are of one class."""
    i, j = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    return i, j, labels[i] == labels[j]


def class_pairs(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Tuples for `n_pair`: positions of anchors and positives, of every class once; as many as use all rows.

    The first tuple has the first two rows of each class, the second the next two; one of a single class is left out.
    """
    order = labels.argsort(stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    tuples = []
    for k in range(int(counts.max()) // 2):
        first = starts[counts >= 2 * k + 2] + 2 * k
        if len(first) > 1:
            tuples.append((order[first], order[first + 1]))
    return tuples


@torch.no_grad()
def mined_triplets(embeddings: Tensor, labels: Tensor, *, mining: str) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (T,) of anchors, positives and negatives among B rows.

    hard: for each anchor its farthest positive and nearest negative (Hermans et al. 2017, arXiv:1703.07737). semihard:
    for each pair of one class the nearest negative beyond the positive, where there is none the farthest (Schroff et
    al. 2015, arXiv:1503.03832, section 3.2). all: every triplet.
    """
    distance = torch.cdist(embeddings.float(), embeddings.float())
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    has_both = positive.any(dim=1) & ~same.all(dim=1)
    if mining == "hard":
        i = has_both.nonzero()[:, 0]
        farthest = distance.masked_fill(~positive, -1).argmax(dim=1)
        nearest = distance.masked_fill(same, float("inf")).argmin(dim=1)
        return i, farthest[i], nearest[i]
    if mining == "semihard":
        i, p = (positive & has_both[:, None]).nonzero().T
        beyond = ~same[i] & (distance[i] > distance[i, p][:, None])
        nearest = distance[i].masked_fill(~beyond, float("inf")).argmin(dim=1)
        farthest = distance[i].masked_fill(same[i], -1).argmax(dim=1)
        return i, p, torch.where(beyond.any(dim=1), nearest, farthest)
    if mining == "all":
        i, p, n = (positive[:, :, None] & ~same[:, None, :]).nonzero().T
        return i, p, n
    raise ValueError(f"mined_triplets: mining={mining!r} is not accepted; give hard, semihard or all.")


def _check_rows(where: str, *rows: Tensor) -> None:
    if any(r.ndim != 2 or r.shape != rows[0].shape for r in rows):
        shapes = ", ".join(str(tuple(r.shape)) for r in rows)
        raise ShapeError(f"{where}: the rows have shapes {shapes}; all must be (T, E) and equal.")
