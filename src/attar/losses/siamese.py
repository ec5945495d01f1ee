"""Losses of siamese methods without negatives: a prediction meets a target that gets no gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.losses.inputs import check_pair, full_precision


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of -cos(prediction, target). The target is detached.

    Args:
        prediction, target: (B, E), any scale, row i of both from the same image.

    Returns:
        Scalar in [-1, 1]; -1 when the directions agree.

    Source: Chen and He 2021 (SimSiam), arXiv:2011.10566, eq. 1.
    """
    check_pair("negative_cosine", prediction, target, ("prediction", "target"))
    return -(F.normalize(prediction, dim=1) * F.normalize(target.detach(), dim=1)).sum(dim=1).mean()


@full_precision
def byol_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of the squared distance between unit vectors, 2 - 2 cos. The target is detached.

    One direction; BYOL's loss is the sum of both, in [0, 8].

    Args:
        prediction, target: (B, E), any scale, row i of both from the same image.

    Returns:
        Scalar in [0, 4]; 2 when orthogonal.

    Source: Grill et al. 2020, arXiv:2006.07733, eq. 2.
    """
    check_pair("byol_regression", prediction, target, ("prediction", "target"))
    return 2.0 + 2.0 * negative_cosine(prediction, target)
