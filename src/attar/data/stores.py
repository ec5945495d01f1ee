"""Where canvases are read from: an array in memory, a memory-mapped pack, or files decoded on demand."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.decode import Unusable, decode, reasons
from attar.data.listing import Items
from attar.errors import DataError

logger = logging.getLogger("attar")


def rectangles_of(sizes: np.ndarray) -> np.ndarray:
    """float32 (B, 4) = top, left, height, width from sizes (B, 2); images lie in the top left corner."""
    rectangles = np.zeros((len(sizes), 4), np.float32)
    rectangles[:, 2:] = sizes
    return rectangles


@dataclass
class ArrayStore:
    """uint8 (N, H, W, C) in memory, all of one size; canvases are squares of the longer side."""

    pixels: np.ndarray

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, height, width, channels = (len(rows), *self.pixels.shape[1:])
        sizes = np.broadcast_to(np.array([height, width]), (n, 2))
        if height == width:
            return self.pixels[rows], rectangles_of(sizes)
        side = max(height, width)
        canvases = np.zeros((n, side, side, channels), np.uint8)
        canvases[:, :height, :width] = self.pixels[rows]
        return canvases, rectangles_of(sizes)


@dataclass
class PackStore:
    """Canvases of a finished pack, through a memory map: the system keeps in memory what fits."""

    path: Path
    shape: tuple[int, int, int, int]  # N, S, S, C
    sizes: np.ndarray  # (N, 2) height and width of the real pixels
    _map: np.ndarray | None = field(init=False, default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # another process maps the file itself

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, mode="r", shape=self.shape)
        return np.asarray(self._map[rows]), rectangles_of(self.sizes[rows])


@dataclass
class StreamStore:
    """Decodes on demand, by several threads; for sources whose pack would not fit the disk.

    An image that decoded when the source was examined but does not any more (deleted, changed) is replaced by the
    next usable one and logged, so that a long training goes on.
    """

    items: Items
    canvas_size: int
    channels: int
    sizes: np.ndarray  # (N, 2), 0 where broken
    workers: int
    _pool: ThreadPoolExecutor | None = field(init=False, default=None, repr=False)
    _lock: Any = field(init=False, default_factory=threading.Lock, repr=False)
    _lost: set[int] = field(init=False, default_factory=set, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_pool", "_lock", "_lost")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pool=None, _lock=threading.Lock(), _lost=set())

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, "attar-decode")
        canvases = np.zeros((len(rows), self.canvas_size, self.canvas_size, self.channels), np.uint8)
        sizes = np.zeros((len(rows), 2), np.int64)
        for i, pixels in enumerate(self._pool.map(self._decode, rows.tolist())):
            height, width = sizes[i] = pixels.shape[:2]
            canvases[i, :height, :width] = pixels
        return canvases, rectangles_of(sizes)

    def _decode(self, row: int, tries: int = 16) -> np.ndarray:
        try:
            with reasons():
                return decode(self.items.open(row), canvas=self.canvas_size, channels=self.channels)
        except Unusable as error:
            if row not in self._lost:
                self._lost.add(row)
                logger.warning("image %d cannot be read any more (%s); the next one takes its place", row, error)
            if tries <= 1:
                raise DataError(
                    f"16 images in a row, up to number {row}, cannot be read any more ({error}). Is the disk there?"
                ) from None
        usable = np.flatnonzero(self.sizes[:, 0])
        following = usable[np.searchsorted(usable, row, side="right") % len(usable)]
        return self._decode(int(following), tries - 1)
