"""From augmentations to typed batches: one view, two views, multi-crop, rotations, patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.augmentation import Augmentation
from attar.views.batches import ImageAndPatches, MixedView, MultiCrop, OneView, PatchGrid, Rotated, TwoViews
from attar.views.boxes import random_resized_boxes
from attar.views.draws import Draws
from attar.views.puzzles import cut

View = Callable[[CanvasBatch, Draws], Tensor]  # Augmentation, RandomCropPad, CentreView


@dataclass(frozen=True)
class MakeOneView:
    """One view of each image."""

    view: View

    def __call__(self, batch: CanvasBatch, draws: Draws) -> OneView:
        return OneView(self.view(batch, draws), batch.index, batch.labels)


@dataclass(frozen=True)
class MakeMixedView:
    """One view of each image and how much of it remains when it is mixed: uniform in [0, 1)."""

    view: View

    def __call__(self, batch: CanvasBatch, draws: Draws) -> MixedView:
        return MixedView(self.view(batch, draws), draws.uniform(), batch.index, batch.labels)


@dataclass(frozen=True)
class MakeTwoViews:
    """Two views of each image, drawn independently; the same augmentation twice unless a second is given."""

    first: View
    second: View | None = None

    def __call__(self, batch: CanvasBatch, draws: Draws) -> TwoViews:
        view1 = self.first(batch, draws)
        view2 = (self.second or self.first)(batch, draws)
        return TwoViews(view1, view2, batch.index, batch.labels)


@dataclass(frozen=True)
class MakeMultiCrop:
    """A few large crops and, at their own smaller size, any number of small ones; one augmentation each."""

    _: KW_ONLY
    global_views: Sequence[View]
    local_views: Sequence[View] = ()

    def __call__(self, batch: CanvasBatch, draws: Draws) -> MultiCrop:
        global_views = [view(batch, draws) for view in self.global_views]
        local_views = [view(batch, draws) for view in self.local_views]
        return MultiCrop(global_views, local_views, batch.index, batch.labels)


@dataclass(frozen=True)
class MakeRotated:
    """One view of each image, turned counter-clockwise by 0, 90, 180 and 270 degrees; the turn is the target.

    The view is mirrored, if at all, before it is turned: afterwards, mirroring would change the meaning of 90 and
    270. Turning moves pixels and computes none, so it leaves no trace to learn from.
    """

    view: View

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Rotated:
        images = self.view(batch, draws)
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
        pretext_targets = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return Rotated(turned, pretext_targets, batch.index, batch.labels)


def grid_patch_side(size: int, num_rows: int) -> int:
    """Side in pixels of the G x G patches of a view, which overlap by half.

    Raises:
        RecipeError: if a patch would have no pixel.
    """
    if num_rows >= size:
        raise RecipeError(
            f"num_rows={num_rows} patches do not fit into a view of {size} pixels; use {size - 1} or less."
        )
    return 2 * (size // (num_rows + 1))


@dataclass(frozen=True)
class MakePatchGrid:
    """One view of each image, cut into G x G square patches; neighbours share half of their pixels.

    The patches are as large as fits: their side is twice the view's over G + 1, rounded down to an even number.
    kept: side of the part of a patch that remains, as a share; which part is drawn for each patch, and it comes to
    the middle of a border of zeros, the mean colour. So the seams of neighbours do not continue each other exactly.
    """

    view: View
    _: KW_ONLY
    num_rows: int
    kept: float = 1.0

    def __call__(self, batch: CanvasBatch, draws: Draws) -> PatchGrid:
        images = self.view(batch, draws)
        G, size = self.num_rows, images.shape[-1]
        stride = grid_patch_side(size, G) // 2
        side = max(round(self.kept * 2 * stride), 1)
        border = 2 * stride - side
        shift = draws.integers(border + 1, shape=(2, G, G))  # (B, 2, G, G)
        corner = (size - stride * (G + 1)) // 2 + stride * torch.arange(G, device=images.device)
        rows = shift[:, 0] + corner[:, None]  # (B, G, G)
        columns = shift[:, 1] + corner
        pieces = cut(images, rows[..., None], columns[..., None], side)  # (B, G, G, C, side, side)
        before, after = border // 2, border - border // 2
        patches = F.pad(pieces, (before, after, before, after))
        return PatchGrid(patches, batch.index, batch.labels)


@dataclass(frozen=True)
class MakeImageAndPatches:
    """One view of each image, and the pieces of a jigsaw: another crop, cut in a grid, a patch from each cell.

    patch: size, colours and flip of a patch, drawn for each anew; its scale and ratio are those of the crop.
    grid: cells a side. share: side of a patch as a share of its cell's; the rest is the gap, placed at random, so
    that no edge runs on from patch to patch.
    """

    view: View
    patch: Augmentation
    _: KW_ONLY
    grid: int = 3
    share: float = 64 / 85

    def __call__(self, batch: CanvasBatch, draws: Draws) -> ImageAndPatches:
        images = self.view(batch, draws)
        crops = random_resized_boxes(batch.rectangles, draws, scale=self.patch.scale, ratio=self.patch.ratio)
        patches = torch.stack([self._patch(batch, crops, n, draws) for n in range(self.grid**2)], dim=1)
        order = draws.permutation(self.grid**2)  # (B, P)
        rows = torch.arange(len(batch), device=order.device)[:, None]
        return ImageAndPatches(images, patches[rows, order], batch.index, batch.labels)

    def _patch(self, batch: CanvasBatch, crops: Tensor, number: int, draws: Draws) -> Tensor:
        """The patch of cell `number`, counted in rows."""
        corner = torch.tensor(divmod(number, self.grid), device=crops.device) + draws.uniform(
            0.0, 1.0 - self.share, shape=(2,)
        )  # (B, 2) in cells
        cell = crops[:, 2:] / self.grid
        boxes = torch.cat([crops[:, :2] + corner * cell, self.share * cell], dim=1)
        return self.patch.apply(batch.canvases, replace(self.patch.draw(batch, draws), boxes=boxes))
