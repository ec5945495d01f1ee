"""Typed batches that view makers produce, so that a method's signature says what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch
from attar.views.draws import Draws


class Batch(Protocol):
    """What every typed batch has: the sample ids, labels where known, and its pictures by name (for the report)."""

    index: Tensor
    labels: Tensor | None

    def pictures(self) -> dict[str, Tensor]:
        """Name -> normalised images (B, C, H, W), in the order a person should see them."""
        ...


class ViewMaker(Protocol):
    """Canvases -> typed batch, on the canvases' device, with parameters drawn from `draws` only."""

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Batch: ...


@dataclass
class OneView:
    """images: (B, C, H, W), normalised."""

    images: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"view": self.images}


@dataclass
class MixedView:
    """images: (B, C, H, W), normalised, not yet mixed. share: (B,) in [0, 1), of each image itself; the rest is of the
    next image of the batch, which on several processes may be on another."""

    images: Tensor
    share: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"view": self.images, "mixed": mix(self.images, self.images.roll(-1, 0), self.share)}


@dataclass
class TwoViews:
    """view1, view2: (B, C, H, W), normalised; row i of both comes from the same image."""

    view1: Tensor
    view2: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"view 1": self.view1, "view 2": self.view2}


@dataclass
class MultiCrop:
    """global_views: list of (B, C, H, W); local_views: list of (B, C, h, w), may be empty."""

    global_views: list[Tensor]
    local_views: list[Tensor]
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        named = {f"global {i + 1}": v for i, v in enumerate(self.global_views)}
        return named | {f"local {i + 1}": v for i, v in enumerate(self.local_views)}


@dataclass
class Rotated:
    """images: (4B, C, H, W), block r of B rows turned by r * 90 degrees; pretext_targets: (4B,) in 0..3."""

    images: Tensor
    pretext_targets: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {f"{90 * r}°": v for r, v in enumerate(self.images.chunk(4))}


@dataclass
class Transformed:
    """images: (B, C, H, W). transformed: (V B, C, H, W), V blocks of the same images in the same order.

    pretext_targets: (V B,), which transformation it was, from 1 (0 is none); 0 throughout where that is no question.
    """

    images: Tensor
    transformed: Tensor
    pretext_targets: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        blocks = self.transformed.split(len(self.images))
        return {"image": self.images} | {f"transformed {v + 1}": b for v, b in enumerate(blocks)}


@dataclass
class ImageAndPatches:
    """images: (B, C, H, W); patches: (B, P, C, h, w), small cuts from a crop of the same image, in random order."""

    images: Tensor
    patches: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"image": self.images} | {f"patch {i + 1}": p for i, p in enumerate(self.patches.unbind(1))}


@dataclass
class Tiles:
    """tiles: (B, P, C, h, w), normalised: the pieces of a jigsaw in their true order. Drawn for each image:

    pretext_targets: (B,), the number of the permutation in which they will be shown.
    offered, replaced: (B, F), distinct tiles of this image that go to another, and places that take such tiles.
    num_foreign: (B,) in 0..F, how many of these places do.
    """

    tiles: Tensor
    pretext_targets: Tensor
    offered: Tensor
    replaced: Tensor
    num_foreign: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"tiles": side_by_side(self.tiles)}


@dataclass
class Neighbours:
    """images: (B, C, H, W). patches: (B, 9, C, h, w), cut from them: a 3 x 3 neighbourhood in reading order, the patch
    in the middle is number 4."""

    images: Tensor
    patches: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"image": self.images, "patches": side_by_side(self.patches)}


@dataclass
class Exemplars:
    """seeds: (B, C, h, w), the part of each image that its class is made of. transformed: list of (B, C, h, w), the
    class' samples.
    """

    seeds: Tensor
    transformed: list[Tensor]
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"seed": self.seeds} | {f"sample {i + 1}": v for i, v in enumerate(self.transformed)}


@dataclass
class PatchGrid:
    """patches: (B, G, G, C, h, w), normalised: row and column of the grid, then the patch at that place."""

    patches: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"patches": side_by_side(self.patches.flatten(1, 2), gap=0)}


@dataclass
class MaskedView:
    """images: (B, C, H, W), whole. mask: bool (B, N), True where a patch is hidden; N patches in reading order."""

    images: Tensor
    mask: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"view": self.images, "masked": hide(self.images, self.mask)}


@dataclass
class Holed:
    """images: (B, C, H, W), whole. hole: bool (B, 1, H, W), True where pixels are hidden. region: bool, the same shape:
    what is to be predicted, the hole and maybe a band around it.
    """

    images: Tensor
    hole: Tensor
    region: Tensor
    index: Tensor
    labels: Tensor | None = None

    @property
    def seen(self) -> Tensor:
        """The images without what is in the hole, which is 0, the mean colour."""
        return self.images.masked_fill(self.hole, 0)

    def pictures(self) -> dict[str, Tensor]:
        return {"view": self.images, "seen": self.seen}


@dataclass
class MaskedMultiCrop(MultiCrop):
    """A MultiCrop with a mask for each global view: bool (B, N), True where a patch is hidden from the student."""

    masks: list[Tensor] = field(default_factory=list)

    def pictures(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for i, (view, mask) in enumerate(zip(self.global_views, self.masks)):
            named |= {f"global {i + 1}": view, f"masked {i + 1}": hide(view, mask)}
        return named | {f"local {i + 1}": v for i, v in enumerate(self.local_views)}


@dataclass
class ContextAndTargets:
    """images: (B, C, H, W), whole. context: bool (B, N), the patches to see. targets: bool (B, T, N), T blocks."""

    images: Tensor
    context: Tensor
    targets: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        named = {"view": self.images, "context": hide(self.images, ~self.context)}
        blocks = enumerate(self.targets.unbind(1))
        return named | {f"target {i + 1}": hide(self.images, ~block) for i, block in blocks}


def mix(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """share * images + (1 - share) * others. images, others: (B, C, H, W). share: (B,)."""
    return torch.lerp(others, images, share.view(-1, 1, 1, 1).to(images))


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images (B, C, H, W) with the patches of mask, bool (B, N), set to 0, the mean colour."""
    rows = round((mask.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
    grid = mask.view(len(mask), 1, rows, -1).float()
    return images * (1 - F.interpolate(grid, size=images.shape[2:], mode="nearest"))


def side_by_side(pieces: Tensor, *, gap: int = 2) -> Tensor:
    """Pieces (B, G * G, C, h, w) in reading order as one picture (B, C, ...), with bars of 0, the mean colour."""
    G = round(pieces.shape[1] ** 0.5)
    framed = F.pad(pieces, (0, gap, 0, gap)).unflatten(1, (G, G)).permute(0, 3, 1, 4, 2, 5)  # (B, C, G, h, G, w)
    height, width = (G * side - gap for side in framed.shape[3::2])
    return framed.flatten(4, 5).flatten(2, 3)[..., :height, :width]
