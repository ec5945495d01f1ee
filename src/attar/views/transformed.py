"""A view of each image beside transformed ones: turned, shuffled, or strongly augmented."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.batches import Transformed
from attar.views.draws import Draws
from attar.views.makers import View

# (views (B, C, H, W), number of the block from 1, draws) -> transformed views, which transformation it was (B,)
Transformation = Callable[[Tensor, int, Draws], tuple[Tensor, Tensor]]

ORDERS = tuple(itertools.permutations(range(4)))  # of the four quarters; the first leaves them where they are


@dataclass(frozen=True)
class MakeTransformed:
    """One view of each image, and num_transformed further views of it, each drawn anew and then transformed."""

    view: View
    further: View
    transformation: Transformation
    _: KW_ONLY
    num_transformed: int = 3

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Transformed:
        images = self.view(batch, draws)
        blocks = [
            self.transformation(self.further(batch, draws), number + 1, draws) for number in range(self.num_transformed)
        ]
        transformed, targets = (torch.cat(parts) for parts in zip(*blocks))
        return Transformed(images, transformed, targets, batch.index, batch.labels)


def turned(images: Tensor, number: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Block r is turned counter-clockwise by r quarter turns."""
    return torch.rot90(images, number, (2, 3)), torch.full((len(images),), number % 4, device=images.device)


def turned_at_random(images: Tensor, number: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Each by a number of quarter turns of its own; the number is no question."""
    turns = draws.integers(4)
    every = torch.stack([torch.rot90(images, r, (2, 3)) for r in range(4)])
    return every[turns, torch.arange(len(images), device=images.device)], torch.zeros_like(turns)


def shuffled(images: Tensor, number: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """The four quarters in one of the other 23 orders; the order is the question.

    Raises:
        RecipeError: for images that have no quarters, as their side is odd.
    """
    if images.shape[2] % 2 or images.shape[3] % 2:
        raise RecipeError(f"task=jigsaw: a side of {images.shape[2]} pixels has no halves; give an even --image-size.")
    target = 1 + draws.integers(len(ORDERS) - 1)  # (B,)
    order = torch.tensor(ORDERS, device=images.device)[target]  # (B, 4)
    rows = torch.stack([half for rows in images.chunk(2, dim=2) for half in rows.chunk(2, dim=3)], dim=1)
    quarters = rows[torch.arange(len(images), device=images.device)[:, None], order]  # (B, 4, C, h, w)
    above, below = (torch.cat(list(pair.unbind(1)), dim=3) for pair in quarters.chunk(2, dim=1))
    return torch.cat([above, below], dim=2), target


def as_drawn(images: Tensor, number: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """The further view as it is."""
    return images, torch.zeros(len(images), dtype=torch.long, device=images.device)
