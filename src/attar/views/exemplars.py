"""Exemplars: a part of each image, and random transformations of it: moved, scaled, turned, recoloured.

The part is the same in every epoch, a function of the image and its id. Transformations are applied to the image and
not to the part, so that what comes into sight at the edges is what is there in the picture.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch, ImageSpec
from attar.errors import RecipeError
from attar.views.batches import Exemplars
from attar.views.colour import adjust_hue, contrast_of_components, contrast_of_hsv
from attar.views.draws import Draws

_PLACES = 0x5EED  # the seed of the draws of places, which no run changes


@dataclass(frozen=True)
class MakeExemplars:
    """A seed of each image and num_samples transformations of it; all numbers are drawn for each sample anew.

    seed_scale: side of a seed as a share of the image's shorter side. num_candidates: places of which the seed is one,
    drawn with a probability in proportion to the mean squared gradient there.
    translation: largest shift in each direction, as a share of the seed's side. scale: factor of the side.
    rotation: largest angle, degrees. components: factor of each principal component of colour. power, factor, offset:
    of the saturation and value of HSV. hue: largest shift, of a full turn. Factors and powers are
    log-uniform, so that those that enlarge are as frequent as those that lessen; the others are uniform.
    """

    image: ImageSpec
    _: KW_ONLY
    num_samples: int = 1
    seed_scale: tuple[float, float] = (0.33, 0.66)
    num_candidates: int = 16
    translation: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    rotation: float = 20.0
    components: tuple[float, float] = (0.5, 2.0)
    power: tuple[float, float] = (0.25, 4.0)
    factor: tuple[float, float] = (0.7, 1.4)
    offset: float = 0.1
    hue: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.seed_scale
        if not 0 < low <= high <= 1:
            raise RecipeError(f"seed_scale={self.seed_scale} is not accepted; give a range with 0 < low <= high <= 1.")
        for name in ("scale", "components", "power", "factor"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RecipeError(f"{name}={(low, high)} is not accepted; give a range with 0 < low <= high.")

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Exemplars:
        pixels = batch.canvases.float() / 255
        boxes = seed_boxes(
            pixels, batch.rectangles, batch.index, scale=self.seed_scale, num_candidates=self.num_candidates
        )
        seeds = self._normalised(self._cut(pixels, batch.rectangles, boxes, torch.zeros_like(boxes[:, 0])))
        samples = [self._sample(pixels, batch.rectangles, boxes, draws) for _ in range(self.num_samples)]
        return Exemplars(seeds, samples, batch.index, batch.labels)

    def _sample(self, pixels: Tensor, rectangles: Tensor, boxes: Tensor, draws: Draws) -> Tensor:
        side = boxes[:, 2:]  # (B, 1)
        moved = boxes[:, :2] + draws.uniform(-self.translation, self.translation, shape=(2,)) * side
        scaled = side * _log_uniform(draws, self.scale, 1)
        angle = draws.uniform(-self.rotation, self.rotation) * math.pi / 180
        images = self._cut(pixels, rectangles, torch.cat([moved, scaled], dim=1), angle)
        channels = images.shape[1]
        images = contrast_of_components(images, _log_uniform(draws, self.components, channels)).clamp_(0, 1)
        power, factor = _log_uniform(draws, self.power, 2), _log_uniform(draws, self.factor, 2)
        images = contrast_of_hsv(images, power, factor, draws.uniform(-self.offset, self.offset, shape=(2,)))
        if channels == 3:  # other images have no hue
            images = adjust_hue(images, draws.uniform(-self.hue, self.hue))
        return self._normalised(images)

    def _cut(self, pixels: Tensor, rectangles: Tensor, boxes: Tensor, angle: Tensor) -> Tensor:
        largest = self.seed_scale[1] * self.scale[1] * pixels.shape[-1]
        fineness = min(max(round(largest / self.image.size), 1), 4)
        return cut_turned(pixels, rectangles, boxes, angle, self.image.size, fineness=fineness)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.image.mean, self.image.std))
        return (images - mean) / std


def _log_uniform(draws: Draws, limits: tuple[float, float], num: int) -> Tensor:
    """(B, num)"""
    return draws.uniform(math.log(limits[0]), math.log(limits[1]), shape=(num,)).exp()


def seed_boxes(
    pixels: Tensor, rectangles: Tensor, index: Tensor, *, scale: tuple[float, float], num_candidates: int
) -> Tensor:
    """One square of each image, (B, 3) = row and column of its centre, and its side, in canvas pixels.

    The same for an image in every batch and epoch. Of the candidates one is taken with a probability in proportion to
    its mean squared gradient, so flat sky is left out where there is anything else.
    """
    draws = Draws(_PLACES, index)
    top, left, height, width = rectangles[:, :, None].unbind(1)  # (B, 1)
    side = (draws.uniform(*scale, shape=(num_candidates,)) * torch.minimum(height, width)).clamp(min=1)  # (B, K)
    row = top + draws.uniform(shape=(num_candidates,)) * (height - side)
    column = left + draws.uniform(shape=(num_candidates,)) * (width - side)
    sums = _summed(squared_gradient(pixels, rectangles))
    y0, x0, y1, x1 = (edge.round().long() for edge in (row, column, row + side, column + side))
    sample = torch.arange(len(pixels), device=side.device)[:, None]
    inside = sums[sample, y1, x1] - sums[sample, y0, x1] - sums[sample, y1, x0] + sums[sample, y0, x0]
    energy = (inside / side.square()).clamp(min=0).cumsum(dim=1)  # (B, K)
    chosen = (energy < draws.uniform(shape=(1,)) * energy[:, -1:]).sum(dim=1, keepdim=True)
    picked = [x.gather(1, chosen) for x in (row + side / 2, column + side / 2, side)]
    return torch.cat(picked, dim=1)


def squared_gradient(pixels: Tensor, rectangles: Tensor) -> Tensor:
    """Squared differences to the next pixel below and to the right, mean over channels; 0 outside the rectangles.
    (B, C, S, S) -> (B, S, S)"""
    top, left, height, width = rectangles[:, :, None].unbind(1)
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    rows = (place >= top) & (place + 1 < top + height)  # (B, S): this pixel and the next one are real
    columns = (place >= left) & (place + 1 < left + width)
    down = F.pad(pixels.diff(dim=2), (0, 0, 0, 1)).square().mean(dim=1)
    right = F.pad(pixels.diff(dim=3), (0, 1)).square().mean(dim=1)
    return (down + right) * (rows[:, :, None] & columns[:, None, :])


def _summed(values: Tensor) -> Tensor:
    """Sums over all that is above and to the left, (B, S, S) -> (B, S + 1, S + 1), in float64."""
    return F.pad(values.double().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))


def cut_turned(pixels: Tensor, rectangles: Tensor, boxes: Tensor, angle: Tensor, size: int, *, fineness: int) -> Tensor:
    """Turned squares of the images, resized; outside the picture it is continued by its mirror image.

    Args:
        pixels: of the canvases, (B, C, S, S). rectangles: which of them are real.
        boxes: row and column of the centre, and side, in canvas pixels, (B, 3). angle: radians, clockwise, (B,).
        fineness: points a side that each pixel is the mean of, against aliasing when shrinking.

    Returns:
        (B, C, size, size).
    """
    step = (torch.arange(size * fineness, device=boxes.device) + 0.5) / (size * fineness) - 0.5
    row, column, side = boxes[:, :, None, None].unbind(1)  # (B, 1, 1)
    down, right = side * step[:, None], side * step  # from the centre, in the square's own directions
    sine, cosine = (x.view(-1, 1, 1) for x in (angle.sin(), angle.cos()))
    rows = row + cosine * down + sine * right
    columns = column - sine * down + cosine * right
    top, left, height, width = rectangles[:, :, None, None].unbind(1)
    place = torch.stack([_mirrored(columns - left, width) + left, _mirrored(rows - top, height) + top], dim=-1)
    with torch.autocast(pixels.device.type, enabled=False):
        cut = F.grid_sample(pixels, 2 * place / pixels.shape[-1] - 1, mode="bilinear", align_corners=False)
        return F.avg_pool2d(cut, fineness) if fineness > 1 else cut


def _mirrored(place: Tensor, length: Tensor) -> Tensor:
    """Places on an axis, folded into [0.5, length - 0.5], the middles of its first and last pixel."""
    folded = length - (place.remainder(2 * length) - length).abs()
    return folded.clamp(min=0.5).minimum(length - 0.5)
