"""`load_images`: from anything a person names to Images that training and evaluation read."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attar.data.cache import cache_folder
from attar.data.decode import Header, Unusable, fit_array, probe, reasons, to_channels
from attar.data.images import BrokenImage, Images
from attar.data.listing import ArrayItems, PathList, Source
from attar.data.pack import Pack, PackSpec, gigabytes, other_packs, room_for_pack
from attar.data.sources import AnySource, describe_ignored, open_source
from attar.data.stores import ArrayStore, PackStore, StreamStore
from attar.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("attar")

PROBED = 512  # images whose headers decide canvas size and channels
CANVAS_MARGIN = 1.25  # canvas side over image size, so that random crops have pixels to choose from
KNOWN_BUT_UNREAD = {".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".jxl", ".dcm", ".exr", ".svg"}


def load_images(
    source: AnySource | Images,
    *,
    image_size: int,
    channels: int | str = "auto",
    labels: str | None = None,
    cache: str | Path | None = None,
    max_cache_bytes: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Images:
    """List a source, decode it once, and give access to its usable images.

    Files are decoded into a pack in the cache (see `attar.data.pack`) that later calls find again as long as no file
    changed. Where the pack would be too large, images are decoded on demand instead: one first pass finds the broken
    ones. Arrays stay in memory. Broken images are left out and listed in `broken`; they never stop a run.

    Args:
        source: a folder of any depth, .csv, .parquet or .npz, an array uint8 (N, H, W[, C]), "digits", "elpv",
            "torchvision:NAME", "hf:NAME", "shards:PATTERN"; Images are returned as they are.
        image_size: pixels a side that a network will see. Canvases are 1.25 times as large, a multiple of 8, and never
            larger than the largest of up to 512 images looked at.
        channels: 1, 3, … or "auto": 1 if all images looked at are grey, otherwise 3; arrays keep what they have.
        labels: None; "auto"; "folder" (sub-folders of the first level); a column. Arrays and known sets bring theirs.
        cache: folder of the packs; default `cache_folder()`.
        max_cache_bytes: for this pack; 0 decodes on demand. Default: half of the free disk.
        workers: threads that decode; default one a core.

    Raises:
        DataError: for a source that does not exist, has no usable image, or lacks the labels asked for.
    """
    if image_size < 1:
        raise DataError(f"image_size={image_size} is not accepted; give pixels a side, e.g. 224.")
    if channels != "auto" and (not isinstance(channels, int) or channels < 1):
        raise DataError(f"channels={channels!r} is not accepted; give 'auto', 1, 3 or another number of channels.")
    if isinstance(source, Images):
        if channels not in ("auto", source.channels):
            raise DataError(f"{source.name}: these images have {source.channels} channels, asked for are {channels}.")
        return source
    opened = open_source(source, labels)
    limit = math.ceil(image_size * CANVAS_MARGIN / 8) * 8
    if isinstance(opened.items, ArrayItems):
        return _in_memory(opened, opened.items.pixels, limit, channels)
    _say_ignored(opened)
    headers = _probed(opened)
    canvas = min(limit, max((max(h.width, h.height) for h in headers), default=limit))
    if channels == "auto":
        channels = 1 if headers and all(h.is_grey for h in headers) else 3
    spec = PackSpec(opened.digest, len(opened), canvas, int(channels), with_pixels=True)
    folder = (Path(cache).expanduser() if cache is not None else cache_folder()) / "packs"
    return _packed(opened, spec, folder, max_cache_bytes, workers or os.cpu_count() or 1, progress)


def _say_ignored(source: Source) -> None:
    """Files left out that a person may well have meant as images, and folders that could not be opened."""
    meant = Counter({e: n for e, n in source.ignored.items() if e in KNOWN_BUT_UNREAD or e == ""})
    if meant:
        logger.warning(
            "%s: ignored files that may be images: %s; convert or rename them to use them",
            source.name,
            describe_ignored(meant),
        )
    if source.unreadable:
        logger.warning("%s: folders that cannot be opened: %s", source.name, ", ".join(source.unreadable[:5]))


def _probed(source: Source) -> list[Header]:
    """Headers of a sample; unreadable ones are passed over, the pack will name them."""
    headers = []
    for i in source.items.sample(PROBED):
        try:
            with reasons():
                headers.append(probe(source.items.open(int(i))))
        except Unusable:
            continue
    return headers


def _in_memory(source: Source, pixels: np.ndarray, limit: int, channels: int | str) -> Images:
    """Arrays need no pack: converted, shrunk where larger than the canvas, and kept."""
    if channels == "auto":
        channels = pixels.shape[-1]
    try:
        pixels = to_channels(pixels, int(channels))
    except Unusable as error:
        raise DataError(f"{source.name}: {error}.") from None
    if max(pixels.shape[1:3]) > limit:
        fit = lambda image: fit_array(image, canvas=limit, channels=int(channels))  # noqa: E731
        with ThreadPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(fit, pixels)))
    rows = np.arange(len(pixels), dtype=np.int64)
    return Images(
        name=source.name,
        store=ArrayStore(pixels),
        rows=rows,
        index=rows,
        canvas_size=max(pixels.shape[1:3]),
        channels=int(channels),
        digest=source.digest,
        labels=source.labels,
        classes=source.classes,
        where=source.where,
    )


def _packed(
    source: Source, spec: PackSpec, folder: Path, max_cache_bytes: int | None, workers: int, progress: bool
) -> Images:
    """Images read from a pack, or decoded on demand where a pack of pixels has no room."""
    fits, why = room_for_pack(folder, spec, max_cache_bytes)
    if not fits:
        logger.info("%s: %s; decoding on demand instead", source.name, why)
        spec = replace(spec, with_pixels=False)
    pack = Pack(folder / spec.folder_name, spec, source_name=source.name)
    if fits and pack.missing_bytes():
        _announce(source, pack, folder)
    pack.build(source, workers=workers, progress=progress)
    sizes, reasons = pack.sizes(), pack.broken()
    broken = [BrokenImage(i, source.describe(i), reason) for i, reason in reasons.items()]
    usable = np.flatnonzero(sizes[:, 0])
    _say_broken(source, broken, len(usable))
    shape = (spec.num_images, spec.canvas_size, spec.canvas_size, spec.channels)
    return Images(
        name=source.name,
        store=PackStore(pack.canvases_path, shape, sizes)
        if fits
        else StreamStore(source.items, spec.canvas_size, spec.channels, sizes, workers),
        rows=usable,
        index=usable,
        canvas_size=spec.canvas_size,
        channels=spec.channels,
        digest=source.digest,
        labels=None if source.labels is None else source.labels[usable],
        classes=source.classes,
        broken=broken,
        where=_names_at(source.where, usable),
    )


def _announce(source: Source, pack: Pack, folder: Path) -> None:
    spec = pack.spec
    logger.info(
        "%s: decoding %d images once to %d x %d x %d, %s in %s",
        source.name, spec.num_images, spec.canvas_size, spec.canvas_size, spec.channels,
        gigabytes(pack.missing_bytes()), folder,
    )  # fmt: skip
    older = list(other_packs(folder, spec, source.name))
    if older:
        size = sum(f.stat().st_size for p in older for f in p.iterdir())
        logger.info(
            "%d older packs of this source hold %s and may be deleted: %s",
            len(older),
            gigabytes(size),
            ", ".join(map(str, older[:3])),
        )


def _say_broken(source: Source, broken: list[BrokenImage], num_usable: int) -> None:
    first = "; ".join(f"{b.where} ({b.reason})" for b in broken[:5])
    if not num_usable:
        raise DataError(
            f"{source.name}: none of the {len(source)} files is a usable image, e.g. {first}. "
            "Run `attar doctor` on the folder for the full list."
        )
    if broken:
        more = f"; … {len(broken) - 5} more" if len(broken) > 5 else ""
        logger.warning(
            "%s: %d of %d images are broken and left out: %s%s", source.name, len(broken), len(source), first, more
        )


def _names_at(where: Sequence[str], positions: np.ndarray) -> Sequence[str]:
    if len(where) == len(positions):
        return where
    return where.take(positions) if isinstance(where, PathList) else [where[i] for i in positions if len(where)]
