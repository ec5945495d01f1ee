"""FeatureQueue: a first-in first-out store of embeddings."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError, ShapeError

logger = logging.getLogger("attar")


def warn_of_long_queue(method: str, length: int, num_images: int, *, field: str = "queue_length") -> None:
    """A queue longer than the data holds keys of the very images that are compared with it."""
    if length > num_images:
        logger.warning(
            "%s: the queue of %d keys is longer than the data (%d images), so images meet their own earlier "
            "keys in it; consider -s %s=%d.",
            method,
            length,
            num_images,
            field,
            max(num_images // 2, 1),
        )


class FeatureQueue(nn.Module):
    """The last Q embeddings, in fp32, as part of the method's state.

    rows: (Q, E), at first random unit vectors of the seed; detached always. pointer: where the next row goes.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int, seed: int = 0):
        super().__init__()
        if length < 1:
            raise RecipeError(f"queue_length={length}; it must be at least 1.")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", F.normalize(torch.randn(length, dim, generator=generator), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows; the order of `rows` is kept, and any number wraps around.

        Across processes pass the gathered rows, so that all queues stay equal. (B, E).
        """
        length, dim = self.rows.shape
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ShapeError(f"FeatureQueue.push: rows have shape {tuple(rows.shape)}; this queue takes (B, {dim}).")
        skipped = max(len(rows) - length, 0)  # only the last Q can stay
        places = (self.pointer + skipped + torch.arange(len(rows) - skipped, device=self.rows.device)) % length
        self.rows[places] = rows[skipped:].to(self.rows)
        self.pointer.copy_((self.pointer + len(rows)) % length)
