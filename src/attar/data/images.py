"""The types that travel between data, views and the loop: ImageSpec, CanvasBatch, Images.

A *canvas* is a decoded uint8 image, aspect preserved, placed in the top left corner of a square of zeros;
its *rectangle* says which part is real. Crops are drawn from real pixels only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What a network expects of its input. Saved with every backbone, applied by every view.

    size: height and width in pixels. channels: 1 grey, 3 RGB, otherwise as stored.
    mean, std: per channel, for pixels in [0, 1].
    crop_fraction: share of the shorter image side that the central evaluation crop keeps (1 = the whole square).
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageSpec:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass
class CanvasBatch:
    """B canvases, as stored.

    canvases: uint8 (B, C, S, S). rectangles: float32 (B, 4) = top, left, height, width of the real pixels.
    index: int64 (B,), the stable sample ids. labels: int64 (B,), -1 where unknown, or None without labels.
    """

    canvases: Tensor
    rectangles: Tensor
    index: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> CanvasBatch:
        move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        labels = None if self.labels is None else move(self.labels)
        return CanvasBatch(move(self.canvases), move(self.rectangles), move(self.index), labels)


class CanvasStore(Protocol):
    """Where canvases come from: a memory map, an array, or decoding on demand. Rows are addressed by position."""

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Canvases uint8 (B, S, S, C) and rectangles float32 (B, 4) of these rows."""
        ...


@dataclass(frozen=True)
class BrokenImage:
    """One sample that could not be used: its stable id, where it is, and why."""

    index: int
    where: str
    reason: str


@dataclass
class Images:
    """A set of usable images: what training, evaluation, distillation and reports read from.

    index[i] is the stable sample id of position i (a position in the source's sorted listing, broken ones
    included), so caches, banks and pseudo-labels are keyed by it and never by order.
    """

    name: str
    store: CanvasStore
    rows: np.ndarray  # (N,) row of the store at each position
    index: np.ndarray  # (N,) int64 stable sample ids
    canvas_size: int
    channels: int
    digest: str  # of the source: what was listed, sizes and times, or the bytes of arrays
    labels: np.ndarray | None = None  # (N,) int64, -1 unknown
    classes: tuple[str, ...] = ()
    broken: list[BrokenImage] = field(default_factory=list)
    where: Sequence[str] = ()  # (N,) path or name of each position, for people

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_ids(self) -> int:
        """One more than the largest stable id: the length of a table keyed by index."""
        return int(self.index.max()) + 1 if len(self) else 0

    @property
    def num_classes(self) -> int:
        """Number of the classes that labels tell apart; 0 without labels."""
        if self.labels is None or not len(self):
            return 0
        return max(len(self.classes), int(self.labels.max()) + 1)

    def batch(self, positions: np.ndarray) -> CanvasBatch:
        """Canvases at these positions (any order, repeats allowed), on the CPU."""
        canvases, rectangles = self.store.read(self.rows[positions])
        labels = None if self.labels is None else torch.from_numpy(self.labels[positions])
        return CanvasBatch(
            torch.from_numpy(canvases).permute(0, 3, 1, 2),
            torch.from_numpy(rectangles),
            torch.from_numpy(self.index[positions]),
            labels,
        )

    def subset(self, positions: np.ndarray) -> Images:
        """The images at these positions; ids stay what they were, the digest becomes the subset's own."""
        positions = np.asarray(positions)
        if positions.dtype == bool:
            positions = np.flatnonzero(positions)
        digest = hashlib.sha256(self.digest.encode() + self.index[positions].astype("<i8").tobytes()).hexdigest()
        where = [self.where[int(i)] for i in positions] if len(self.where) else ()
        labels = None if self.labels is None else self.labels[positions]
        return replace(
            self, rows=self.rows[positions], index=self.index[positions], labels=labels, where=where, digest=digest
        )
