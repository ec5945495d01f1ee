"""Contrastive losses: a row must find its partner among all candidates."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attar.errors import ShapeError
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.inputs import check_pair, check_positive, check_width, full_precision

_MOST_LOGITS = 2**24  # held at a time when chunk_size is None: 64 MiB in float32


@full_precision
def nt_xent(
    z1: Tensor, z2: Tensor, *, temperature: float, memory: Tensor | None = None, chunk_size: int | None = None
) -> Tensor:
    """Contrastive loss of SimCLR: each view must find its partner among all others.

    loss = mean_i  -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),  s = cosine similarity,
    where j is the other view of image i and the sum runs over the 2B - 1 other views and the memory.

    Args:
        z1, z2: embeddings of the two views, row i from the same image. Shape (B, E), any scale
            (normalised here). Across processes, pass local rows; negatives are gathered, with gradient.
        temperature: divisor of the similarities, > 0. Paper: 0.1 for ImageNet, 0.5 for CIFAR-10.
        memory: (Q, E), more negatives, the same on all processes; they get no gradient.
        chunk_size: anchors whose logits exist at a time. The value and the gradient do not depend on it; memory
            is chunk_size * (2B + Q) instead of 2B * (2B + Q), for one more matrix product. None: what fits in 64 MiB.

    Returns:
        Scalar, mean over the (local) 2B anchors, in nats. Equal inputs give log(2B - 1), or log(2B - 1 + Q).

    Raises:
        ShapeError: if the shapes differ or B * world_size < 2.
        RecipeError: if temperature or chunk_size <= 0.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1; the memory: arXiv:2006.10029, section 3.
    Differs: the published code takes the mean over B pairs, which is twice this value.
    """
    check_pair("nt_xent", z1, z2, ("z1", "z2"))
    check_positive("nt_xent", temperature=temperature)
    anchors = F.normalize(torch.cat([z1, z2]), dim=1)
    candidates = gather_rows(anchors)  # rank after rank, each with its first and its second views
    if len(candidates) < 4:
        raise ShapeError(f"nt_xent: z1 and z2 of shape {tuple(z1.shape)} hold no negatives; pass at least 2 rows.")
    own = first_own_row(len(anchors)) + torch.arange(len(anchors), device=z1.device)
    if memory is not None:
        check_width("nt_xent", memory, "memory", z1.shape[1])
        candidates = torch.cat([candidates, F.normalize(memory.detach(), dim=1).to(candidates)])
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
        chunk_size: as in `nt_xent`.

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
    rows = F.normalize(negatives.detach(), dim=1)

    def block_sum(block: slice) -> Tensor:
        scaled = q[block] / temperature  # not the logits, which are more
        logits = torch.cat([(scaled * k[block]).sum(dim=1, keepdim=True), scaled @ rows.T], dim=1)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")

    return _mean_over_blocks(block_sum, len(q), len(rows), chunk_size)


@full_precision
def instance_softmax(
    embeddings: Tensor, bank: Tensor, positions: Tensor, *, temperature: float, chunk_size: int | None = None
) -> Tensor:
    """Non-parametric softmax of InstDisc: which of all training images is this? The bank is the classifier.

    loss = mean_i  -log( exp(v_i M_p(i) / t) / sum_j exp(v_i M_j / t) ),  cosine similarities.

    Args:
        embeddings: v, (B, E), any scale (normalised here).
        bank: M, (N, E), one row per training image; no gradient.
        positions: p, int64 (B,), the row of each image in the bank.
        temperature: > 0. Paper: 0.07; published CIFAR-10 code: 0.1.
        chunk_size: as in `nt_xent`; memory is chunk_size * N.

    Returns:
        Scalar, mean over rows, in nats. All rows of the bank equal: log N.

    Raises:
        ShapeError: if the widths differ, or there is not one position a row.
        RecipeError: if temperature or chunk_size <= 0.

    Source: Wu et al. 2018, arXiv:1805.01978, eq. 2.
    """
    check_width("instance_softmax", embeddings, "embeddings", bank.shape[-1])
    check_width("instance_softmax", bank, "bank", embeddings.shape[1])
    check_positive("instance_softmax", temperature=temperature)
    if positions.shape != embeddings.shape[:1]:
        raise ShapeError(
            f"instance_softmax: positions have shape {tuple(positions.shape)}; "
            f"each of {len(embeddings)} embeddings needs one."
        )
    v, rows = F.normalize(embeddings, dim=1), F.normalize(bank.detach(), dim=1)
    return _softmax_loss(v, rows, positions, temperature, chunk_size=chunk_size)


@full_precision
def inva_spread(z1: Tensor, z2: Tensor, *, temperature: float) -> Tensor:
    """InvaSpread: a view must be recognised as its image, and no other view may be.

    P_i(j) = exp(s_ij / t) / sum_{k != i} exp(s_ik / t),  s = cosine similarity, over the 2B views,
    loss = mean_i  -log P_i(i') - sum_{j != i, i'} log(1 - P_i(j)),  i' the other view of the same image.

    Args:
        z1, z2: embeddings of the two views, row i from the same image. Shape (B, E), any scale. Across processes,
            pass local rows; the others are gathered.
        temperature: > 0. Paper: 0.1.

    Returns:
        Scalar, mean over the (local) 2B views, in nats. All rows equal, M = 2B - 1: log M + (M - 1) log(M / (M - 1)).

    Raises:
        ShapeError: if the shapes differ or there are no negatives.
        RecipeError: if temperature <= 0.

    Source: Ye et al. 2019, arXiv:1904.03436, eq. 4 to 8, in the symmetric form of the published code: both views
    are recognised, each among all others, and the second factor of every similarity gets no gradient. (Every pair
    occurs in both orders, so all embeddings are trained.)
    """
    check_pair("inva_spread", z1, z2, ("z1", "z2"))
    check_positive("inva_spread", temperature=temperature)
    views = F.normalize(torch.cat([z1, z2]), dim=1)
    candidates = gather_rows(views.detach())
    if len(candidates) < 4:
        raise ShapeError(f"inva_spread: z1 and z2 of shape {tuple(z1.shape)} hold no negatives; pass at least 2 rows.")
    own = (first_own_row(len(views)) + torch.arange(len(views), device=z1.device))[:, None]
    partner = own.roll(len(z1), dims=0)
    logits = ((views / temperature) @ candidates.T).scatter(1, own, float("-inf"))
    log_p = logits.log_softmax(dim=1)
    negatives = log_p.scatter(1, partner, float("-inf")).clamp(max=-1e-7)  # P = 1 would have no log(1 - P)
    log_not = torch.log(-torch.expm1(negatives))  # log(1 - P), exact for small and large P; 0 where P is masked
    return -(log_p.gather(1, partner).squeeze(1) + log_not.sum(dim=1)).mean()


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
    """Mean cross-entropy of finding candidate positive[i] for anchor i, without candidate excluded[i]."""

    def block_sum(block: slice) -> Tensor:
        logits = (anchors[block] / temperature) @ candidates.T  # the logits are more to divide
        if excluded is not None:
            logits = logits.scatter(1, excluded[block][:, None], float("-inf"))
        return F.cross_entropy(logits, positive[block], reduction="sum")

    return _mean_over_blocks(block_sum, len(anchors), len(candidates), chunk_size)


def _mean_over_blocks(
    block_sum: Callable[[slice], Tensor], num_rows: int, num_candidates: int, chunk_size: int | None
) -> Tensor:
    """Sum of block_sum over blocks of rows, divided by num_rows; no more than one block of logits ever exists.

    Blocks are recomputed in the backward pass, unless there is only one.
    """
    if chunk_size is None:
        chunk_size = max(_MOST_LOGITS // num_candidates, 1)
    check_positive("chunk_size", chunk_size=chunk_size)
    if num_rows <= chunk_size:
        return block_sum(slice(0, num_rows)) / num_rows
    blocks = [slice(start, start + chunk_size) for start in range(0, num_rows, chunk_size)]
    sums = [checkpoint(block_sum, block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return sum(sums[1:], sums[0]) / num_rows


@full_precision
def cosine_margin(cosines: Tensor, targets: Tensor, *, margin: float) -> Tensor:
    """Each row's true column must lead every other by a margin: a triplet loss over all negatives of a batch.

    loss = mean_i mean_{j != y_i} max( 0, margin + c_ij - c_iy )

    Args:
        cosines: (B, N), N >= 2. targets: (B,) true columns. margin: > 0.

    Returns:
        Scalar >= 0; equal cosines give the margin.

    Source: Schroff et al. 2015, arXiv:1503.03832, eq. 3, with cosines for distances and all negatives.
    """
    if cosines.ndim != 2 or targets.shape != cosines.shape[:1] or len(targets) == 0 or cosines.shape[1] < 2:
        raise ShapeError(
            f"cosine_margin: cosines have shape {tuple(cosines.shape)} and targets {tuple(targets.shape)}; give "
            "(B, N), N >= 2, and (B,)."
        )
    check_positive("cosine_margin", margin=margin)
    own = cosines.gather(1, targets[:, None])
    excess = F.relu(margin + cosines - own).scatter(1, targets[:, None], 0.0)
    return excess.sum(dim=1).mean() / (cosines.shape[1] - 1)
