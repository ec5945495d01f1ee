"""Typed batches that view makers produce, so that a method's signature says what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
class ImageAndPatches:
    """images: (B, C, H, W); patches: (B, P, C, h, w), small cuts from a crop of the same image, in random order."""

    images: Tensor
    patches: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        return {"image": self.images} | {f"patch {i + 1}": p for i, p in enumerate(self.patches.unbind(1))}
