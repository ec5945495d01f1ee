"""Pieces of one view, cut from a grid with gaps: the tiles of a jigsaw, the neighbours of a patch.

What could solve a puzzle without seeing what is in the picture is taken away here: lines that run on from piece to
piece (gaps, random places), brightness and contrast (normalised per piece), colour fringes of the lens.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.augmentation import Augmentation
from attar.views.batches import Neighbours, Tiles
from attar.views.draws import Draws

Colours = Literal["drop", "project", "keep"]
FLAT = 1 / 64  # least standard deviation to divide by, of normalised values (of pixels a quarter): rounding lies below


def cut(images: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Square pieces of images (B, C, H, W) by the row and column of their corners: (B, ..., C, side, side).

    rows, columns: whole numbers (B, ..., C), or (B, ..., 1) where all channels are cut at the same place.
    """
    pixel = torch.arange(side, device=images.device)
    sample = torch.arange(len(images), device=images.device).view(-1, *[1] * (rows.ndim + 1))
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[sample, channel, (rows[..., None] + pixel)[..., None], (columns[..., None] + pixel)[..., None, :]]


@dataclass(frozen=True)
class MakeTiles:
    """One square view of each image, cut into G x G cells, a tile from each; and what a jigsaw's step must know.

    side: of a tile in pixels. The rest of its cell (view size / G) is the gap; the tile's place in it is random.
    channel_shift: each channel of a tile is moved by 0 to so many pixels more, in pictures that are not grey.
    normalise: every tile has mean 0 and standard deviation 1, over its pixel values in all channels together.
    num_permutations: the target is a number below this. max_foreign: 0 to so many tiles are to be replaced.
    """

    view: Augmentation
    _: KW_ONLY
    grid: int
    side: int
    num_permutations: int
    channel_shift: int = 0
    normalise: bool = True
    max_foreign: int = 0

    def __post_init__(self) -> None:
        cell = self.view.view_size // self.grid
        if self.side + self.channel_shift > cell:
            raise RecipeError(
                f"tiles of {self.side} pixels and a channel_shift of {self.channel_shift} do not fit into cells of "
                f"{cell}; use a larger gap or a smaller channel_shift."
            )

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Tiles:
        parameters = self.view.draw(batch, draws)
        images = self.view.apply(batch.canvases, parameters)  # (B, C, G cell, G cell)
        G, C = self.grid, images.shape[1]
        cell = images.shape[-1] // G
        corner = draws.integers(cell - self.side - self.channel_shift + 1, shape=(2, G * G))  # (B, 2, P)
        shift = draws.integers(self.channel_shift + 1, shape=(2, G * G, C)) * ~parameters.grey.view(-1, 1, 1, 1)
        rows, columns = (cell * _grid(G, images.device) + corner).unsqueeze(3).add(shift).unbind(1)  # (B, P, C) each
        tiles = cut(images, rows, columns, self.side)
        if self.normalise:
            tiles = self._of_equal_strength(tiles)
        return Tiles(
            tiles,
            draws.integers(self.num_permutations),
            draws.permutation(G * G)[:, : self.max_foreign],
            draws.permutation(G * G)[:, : self.max_foreign],
            draws.integers(self.max_foreign + 1),
            batch.index,
            batch.labels,
        )

    def _of_equal_strength(self, tiles: Tensor) -> Tensor:
        """In pixel values, where a grey tile stays grey: divided by a deviation for each channel, its brightness would
        show as a tint."""
        image = self.view.image
        std, mean = (torch.tensor(v, device=tiles.device).view(-1, 1, 1) for v in (image.std, image.mean))
        pixels = tiles * std + mean
        centred = pixels - pixels.mean(dim=(2, 3, 4), keepdim=True)
        return centred / centred.square().mean(dim=(2, 3, 4), keepdim=True).sqrt().clamp(min=FLAT / 4)


@dataclass(frozen=True)
class MakeNeighbours:
    """One square view of each image, and from it a patch with its eight neighbours; centred, of equal strength.

    side, gap: of a patch, and between patches, in pixels. displaced: a patch is moved by up to so many pixels in each
    direction. The view must be as large as `extent`.
    colours: what is done about the colour fringes of lenses, which tell where in the photograph a patch was:
        "drop"     one channel remains, another for each patch; the others become weak noise
        "project"  green against magenta, the axis of most fringes, is removed
        "keep"     nothing
    low_resolution: the share of patches that are made small, to smallest_share of their side or more, and large again.

    At the end the mean of every channel of a patch is 0, and the root mean square over all of them is 1.
    """

    view: Augmentation
    _: KW_ONLY
    side: int
    gap: int
    displaced: int
    colours: Colours = "drop"
    low_resolution: float = 0.0
    smallest_share: float = 10 / 96

    def __post_init__(self) -> None:
        if self.colours == "project" and self.view.image.channels not in (1, 3):
            raise RecipeError(
                f'colours="project" is defined for 3 channels (and does nothing for 1), these images have '
                f'{self.view.image.channels}; use colours="drop" or "keep".'
            )

    @staticmethod
    def extent(side: int, gap: int, displaced: int) -> int:
        """Side of the square that holds three patches, their gaps, and room to move at the border."""
        return 3 * side + 2 * gap + 2 * displaced

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Neighbours:
        images = self.view(batch, draws)
        moved = draws.integers(2 * self.displaced + 1, shape=(2, 9))  # (B, 2, P), from 0: the border has room for it
        corner = (self.side + self.gap) * _grid(3, images.device) + moved
        patches = cut(images, corner[:, 0, :, None], corner[:, 1, :, None], self.side)  # (B, P, C, h, w)
        if self.low_resolution > 0:
            patches = self._coarsened(patches, draws)
        patches = patches - patches.mean(dim=(3, 4), keepdim=True)
        if self.colours == "drop" and images.shape[1] > 1:
            patches = self._one_channel(patches, draws)
        if self.colours == "project" and images.shape[1] == 3:
            std = torch.tensor(self.view.image.std, device=patches.device)
            matrix = _without_green_magenta(patches.device) * std / std[:, None]  # for values divided by std
            patches = torch.einsum("dc,bpchw->bpdhw", matrix, patches)
        strength = patches.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
        return Neighbours(images, patches / strength.clamp(min=FLAT), batch.index, batch.labels)

    def _coarsened(self, patches: Tensor, draws: Draws) -> Tensor:
        """Some patches at a lower resolution; the number of pixels is uniform."""
        share = draws.uniform(self.smallest_share**2, 1.0, shape=(9,)).sqrt()
        size = (share * self.side).round().long().clamp(1, self.side)
        size = torch.where(draws.bernoulli(self.low_resolution, shape=(9,)), size, self.side)
        matrix = _down_and_up(self.side).to(patches.device)[size - 1].unsqueeze(2)  # (B, P, 1, h, h)
        return matrix @ patches @ matrix.transpose(-1, -2)

    def _one_channel(self, patches: Tensor, draws: Draws) -> Tensor:
        """Noise of 1/100 of the kept channel's strength in the others; one picture of noise serves an image."""
        C, side = patches.shape[2], patches.shape[3]
        kept = F.one_hot(draws.integers(C, shape=(9,)), C)[..., None, None].to(patches.dtype)  # (B, P, C, 1, 1)
        strength = (patches * kept).square().mean(dim=(3, 4), keepdim=True).sum(dim=2, keepdim=True).sqrt()
        noise = draws.normal(shape=(side, side))[:, None, None] * strength / 100
        return patches * kept + noise * (1 - kept)


def _grid(G: int, device: torch.device) -> Tensor:
    """Row and column of every cell in reading order, (2, G * G)."""
    number = torch.arange(G * G, device=device)
    return torch.stack([number // G, number % G])


def _without_green_magenta(device: torch.device) -> Tensor:
    """I - a a^T / (a^T a) with a = (-1, 2, -1), (3, 3)."""
    a = torch.tensor([-1.0, 2.0, -1.0], device=device)
    return torch.eye(3, device=device) - a[:, None] * a / (a @ a)


@lru_cache(maxsize=4)
def _down_and_up(side: int) -> Tensor:
    """Matrices (side, side, side): number n - 1 makes n rows of `side` rows, antialiased, and `side` rows of these."""
    one_to_one = torch.eye(side)[None, None]
    resize = lambda x, rows, antialias: F.interpolate(x, size=(rows, side), mode="bilinear", antialias=antialias)  # noqa: E731
    return torch.cat([resize(resize(one_to_one, n, True), side, False)[0] for n in range(1, side + 1)])
