"""Where a view looks: boxes (B, 4) = top, left, height, width in canvas pixels, always inside the real rectangle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attar.views.draws import Draws

_TRIES = 10


def random_resized_boxes(
    rectangles: Tensor, draws: Draws, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """The random resized crop of GoogLeNet, as torchvision draws it: the first of ten candidates that fits.

    Args:
        rectangles: real pixels of each canvas, (B, 4), whole numbers.
        scale: smallest and largest share of the rectangle's area.
        ratio: smallest and largest width / height; the logarithm is uniform.

    Returns:
        Whole-numbered boxes (B, 4). Where no candidate fits: the central box of the nearest allowed ratio.
    """
    top, left, height, width = rectangles.unbind(1)
    area = (height * width)[:, None] * draws.uniform(*scale, shape=(_TRIES,))
    log_ratio = draws.uniform(math.log(ratio[0]), math.log(ratio[1]), shape=(_TRIES,))
    place = draws.uniform(shape=(2,))

    widths = torch.round(torch.sqrt(area * log_ratio.exp()))
    heights = torch.round(torch.sqrt(area / log_ratio.exp()))
    fits = (widths >= 1) & (widths <= width[:, None]) & (heights >= 1) & (heights <= height[:, None])
    first = fits.byte().argmax(dim=1, keepdim=True)
    box_height = heights.gather(1, first).squeeze(1)
    box_width = widths.gather(1, first).squeeze(1)
    box_top = torch.floor(place[:, 0] * (height - box_height + 1))
    box_left = torch.floor(place[:, 1] * (width - box_width + 1))

    central_height = torch.minimum(height, torch.round(width / ratio[0]).clamp_(min=1))
    central_width = torch.minimum(width, torch.round(height * ratio[1]).clamp_(min=1))
    central_top = torch.floor((height - central_height) / 2)
    central_left = torch.floor((width - central_width) / 2)

    drawn = torch.stack([top + box_top, left + box_left, box_height, box_width], dim=1)
    central = torch.stack([top + central_top, left + central_left, central_height, central_width], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), drawn, central)


def central_boxes(rectangles: Tensor, *, fraction: float = 1.0) -> Tensor:
    """The central square whose side is this fraction of the rectangle's shorter side, (B, 4), not rounded."""
    top, left, height, width = rectangles.unbind(1)
    side = fraction * torch.minimum(height, width)
    return torch.stack([top + (height - side) / 2, left + (width - side) / 2, side, side], dim=1)


def box_matrices(boxes: Tensor, output_size: int, flip: Tensor | None = None) -> Tensor:
    """The transform from a view's pixels to the canvas' pixels, (B, 3, 3), for column vectors (x, y, 1).

    Coordinates are continuous and shared by both pictures: the pixel in row i and column j covers
    [j, j + 1) x [i, i + 1), its centre is (j + 0.5, i + 0.5). A mirrored view has a negative first entry.
    """
    top, left, height, width = boxes.unbind(1)
    matrices = boxes.new_zeros(len(boxes), 3, 3)
    matrices[:, 0, 0], matrices[:, 0, 2] = width / output_size, left
    matrices[:, 1, 1], matrices[:, 1, 2] = height / output_size, top
    matrices[:, 2, 2] = 1
    if flip is not None:
        matrices[:, 0, 0] = torch.where(flip, -width, width) / output_size
        matrices[:, 0, 2] = torch.where(flip, left + width, left)
    return matrices
