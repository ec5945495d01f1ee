"""Noise-contrastive estimation against a memory bank: is this row the image's own, or was it drawn at random?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import gather_rows
from attar.losses.inputs import check_pair, check_positive, check_width, full_precision


@full_precision
def nce(
    embeddings: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    num_images: int,
    partition: Tensor,
    excluded: Tensor | None = None,
) -> Tensor:
    """NCE of InstDisc and CMC: tell the image's own row from K rows drawn uniformly from all n.

    P(M | v) = exp(v M / t) / Z,  h(M, v) = P / (P + K / n),  cosine similarities,
    loss = mean_i  -log h(M_i, v_i) - sum_k log(1 - h(M_k, v_i))

    Args:
        embeddings: v, (B, E), any scale (normalised here).
        positives: M_i, (B, E), row i of the same image. No gradient.
        negatives: M_k, (K, E), shared by all embeddings, drawn with replacement. No gradient.
        temperature: > 0. Paper: 0.07.
        num_images: n, of the bank.
        partition: Z, one number > 0, kept through training (`nce_partition`).
        excluded: bool (B, K), True where a drawn row is no negative of an embedding: of the same class, in CRD. That
            is drawing from the rest, as both K and n shrink by the same share.

    Returns:
        Scalar, mean over rows, **sum** over the K negatives, in nats. P = 1/n everywhere:
        log(1 + K) + K log(1 + 1/K).

    Raises:
        ShapeError: if the shapes do not fit, or partition is not one number.
        RecipeError: if temperature or num_images <= 0.

    Source: Wu et al. 2018, arXiv:1805.01978, eq. 4 to 7.
    Differs: published code adds 1e-7 to the denominators; here log h is the logistic function of
    log P - log(K/n), which needs no such guard.
    """
    _check("nce", embeddings, positives, negatives, temperature, num_images)
    if partition.numel() != 1:
        raise ShapeError(f"nce: partition has shape {tuple(partition.shape)}; it is one number, the same for all rows.")
    offset = partition.log() + math.log(len(negatives) / num_images)
    positive, negative = _scores(embeddings, positives, negatives, temperature)
    noise = F.softplus(negative - offset)
    if excluded is not None:
        if excluded.shape != noise.shape:
            raise ShapeError(f"nce: excluded has shape {tuple(excluded.shape)}; it must be {tuple(noise.shape)}.")
        noise = noise.masked_fill(excluded, 0.0)
    return (F.softplus(offset - positive) + noise.sum(dim=1)).mean()


@full_precision
@torch.no_grad()
def nce_partition(
    embeddings: Tensor, positives: Tensor, negatives: Tensor, *, temperature: float, num_images: int
) -> Tensor:
    """Z of `nce` as estimated from one batch: n times the mean of exp(v M / t) over positives and negatives.

    The mean is over all processes' rows. Arguments as in `nce`; gives one number, without gradient.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.2; the first batch is enough, and Z stays what it was.
    """
    _check("nce_partition", embeddings, positives, negatives, temperature, num_images)
    positive, negative = _scores(embeddings, positives, negatives, temperature)
    mean = torch.cat([positive[:, None], negative], dim=1).exp().mean()
    return num_images * gather_rows(mean[None]).mean()


def _scores(embeddings: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """v M / t: of the own rows (B,), of the drawn ones (B, K)."""
    v = F.normalize(embeddings, dim=1)
    own, drawn = F.normalize(positives.detach(), dim=1), F.normalize(negatives.detach(), dim=1)
    scaled = v / temperature
    return (scaled * own).sum(dim=1), scaled @ drawn.T


def _check(
    where: str, embeddings: Tensor, positives: Tensor, negatives: Tensor, temperature: float, num_images: int
) -> None:
    check_pair(where, embeddings, positives, ("embeddings", "positives"))
    check_width(where, negatives, "negatives", embeddings.shape[1])
    check_positive(where, temperature=temperature, num_images=num_images)
