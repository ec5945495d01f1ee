"""Features without learning: HOG and pixels. Controls of every evaluation, and teachers where a network could stand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("hog", "pixels")


def build(name: str, channels: int, image_size: int) -> nn.Module | None:
    """The module of that name, or None."""
    if name == "hog":
        return HOG(cell=8 if image_size >= 48 else 4)
    return Pixels(size=min(image_size, 16)) if name == "pixels" else None


class HOG(nn.Module):
    """Histograms of oriented gradients (Dalal and Triggs 2005).

    Central differences; of each pixel the channel with the largest gradient; 9 unsigned orientations with linear
    interpolation between neighbouring bins; cells of `cell` pixels; blocks of 2 x 2 cells, normalised by L2 with
    clipping at 0.2 (L2-Hys). Inputs may be normalised per channel: only differences count, and blocks are normalised.

    Bins begin at 0 degrees and their centres lie at 10, 30, … 170, as in scikit-image and OpenCV; so a gradient along
    x or against it, of a vertical edge, is exactly between the first and the last bin, and gives half to each.
    """

    def __init__(self, *, cell: int = 8, num_orientations: int = 9):
        super().__init__()
        self.cell, self.num_orientations = cell, num_orientations

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        """cells (B, 9, H / cell, W / cell) and blocks (B, 36, H / cell - 1, W / cell - 1)."""
        cells = self._cells(images.float())
        return {"cells": cells, "blocks": self._blocks(cells)}

    def forward(self, images: Tensor) -> Tensor:
        return self.stages_of(images)["blocks"].flatten(1)

    def _cells(self, images: Tensor) -> Tensor:
        dy, dx = torch.zeros_like(images), torch.zeros_like(images)
        dy[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
        dx[..., 1:-1] = images[..., 2:] - images[..., :-2]
        strongest = (dx.square() + dy.square()).argmax(dim=1, keepdim=True)
        dy, dx = dy.gather(1, strongest), dx.gather(1, strongest)
        magnitude = torch.sqrt(dx.square() + dy.square())
        position = torch.atan2(dy, dx).remainder(math.pi) / math.pi * self.num_orientations - 0.5  # in bins
        lower = torch.floor(position)
        share = position - lower
        bins = torch.arange(self.num_orientations, device=images.device).view(1, -1, 1, 1)
        lower = lower.long() % self.num_orientations
        upper = (lower + 1) % self.num_orientations
        votes = magnitude * ((bins == lower) * (1 - share) + (bins == upper) * share)
        return F.avg_pool2d(votes, self.cell)

    def _blocks(self, cells: Tensor) -> Tensor:
        corners = [cells[:, :, :-1, :-1], cells[:, :, :-1, 1:], cells[:, :, 1:, :-1], cells[:, :, 1:, 1:]]
        block = torch.cat(corners, dim=1)
        normalise = lambda x: x / torch.sqrt(x.square().sum(dim=1, keepdim=True) + 1e-10)  # noqa: E731
        return normalise(normalise(block).clamp(max=0.2))


class Pixels(nn.Module):
    """The image itself, averaged down to size x size."""

    def __init__(self, *, size: int):
        super().__init__()
        self.size = size

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        return {"means": F.adaptive_avg_pool2d(images.float(), self.size)}

    def forward(self, images: Tensor) -> Tensor:
        return self.stages_of(images)["means"].flatten(1)
