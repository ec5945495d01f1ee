"""Masks over a view, and the makers of views with masks. Over its patches:

random_masks            patches at random (MAE), or cells of several patches (SimMIM)
block_masks             rectangles until the wanted number is covered (BEiT, iBOT, DINOv2)
context_and_targets     a large block to see and small ones to predict (I-JEPA)

and over its pixels:

central_square          the middle of the view (context encoders)
random_blots            blots of any shape (context encoders)

All are drawn from `draws` only, for all samples at once and without waiting for the device; how many numbers are
drawn never depends on what was drawn, so a sample's masks do not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.batches import ContextAndTargets, Holed, MaskedMultiCrop, MaskedView
from attar.views.draws import Draws
from attar.views.makers import View


def random_masks(draws: Draws, *, grid: int, num_masked: int) -> Tensor:
    """Exactly num_masked cells of a grid of grid x grid, at random. bool (B, grid * grid)."""
    return draws.permutation(grid * grid) < num_masked


def enlarge(masks: Tensor, factor: int) -> Tensor:
    """Each cell of a square grid becomes factor x factor: bool (B, n * n) -> (B, (n * factor)^2)."""
    side = math.isqrt(masks.shape[1])
    square = masks.view(len(masks), side, side)
    return square.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).flatten(1)


def block_masks(
    draws: Draws,
    num_masked: Tensor,
    *,
    grid: int,
    smallest: int = 4,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 60,
) -> Tensor:
    """Union of random rectangles that covers at most, and usually nearly, num_masked patches.

    Each attempt draws an area between `smallest` and what is left to cover, and a log-uniform aspect (height / width);
    the rectangle is taken if it fits the grid, hides something new, and not more than is left. A sample ends when
    ten attempts in a row have failed.

    Args:
        num_masked: how many patches to hide, int (B,); 0 hides none.

    Returns:
        bool (B, grid * grid).

    Source: Bao et al. 2022 (BEiT), arXiv:2106.08254, algorithm 1, as iBOT (smallest: (grid // 3)^2)
    and DINOv2 (4) have it in their published code.
    Differs: at most `attempts` rectangles are tried in all.
    """
    device = num_masked.device
    drawn = draws.uniform(shape=(attempts, 4))
    log_aspect = drawn[..., 1] * math.log(aspect[1] / aspect[0]) + math.log(aspect[0])
    masks = torch.zeros(len(num_masked), grid, grid, dtype=torch.bool, device=device)
    left, failures = num_masked.clone(), torch.zeros_like(num_masked)
    for i in range(attempts):
        area = smallest + drawn[:, i, 0] * (left - smallest)
        height = (area * log_aspect[:, i].exp()).clamp_min(0).sqrt().round()
        width = (area / log_aspect[:, i].exp()).clamp_min(0).sqrt().round()
        blocks = _rectangles(height, width, drawn[:, i, 2], drawn[:, i, 3], grid)
        new = (blocks & ~masks).sum(dim=(1, 2))
        taken = (height < grid) & (width < grid) & (new > 0) & (new <= left) & (failures < 10)
        masks |= blocks & taken[:, None, None]
        left = left - new * taken
        failures = torch.where(taken, 0, failures + 1)
    return masks.flatten(1)


def context_and_targets(
    draws: Draws,
    *,
    grid: int,
    num_targets: int,
    target_scale: tuple[float, float],
    target_aspect: tuple[float, float],
    context_scale: tuple[float, float],
    min_context: int,
) -> tuple[Tensor, Tensor]:
    """A square context block, and target blocks of one size and several places; the context loses the targets.

    Scales are shares of the grid's area, aspects height / width. If fewer than min_context patches would stay, the
    last targets are left in the context, as few as need be.

    Returns:
        context: bool (B, grid * grid). targets: bool (B, num_targets, grid * grid).

    Source: Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A.
    Differs: the published code draws the blocks' sizes once for a batch, cuts all masks of a batch to the smallest
    one, and never reaches the last row and column. Here every sample has its own sizes and keeps all its patches.
    """
    area = draws.uniform(*target_scale) * grid * grid
    aspect = draws.uniform(*target_aspect)
    height = (area * aspect).sqrt().round().clamp(1, max(grid - 1, 1))
    width = (area / aspect).sqrt().round().clamp(1, max(grid - 1, 1))
    places = draws.uniform(shape=(num_targets, 2))
    targets = torch.stack(
        [_rectangles(height, width, places[:, i, 0], places[:, i, 1], grid) for i in range(num_targets)], dim=1
    ).flatten(2)
    side = (draws.uniform(*context_scale) * grid * grid).sqrt().round().clamp(1, max(grid - 1, 1))
    place = draws.uniform(shape=(2,))
    context = _rectangles(side, side, place[:, 0], place[:, 1], grid).flatten(1)
    seen = context & ~targets.any(dim=1)
    for kept_out in range(num_targets - 1, -1, -1):
        enough = seen.sum(dim=1, keepdim=True) >= min_context
        seen = torch.where(enough, seen, context & ~targets[:, :kept_out].any(dim=1))
    return seen, targets


def central_square(size: int, share: float) -> slice:
    """Rows, and columns, of the square in the middle that has this share of the area; its border is as wide on all
    sides."""
    border = round(size * (1 - math.sqrt(share)) / 2)
    return slice(border, size - border)


def random_blots(draws: Draws, *, size: int, share: float, cells: int) -> Tensor:
    """Blots of any shape that cover exactly this share of the pixels (rounded), bool (B, size, size).

    Smooth noise, drawn on a grid of cells x cells and interpolated, is lowest there.

    Source: Pathak et al. 2016, arXiv:1604.07379, section 3.3; the noise is the published code's.
    Differs: that code cuts all masks of a step from one large pattern and accepts 20 to 30 %; here each sample has its
    own, of one size.
    """
    coarse = draws.uniform(shape=(1, cells + 2, cells + 2))  # a cell more on each side, which is cut off again
    noise = F.interpolate(coarse, scale_factor=-(-size // cells), mode="bicubic", align_corners=False)
    start = (noise.shape[-1] - size) // 2
    noise = noise[:, 0, start : start + size, start : start + size].flatten(1)
    order = noise.argsort(dim=1, stable=True)
    hidden = torch.zeros_like(noise, dtype=torch.bool)
    hidden.scatter_(1, order[:, : round(share * size * size)], True)
    return hidden.view(-1, size, size)


def _rectangles(height: Tensor, width: Tensor, top: Tensor, left: Tensor, grid: int) -> Tensor:
    """Rectangles of height x width patches, all (B,); top, left in [0, 1) of the free range. bool (B, grid, grid)."""
    place = torch.arange(grid, device=height.device)

    def span(length: Tensor, share: Tensor) -> Tensor:
        first = (share * (grid - length + 1)).floor()[:, None]
        return (place >= first) & (place < first + length[:, None])

    return span(height, top)[:, :, None] & span(width, left)[:, None, :]


def grid_of(size: int, patch_size: int, method: str) -> int:
    """Patches a side of a view; a view that is not a whole number of patches is refused."""
    if size % patch_size:
        raise RecipeError(f"{method}: views of {size} px are not a whole number of patches of {patch_size} px.")
    return size // patch_size


@dataclass(frozen=True)
class MakeMaskedView:
    """One view of each image with a random mask over its patches.

    grid: patches a side. ratio: share to hide; the rest, rounded down, is seen. cell: the mask is drawn in squares of
    cell x cell patches, whose number is rounded up (SimMIM).
    """

    view: View
    _: KW_ONLY
    grid: int
    ratio: float
    cell: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or not 0 < self.num_masked < (self.grid // self.cell) ** 2:
            raise RecipeError(
                f"mask_ratio={self.ratio} of {self.grid // self.cell} x {self.grid // self.cell} cells leaves nothing "
                "to see or nothing to predict; choose a ratio in (0, 1), smaller patches or larger images."
            )
        if self.grid % self.cell:
            raise RecipeError(f"a mask of {self.cell} x {self.cell} patches does not fit a grid of {self.grid} a side.")

    @property
    def num_masked(self) -> int:
        """In cells."""
        return math.ceil(round((self.grid // self.cell) ** 2 * self.ratio, 6))  # 0.9 * 10 is 9, not 9.000000000000002

    def __call__(self, batch: CanvasBatch, draws: Draws) -> MaskedView:
        images = self.view(batch, draws)
        masks = random_masks(draws, grid=self.grid // self.cell, num_masked=self.num_masked)
        return MaskedView(images, enlarge(masks, self.cell), batch.index, batch.labels)


@dataclass(frozen=True)
class MakeMaskedMultiCrop:
    """Multi-crop with block-wise masks over the global views: each is masked with a probability, by a random share.

    grid: patches a side of a global view. ratio: range of the share to hide. smallest: patches of the least block.
    """

    _: KW_ONLY
    global_views: Sequence[View]
    local_views: Sequence[View] = ()
    grid: int
    probability: float
    ratio: tuple[float, float]
    smallest: int = 4

    def __call__(self, batch: CanvasBatch, draws: Draws) -> MaskedMultiCrop:
        global_views = [view(batch, draws) for view in self.global_views]
        local_views = [view(batch, draws) for view in self.local_views]
        masks = [self._masks(draws) for _ in global_views]
        return MaskedMultiCrop(global_views, local_views, batch.index, batch.labels, masks)

    def _masks(self, draws: Draws) -> Tensor:
        share = draws.uniform(*self.ratio) * draws.bernoulli(self.probability)
        num_masked = (share * self.grid * self.grid).long()
        return block_masks(draws, num_masked, grid=self.grid, smallest=self.smallest)


_TRIED = 256  # samples of masks that settings are judged by


@dataclass(frozen=True)
class MakeContextAndTargets:
    """One view of each image, the block to see and the blocks to predict; see `context_and_targets`.

    Settings by which most images would keep a target in the context, where it need not be predicted, are refused.
    """

    view: View
    _: KW_ONLY
    grid: int
    num_targets: int
    target_scale: tuple[float, float]
    target_aspect: tuple[float, float]
    context_scale: tuple[float, float]
    min_context: int

    def __post_init__(self) -> None:
        context, targets = self._blocks(Draws(0, torch.arange(_TRIED)))
        kept = float((context & targets.any(dim=1)).any(dim=1).float().mean())
        if kept > 0.5:
            low, high = self.target_scale
            raise RecipeError(
                f"min_context={self.min_context}, target_scale={low:g},{high:g} do not suit {self.grid} x {self.grid} "
                f"patches: in {kept:.0%} of the images too few remain beside the targets, and one would be seen, not "
                "predicted. Take a smaller min_context, smaller or fewer targets, smaller patches, or larger images."
            )

    def __call__(self, batch: CanvasBatch, draws: Draws) -> ContextAndTargets:
        images = self.view(batch, draws)
        return ContextAndTargets(images, *self._blocks(draws), batch.index, batch.labels)

    def _blocks(self, draws: Draws) -> tuple[Tensor, Tensor]:
        return context_and_targets(
            draws,
            grid=self.grid,
            num_targets=self.num_targets,
            target_scale=self.target_scale,
            target_aspect=self.target_aspect,
            context_scale=self.context_scale,
            min_context=self.min_context,
        )


@dataclass(frozen=True)
class MakeHoled:
    """One view of each image with a hole in it: the middle, or blots.

    share: of the pixels, to be predicted. overlap: pixels by which the hole is smaller than that on every side, so that
    a band of what is predicted is seen. cells: a side, of the noise that blots are made of; None: the middle.
    """

    view: View
    _: KW_ONLY
    size: int
    share: float
    overlap: int = 0
    cells: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not self.overlap >= 0:
            raise RecipeError(
                f"a hole of share {self.share} with an overlap of {self.overlap} px is not accepted; give a share "
                "between 0 and 1, e.g. 0.25, and an overlap of 0 or more."
            )
        side = self.size - 2 * central_square(self.size, self.share).start
        if side <= 2 * self.overlap:
            raise RecipeError(
                f"an overlap of {self.overlap} px leaves nothing of a hole of {side} px; take less of it."
            )

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Holed:
        images = self.view(batch, draws)
        region = torch.zeros(len(images), self.size, self.size, dtype=torch.bool, device=images.device)
        if self.cells is None:
            middle = central_square(self.size, self.share)
            region[:, middle, middle] = True
        else:
            region = random_blots(draws, size=self.size, share=self.share, cells=self.cells)
        region = region[:, None]
        return Holed(images, shrunk(region, self.overlap), region, batch.index, batch.labels)


def shrunk(region: Tensor, pixels: int) -> Tensor:
    """Without its pixels that are as near to the outside; the border of the image is no outside. bool (B, 1, H, W)"""
    outside = F.max_pool2d((~region).float(), 2 * pixels + 1, stride=1, padding=pixels)
    return outside == 0
