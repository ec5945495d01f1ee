"""The Kozachenko-Leonenko regulariser: no embedding comes too near to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.inputs import full_precision

_EPSILON = 1e-8  # of the published code, in the distance and in the logarithm: duplicates stay finite


@full_precision
def koleo(embeddings: Tensor) -> Tensor:
    """Spread embeddings evenly over the sphere: each row pushes its nearest neighbour away.

    loss = mean_i  -log( |x_i - x_n(i)| ),  x = embeddings of unit length, n(i) the nearest other row.

    Args:
        embeddings: (B, E), any scale. Across processes, pass local rows; neighbours are sought among all rows, and
            get their gradient, too.

    Returns:
        Scalar, mean over own rows. Orthonormal rows: -log(2) / 2; equal rows: large, but finite.

    Raises:
        ShapeError: if the embeddings are not (B, E) or fewer than two in all.

    Source: Sablayrolles et al. 2019, arXiv:1806.03198, eq. 3; in DINOv2, arXiv:2304.07193, section 4.
    Differs: DINOv2's published code seeks neighbours on one device only; here over all processes, so that the loss
    does not depend on their number.
    """
    if embeddings.ndim != 2:
        raise ShapeError(f"koleo: embeddings have shape {tuple(embeddings.shape)}; they must be (B, E).")
    own = F.normalize(embeddings, dim=1)
    everyone = gather_rows(own)
    if len(everyone) < 2:
        raise ShapeError("koleo: one embedding has no neighbour; give at least two rows over all processes.")
    with torch.no_grad():
        similarity = own @ everyone.T
        rows = torch.arange(len(own), device=own.device)
        similarity[rows, rows + first_own_row(len(own))] = -2.0  # not oneself
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(own, everyone[nearest], eps=_EPSILON)
    return -(distance + _EPSILON).log().mean()
