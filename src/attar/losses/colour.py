"""The loss of colorization: cross-entropy against colours that are shared among a few bins."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.inputs import full_precision


@full_precision
def colour_cross_entropy(logits: Tensor, numbers: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of every pixel against its few nearest bins.

    loss = 1 / (B h w) sum_{b,y,x} - weights_byx sum_k shares_bkyx log softmax(logits_b.yx)[numbers_bkyx]

    Args:
        logits: (B, Q, h, w). numbers: int (B, K, h, w), the bins each colour is shared among. shares: (B, K, h, w),
            summing to 1 over K. weights: (B, h, w), of the pixels.

    Returns:
        Scalar, in nats. Equal logits and weights of 1 give log Q.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 2.
    Differs: the mean over pixels and images; the paper writes the sum over pixels. The published code applies the
    weights to the gradient only, so that it prints the unweighted loss; the gradient is the same.
    """
    B, Q, h, w = logits.shape if logits.ndim == 4 else (0, 0, 0, 0)
    K = numbers.shape[1] if numbers.ndim == 4 else 0
    if not B * Q * h * w * K or numbers.shape != (B, K, h, w) or shares.shape != numbers.shape:
        raise ShapeError(
            f"colour_cross_entropy: logits have shape {tuple(logits.shape)}, numbers {tuple(numbers.shape)} and shares "
            f"{tuple(shares.shape)}; (B, Q, h, w) and twice (B, K, h, w) are needed."
        )
    if weights.shape != (B, h, w):
        raise ShapeError(f"colour_cross_entropy: weights have shape {tuple(weights.shape)}; {(B, h, w)} are needed.")
    log_probability = torch.log_softmax(logits, dim=1).gather(1, numbers)  # (B, K, h, w)
    return -(weights * (shares * log_probability).sum(dim=1)).mean()
