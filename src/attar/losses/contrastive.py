"""Contrastive losses: a row must find its partner among all candidates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attar.errors import ShapeError
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.inputs import check_pair, check_positive, check_width, full_precision

_MOST_LOGITS = 2**24  # held at a time when chunk_size is None: 64 MiB in float32


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float, chunk_size: int | None = None) -> Tensor:
    """Contrastive loss of SimCLR: each view must find its partner among all others.

    loss = mean_i  -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),  s = cosine similarity,
    where j is the other view of image i and the sum runs over the 2B - 1 other views.

    Args:
        z1, z2: embeddings of the two views, row i from the same image. Shape (B, E), any scale
            (normalised here). Across processes, pass local rows; negatives are gathered, with gradient.
        temperature: divisor of the similarities, > 0. Paper: 0.1 for ImageNet, 0.5 for CIFAR-10.
        chunk_size: anchors whose logits exist at a time. The value and the gradient do not depend on it; memory
            is chunk_size * 2B instead of 2B * 2B, for one more matrix product. None: as many as fit in 64 MiB.

    Returns:
        Scalar, mean over the (local) 2B anchors, in nats. Equal inputs give log(2B - 1).

    Raises:
        ShapeError: if the shapes differ or B * world_size < 2.
        RecipeError: if temperature or chunk_size <= 0.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1.
    Differs: the published code takes the mean over B pairs, which is twice this value.
    """
    check_pair("nt_xent", z1, z2, ("z1", "z2"))
    check_positive("nt_xent", temperature=temperature)
    anchors = F.normalize(torch.cat([z1, z2]), dim=1)
    candidates = gather_rows(anchors)  # rank after rank, each with its first and its second views
    if len(candidates) < 4:
        raise ShapeError(f"nt_xent: z1 and z2 of shape {tuple(z1.shape)} hold no negatives; pass at least 2 rows.")
    own = first_own_row(len(anchors)) + torch.arange(len(anchors), device=z1.device)
    return _softmax_loss(anchors, candidates, own.roll(len(z1)), temperature, excluded=own, chunk_size=chunk_size)


@full_precision
def info_nce(
    queries: Tensor, keys: Tensor, *, temperature: float, negatives: Tensor | None = None, chunk_size: int | None = None
) -> Tensor:
    """InfoNCE: a query must find its key, among the other keys of the batch or among a queue.

    loss = mean_i  -log( exp(q_i k_i / t) / (exp(q_i k_i / t) + sum_n exp(q_i n / t)) ),  cosine similarities.

    Args:
        queries, keys: (B, E), row i of both from the same sample, any scale (normalised here). Detach keys that a
            momentum teacher made. Across processes, pass local rows.
        temperature: divisor of the similarities, > 0. MoCo v1: 0.07, v2: 0.2.
        negatives: None: the other keys of the batch, gathered over processes, with gradient. (Q, E): only these rows
            (MoCo's queue); they get no gradient, and the keys of the batch are no negatives.
        chunk_size: as in `nt_xent`; without `negatives` only.

    Returns:
        Scalar, mean over the (local) queries, in nats. All rows equal: log B, or log(1 + Q) with negatives.

    Raises:
        ShapeError: if the shapes differ, or there is no negative.
        RecipeError: if temperature or chunk_size <= 0.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; He et al. 2020, arXiv:1911.05722, eq. 1.
    """
    check_pair("info_nce", queries, keys, ("queries", "keys"))
    check_positive("info_nce", temperature=temperature)
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    if negatives is None:
        candidates = gather_rows(k)
        if len(candidates) < 2:
            raise ShapeError(f"info_nce: keys of shape {tuple(keys.shape)} hold no negatives; pass at least 2 rows.")
        own = first_own_row(len(k)) + torch.arange(len(k), device=k.device)
        return _softmax_loss(q, candidates, own, temperature, chunk_size=chunk_size)
    check_width("info_nce", negatives, "negatives", queries.shape[1])
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ F.normalize(negatives.detach(), dim=1).T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@full_precision
def bilinear_nce(predictions: Tensor, targets: Tensor, positive: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """InfoNCE of CPC: a prediction must find the embedding it is meant for among all others, by plain dot products.

    loss = mean_i  -log( exp(p_i . z_{y_i}) / sum_j exp(p_i . z_j) );  no normalisation, no temperature.

    Args:
        predictions: (N, E), W c. targets: (M, E), the embeddings z, with gradient. Across processes, pass local rows;
            targets are gathered, with gradient.
        positive: (N,), y: which of the local targets each prediction is meant for. Targets may be meant by many
            predictions or by none; those are negatives only.
        chunk_size: as in `nt_xent`.

    Returns:
        Scalar, mean over the (local) predictions, in nats. Predictions of zero give log M.

    Raises:
        ShapeError: if the shapes do not fit, or there is no negative. RecipeError: if chunk_size <= 0.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 3 and 4.
    """
    fits = predictions.ndim == 2 and targets.ndim == 2 and predictions.shape[1] == targets.shape[1]
    if not fits or positive.shape != predictions.shape[:1] or len(predictions) == 0:
        raise ShapeError(
            f"bilinear_nce: predictions {tuple(predictions.shape)}, targets {tuple(targets.shape)} and positive "
            f"{tuple(positive.shape)} do not fit; they must be (N, E), (M, E) and (N,), with N >= 1."
        )
    candidates = gather_rows(targets)
    if len(candidates) < 2:
        raise ShapeError(f"bilinear_nce: targets of shape {tuple(targets.shape)} hold no negatives; pass at least 2.")
    return _softmax_loss(predictions, candidates, first_own_row(len(targets)) + positive, 1.0, chunk_size=chunk_size)


def _softmax_loss(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    temperature: float,
    *,
    excluded: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean cross-entropy of finding candidate positive[i] for anchor i, without candidate excluded[i].

    Blocks of anchors are recomputed in the backward pass, so no more than one block of logits ever exists.
    """
    if chunk_size is None:
        chunk_size = max(_MOST_LOGITS // len(candidates), 1)
    check_positive("chunk_size", chunk_size=chunk_size)

    def block_sum(rows: Tensor, everything: Tensor, target: Tensor, skip: Tensor | None) -> Tensor:
        logits = rows @ everything.T / temperature
        if skip is not None:
            logits = logits.scatter(1, skip[:, None], float("-inf"))
        return F.cross_entropy(logits, target, reduction="sum")

    if len(anchors) <= chunk_size:
        return block_sum(anchors, candidates, positive, excluded) / len(anchors)
    total = anchors.new_zeros(())
    for start in range(0, len(anchors), chunk_size):
        block = slice(start, start + chunk_size)
        skip = None if excluded is None else excluded[block]
        total = total + checkpoint(
            block_sum, anchors[block], candidates, positive[block], skip, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(anchors)
