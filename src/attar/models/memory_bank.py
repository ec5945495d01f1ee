"""MemoryBank: one embedding per training image, from when the image was last seen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError, ShapeError


class MemoryBank(nn.Module):
    """Unit rows keyed by stable sample id, in fp32, as part of the method's state.

    Args:
        ids: the stable ids of the training images; they may have gaps.
        dim: width E of the embeddings. momentum: weight of the old row in an update, in [0, 1).
        seed: of the first rows (random unit vectors) and of the negatives.

    rows: (num_ids, E); rows of ids without an image are never drawn, compared or moved.
    ids: (N,), ascending. partition: Z of NCE against these rows, 0 until it is estimated.
    """

    rows: Tensor
    ids: Tensor
    partition: Tensor

    def __init__(self, ids: np.ndarray, dim: int, *, momentum: float, seed: int = 0):
        super().__init__()
        if not 0 <= momentum < 1:
            raise RecipeError(f"bank_momentum={momentum} is not accepted; give a number in [0, 1), e.g. 0.5.")
        self.momentum, self.seed = momentum, seed
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", F.normalize(torch.randn(int(ids.max()) + 1, dim, generator=generator), dim=1))
        self.register_buffer("ids", torch.from_numpy(np.sort(ids)), persistent=False)  # known from the images
        self.register_buffer("partition", torch.zeros(()))

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, index: Tensor) -> Tensor:
        """Where these ids stand among `ids`, that is, in `rows[ids]`."""
        return torch.searchsorted(self.ids, index)

    def draw(self, num: int, step: int) -> Tensor:
        """(num, E): the rows of random images, with replacement; the same on every process at a step."""
        return self.rows[self.draw_ids(num, step)]

    def draw_ids(self, num: int, step: int) -> Tensor:
        """(num,): the ids of random images, with replacement; the same on every process at a step."""
        positions = np.random.default_rng([self.seed, step]).integers(len(self), size=num)
        return self.ids[torch.from_numpy(positions).to(self.ids.device)]

    @torch.no_grad()
    def update(self, index: Tensor, embeddings: Tensor) -> None:
        """row <- n(momentum row + (1 - momentum) n(embedding)), n(v) = v / |v|; each id at most once a call.

        Across processes pass the gathered ids and embeddings, so that all banks stay equal. (B,), (B, E).
        """
        if embeddings.shape != (len(index), self.rows.shape[1]):
            raise ShapeError(
                f"MemoryBank.update: embeddings have shape {tuple(embeddings.shape)}; {len(index)} ids need "
                f"({len(index)}, {self.rows.shape[1]})."
            )
        moved = F.normalize(embeddings.to(self.rows), dim=1).lerp(self.rows[index], self.momentum)
        self.rows[index] = F.normalize(moved, dim=1)
