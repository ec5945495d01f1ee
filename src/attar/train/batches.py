"""Which images make up step number n, read ahead by a thread: a pure function of (seed, step, process)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.data.images import CanvasBatch, Images
from attar.errors import RecipeError
from attar.train.distributed import World


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch of each step is drawn and cut.

    One pass is a permutation fixed by (seed, epoch); its full batches are used, the remainder is left out (another
    one each epoch). A batch is cut into `accumulate` parts, each part into one contiguous piece a process, so that
    joining the processes' pieces gives the part back.

    Raises:
        RecipeError: if the batch is larger than the data, cannot be cut evenly, or is of one image.
    """

    num_images: int
    batch_size: int
    epochs: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise RecipeError(f"there is {self.num_images} usable image; training needs at least 2.")
        if self.batch_size > self.num_images:
            raise RecipeError(
                f"batch_size={self.batch_size} is larger than the data: {self.num_images} usable images. "
                f"Use --batch-size {2 ** max(self.num_images.bit_length() - 2, 1)} or less."
            )
        pieces = self.world_size * self.accumulate
        if self.batch_size < 2 * self.accumulate:
            raise RecipeError(
                f"batch_size={self.batch_size} with accumulate={self.accumulate} shows one image at a time, "
                "and batch norm and most losses compare several; use 2 or more images for each pass."
            )
        if self.batch_size % pieces:
            raise RecipeError(
                f"batch_size={self.batch_size} cannot be cut evenly for {self.world_size} processes and "
                f"accumulate={self.accumulate}; use a multiple of {pieces}, e.g. "
                f"{max(self.batch_size // pieces, 1) * pieces}."
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)

    def steps(self, start: int) -> Iterator[list[np.ndarray]]:
        """From step `start` on: the positions of this process, one array for each of the `accumulate` parts."""
        first_epoch, offset = divmod(start, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            order = self.order(epoch)
            for i in range(offset, self.steps_per_epoch):
                positions = order[i * self.batch_size : (i + 1) * self.batch_size]
                parts = np.split(positions, self.accumulate)
                yield [np.split(part, self.world_size)[self.rank] for part in parts]
            offset = 0


@dataclass
class Fetched:
    """The canvases of one step, part by part, and the seconds the loop waited for them."""

    parts: list[CanvasBatch]
    wait: float


def prefetched(images: Images, plan: BatchPlan, start: int, world: World, *, ahead: int = 3) -> Iterator[Fetched]:
    """The plan's batches from step `start` on, read by a thread up to `ahead` steps in advance."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for positions in plan.steps(start):
                parts = [images.batch(part) for part in positions]
                if world.device.type == "cuda":
                    for part in parts:
                        part.canvases = part.canvases.pin_memory()
                put(parts)
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the loop, which raises it
            put(error)

    thread = threading.Thread(target=read, name="attar-batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, plan.total_steps):
            began = time.monotonic()
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield Fetched(item, time.monotonic() - began)
    finally:
        stop.set()
        thread.join(timeout=5)
