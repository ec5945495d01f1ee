"""Features of images, extracted once: eval mode, central view, no gradient."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attar.data.images import CanvasBatch, Images, ImageSpec
from attar.errors import AttarError, DataError
from attar.models.backbones import evaluation_mode
from attar.views.augmentation import CentreView

logger = logging.getLogger("attar")

SAY_EVERY = 30.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Features:
    """values: float32 (N, D). index: int64 (N,), stable sample ids. labels: int64 (N,), -1 unknown, or None."""

    values: Tensor
    index: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> Features:
        labels = None if self.labels is None else self.labels.to(device)
        return Features(self.values.to(device), self.index.to(device), labels)


def extract_features(
    backbone: nn.Module,
    images: Images,
    image_spec: ImageSpec,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: str = "auto",
    progress: bool = True,
    description: str = "features",
) -> Features:
    """The backbone's output for the central view of every image, on the CPU, in the order of `images`.

    The backbone is moved to `device`, and left in the training or evaluation mode it came in.

    Args:
        image_spec: the size, channels and normalisation that the backbone expects; grey images are repeated
            for a backbone that takes colour.
        precision: bf16 computes under autocast; fp32, and auto, do not: features are computed once, and exactness
            is worth more here than speed.
        progress: on a terminal a bar with the remaining time, otherwise a line every 30 seconds; on stderr.

    Raises:
        DataError: no image, or channels that do not fit.
        AttarError: features that are not finite.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise AttarError(f"--precision {precision!r} is unknown; accepted: auto, fp32, bf16.")
    if len(images) == 0:
        raise DataError(f"{description}: {images.name} holds no usable image.")
    view = CentreView(image_spec)
    device = torch.device(device)
    backbone.to(device)
    outputs: list[Tensor] = []
    cuts = np.split(np.arange(len(images)), range(batch_size, len(images), batch_size))
    batches = tracked(read_ahead(images, cuts), len(cuts), description=description, shown=progress)
    with evaluation_mode(backbone), torch.inference_mode():
        for batch in batches:
            views = view(match_channels(batch.to(device), image_spec))
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                output = backbone(views)
            outputs.append(output.float().cpu())
    values = torch.cat(outputs)
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        raise AttarError(
            f"{description}: the features of {int((~finite).sum())} of {len(values)} images are not finite. "
            "The weights are damaged or training diverged; evaluate an earlier run, or use --precision fp32."
        )
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    return Features(values.clone(), torch.from_numpy(images.index), labels)


def match_channels(batch: CanvasBatch, image_spec: ImageSpec) -> CanvasBatch:
    """Grey canvases repeated for a colour network; anything else must fit as it is."""
    channels = batch.canvases.shape[1]
    if channels == image_spec.channels:
        return batch
    if channels == 1:
        repeated = batch.canvases.expand(-1, image_spec.channels, -1, -1)
        return CanvasBatch(repeated.contiguous(), batch.rectangles, batch.index, batch.labels)
    raise DataError(
        f"the images have {channels} channels, the network takes {image_spec.channels}. "
        f"Load them with channels={image_spec.channels}."
    )


def read_ahead(images: Images, cuts: Sequence[np.ndarray]) -> Iterator[CanvasBatch]:
    """The batches at these positions; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(images.batch, cuts[0])
        for following in [*cuts[1:], None]:
            batch = coming.result()
            if following is not None:
                coming = pool.submit(images.batch, following)
            yield batch


def tracked(
    batches: Iterator[CanvasBatch], total: int, *, description: str, shown: bool = True
) -> Iterator[CanvasBatch]:
    """The same batches, with progress and the remaining time on stderr."""
    if not shown:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(batches, total=total, description=description)
        return
    began = said = time.monotonic()
    for done, batch in enumerate(batches):
        now = time.monotonic()
        if done and now - said > SAY_EVERY:
            left = (now - began) / done * (total - done)
            logger.info("%s: %.0f %%, about %.0f s left", description, 100 * done / total, left)
            said = now
        yield batch
