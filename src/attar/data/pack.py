"""The pack: every image decoded once into a file of uint8 canvases that is memory-mapped from then on.

A pack is a folder named after what decides its content: the source's digest, canvas size and channels. It holds

    pack.json       what it is
    canvases.bin    uint8 (N, S, S, C); missing in a pack of sizes only, made when pixels are decoded on demand
    sizes.bin       uint16 (N, 2), height and width of the real pixels; 0 where the image is broken
    broken.jsonl    {"index", "reason"} of each broken image
    done.bin        one byte a chunk of images, 1 when its canvases, sizes and reasons are on the disk

so a build that was killed goes on after the last finished chunk. Two processes that build the same pack write the
same bytes to the same places and need no lock.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.decode import Unusable, decode, readable_formats, reasons
from attar.data.listing import Source
from attar.data.progress import Progress
from attar.errors import DataError

logger = logging.getLogger("attar")

VERSION = 1  # raise it when `decode` gives other pixels
CHUNK_BYTES = 16 << 20
SPARE_BYTES = 256 << 20  # of disk never taken
DISK_SHARE = 0.5  # of the free disk that packs take unless told otherwise


@dataclass(frozen=True)
class PackSpec:
    """What decides the content of a pack."""

    digest: str
    num_images: int
    canvas_size: int
    channels: int
    with_pixels: bool

    @property
    def image_bytes(self) -> int:
        return self.canvas_size**2 * self.channels

    @property
    def folder_name(self) -> str:
        kind = "pixels" if self.with_pixels else "sizes"
        return f"{self.digest[:24]}-{self.canvas_size}x{self.channels}-{kind}-v{VERSION}"


class Pack:
    """A pack on disk, finished or not; `build` finishes it."""

    def __init__(self, folder: Path, spec: PackSpec, *, source_name: str = ""):
        self.folder, self.spec = folder, spec
        self._broken_lock = threading.Lock()
        chunk = max(CHUNK_BYTES // spec.image_bytes, 1)
        self.chunk = min(chunk, max(-(-spec.num_images // 32), 16))  # small sets too are shared between threads
        try:
            self._prepare(source_name)
        except OSError as error:
            raise DataError(
                f"cannot write the image cache {folder}: {error.strerror}. Name another folder: --cache."
            ) from None

    def _prepare(self, source_name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "pack.json"
        if not about.is_file():
            text = json.dumps({"source": source_name, "chunk": self.chunk, **asdict(self.spec)})
            temporary = self.folder / f"pack.{os.getpid()}.tmp"
            temporary.write_text(text)
            temporary.replace(about)
        self.chunk = json.loads(about.read_text())["chunk"]
        lengths = {"sizes.bin": self.spec.num_images * 4, "done.bin": self.num_chunks, "broken.jsonl": 0}
        if self.spec.with_pixels:
            lengths["canvases.bin"] = self.spec.num_images * self.spec.image_bytes
        for name, length in lengths.items():
            with open(self.folder / name, "ab") as file:  # never shortens, so a half-built pack is kept
                if file.tell() < length:
                    file.truncate(length)

    @property
    def num_chunks(self) -> int:
        return -(-self.spec.num_images // self.chunk)

    @property
    def canvases_path(self) -> Path:
        return self.folder / "canvases.bin"

    def done(self) -> np.ndarray:
        return np.fromfile(self.folder / "done.bin", np.uint8, count=self.num_chunks).astype(bool)

    def sizes(self) -> np.ndarray:
        """int64 (N, 2); 0 where broken."""
        return np.fromfile(self.folder / "sizes.bin", np.uint16).reshape(-1, 2)[: self.spec.num_images].astype(np.int64)

    def broken(self) -> dict[int, str]:
        """Reason by index, in order of the index."""
        reasons: dict[int, str] = {}
        for line in filter(None, (self.folder / "broken.jsonl").read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
            except ValueError:  # a line cut by a kill; its chunk was not finished and wrote it again
                continue
            reasons[row["index"]] = row["reason"]
        sizes = self.sizes()
        return {i: reasons[i] for i in sorted(reasons) if sizes[i, 0] == 0}

    def missing_bytes(self) -> int:
        """Of disk that finishing it takes."""
        left = int((~self.done()).sum()) * self.chunk
        return min(left, self.spec.num_images) * (self.spec.image_bytes if self.spec.with_pixels else 0)

    def build(self, source: Source, *, workers: int, progress: bool) -> None:
        """Decode what is missing, in chunks by several threads.

        Raises:
            DataError: if the disk fills up.
        """
        todo = np.flatnonzero(~self.done())
        if not len(todo):
            return
        readable_formats()  # PIL registers its formats before threads ask for them
        made = self.spec.num_images - min(len(todo) * self.chunk, self.spec.num_images)
        what = "decoding" if self.spec.with_pixels else "examining"
        with (
            Progress(f"{what} {self.spec.num_images} images", self.spec.num_images, shown=progress, done=made) as bar,
            ThreadPoolExecutor(workers, "attar-pack") as pool,
        ):
            running = [pool.submit(self._build_chunk, source, int(c)) for c in todo]
            try:
                for finished in as_completed(running):
                    bar.advance(finished.result())
            except OSError as error:
                raise DataError(
                    f"cannot write the image cache {self.folder}: {error.strerror}. Make room, name another folder "
                    "(--cache), or set max_cache_bytes=0 to decode on demand."
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    def _build_chunk(self, source: Source, chunk: int) -> int:
        spec, start = self.spec, chunk * self.chunk
        count = min(self.chunk, spec.num_images - start)
        shape = (spec.canvas_size, spec.canvas_size, spec.channels)
        canvases = np.zeros((count if spec.with_pixels else 0, *shape), np.uint8)
        sizes = np.zeros((count, 2), np.uint16)
        broken = []
        for i in range(count):
            try:
                with reasons():
                    pixels = decode(source.items.open(start + i), canvas=spec.canvas_size, channels=spec.channels)
            except Unusable as error:
                broken.append({"index": start + i, "reason": str(error)})
                continue
            sizes[i] = pixels.shape[:2]
            if spec.with_pixels:
                canvases[i, : sizes[i, 0], : sizes[i, 1]] = pixels
        if spec.with_pixels:
            self._write("canvases.bin", start * spec.image_bytes, canvases.data)
        if broken:
            with self._broken_lock, open(self.folder / "broken.jsonl", "a", encoding="utf-8") as file:
                file.write("\n" + "".join(json.dumps(row) + "\n" for row in broken))  # first ends a line cut by a kill
                file.flush()
                os.fsync(file.fileno())
        self._write("sizes.bin", start * 4, sizes.data)
        self._write("done.bin", chunk, b"\1")  # last: all of the above is on the disk
        return count

    def _write(self, name: str, start: int, content: Any) -> None:
        with open(self.folder / name, "r+b") as file:
            file.seek(start)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def room_for_pack(folder: Path, spec: PackSpec, max_cache_bytes: int | None) -> tuple[bool, str]:
    """Whether the pixels may be kept on disk, and why not.

    Without a limit given, a pack may take half of the free disk; with one, more than is free is an error.

    Raises:
        DataError: if the pack fits the limit that was given but not the disk.
    """
    size = spec.num_images * spec.image_bytes
    unfinished = Pack(folder / spec.folder_name, spec) if (folder / spec.folder_name / "pack.json").is_file() else None
    missing = unfinished.missing_bytes() if unfinished else size
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    limit = free * DISK_SHARE + (size - missing) if max_cache_bytes is None else max_cache_bytes
    if size > limit:
        return False, f"the decoded images take {gigabytes(size)}, allowed are {gigabytes(limit)} of {folder}"
    if missing and missing + SPARE_BYTES > free:
        if max_cache_bytes is None:
            return False, f"the decoded images take {gigabytes(size)}, free are {gigabytes(free)} in {folder}"
        raise DataError(
            f"the decoded images take {gigabytes(missing)} more in {folder}, where {gigabytes(free)} are free. Make "
            "room, name another folder (--cache), or set max_cache_bytes lower to decode on demand."
        )
    return True, ""


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def other_packs(folder: Path, spec: PackSpec, source_name: str) -> Iterator[Path]:
    """Packs of the same source, canvas and channels made when its files were others."""
    for about in folder.glob("*/pack.json"):
        try:
            found = json.loads(about.read_text())
        except (OSError, ValueError):
            continue
        same = all(found.get(k) == getattr(spec, k) for k in ("canvas_size", "channels", "with_pixels"))
        if same and found.get("source") == source_name and found.get("digest") != spec.digest:
            yield about.parent
