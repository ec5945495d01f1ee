"""Tar shards as WebDataset writes them: members `KEY.jpg`, `KEY.cls`, `KEY.json` side by side make one sample.

Local shards are indexed once and read in place, at random. Remote ones (https:, s3:, pipe:, …) are copied into the
cache first, by webdataset.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.cache import cache_folder
from attar.data.decode import Encoded, image_extensions
from attar.data.labels import encode_labels
from attar.data.listing import PathList, Source, evenly_spaced
from attar.errors import DataError, MissingDependency

logger = logging.getLogger("attar")


def open_shards(pattern: str, labels: str | None) -> Source:
    """Shards by pattern: `train-{000..099}.tar`, or with * and ?.

    labels: None; "auto" (member `cls` where it exists); the ending of a member with the class as text, such as cls;
    or a field of the json member.
    """
    shards = _find(pattern)
    index = _Index(wanted=labels)
    digest = hashlib.sha256()
    for number, shard in enumerate(shards):
        status = shard.stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        index.add(number, shard)
    if not len(index.places):
        raise DataError(
            f"shards:{pattern}: {len(shards)} shards, but no image in them; found {sorted(index.endings)[:12]}."
        )
    table = np.frombuffer(index.places, np.int64).reshape(-1, 3)
    keys = PathList(bytes(index.keys), np.frombuffer(index.key_ends, np.int64))
    source = Source(f"shards:{pattern}", digest.hexdigest(), TarItems(shards, table), where=keys)
    if labels not in (None, "auto") and not index.labels:
        raise DataError(
            f"shards:{pattern}: no member or json field {labels!r}; members end in {sorted(index.endings)[:12]}."
        )
    if index.labels and labels is not None:
        found = _numbers([index.labels.get(keys.raw(i)) for i in range(len(keys))])
        source.labels, source.classes = encode_labels(found, where=f"shards:{pattern}, {labels}")
    return source


def _numbers(values: list[Any]) -> list[Any]:
    """Whole numbers where all are written as such."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, str) and re.fullmatch(r"-?\d+", v) for v in known):
        return [None if v is None else int(v) for v in values]
    return values


def _find(pattern: str) -> list[Path]:
    remote = "://" in pattern or pattern.startswith("pipe:")
    expanded = [pattern] if pattern.startswith("pipe:") else _expand_braces(pattern)
    if remote:
        return [_copied(url) for url in expanded]
    found = [Path(p) for name in expanded for p in (sorted(glob.glob(name)) if set("*?[") & set(name) else [name])]
    missing = next((p for p in found if not p.is_file()), None)
    if not found or missing:
        raise DataError(f"shards:{pattern}: no such file: {Path(missing or pattern).absolute()}")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; also {x,y}."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    parts = [f"{i:0{len(span[1])}d}" for i in range(int(span[1]), int(span[2]) + 1)] if span else match[1].split(",")
    return [done for p in parts for done in _expand_braces(pattern[: match.start()] + p + pattern[match.end() :])]


def _copied(url: str) -> Path:
    """A remote shard in the cache; copied there when it is not yet."""
    try:
        from webdataset import gopen
    except ImportError:
        raise MissingDependency(
            "remote shards need the package webdataset; install it with: pip install 'attar[shards]'"
        ) from None
    path = cache_folder() / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        logger.info("copying %s into %s", url, path.parent)
        try:
            with gopen(url, "rb") as stream, open(partial, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except OSError as error:
            raise DataError(f"shards:{url}: could not be read: {error}") from None
        partial.replace(path)
    return path


class _Index:
    """Where each image lies, and the labels by key; without labels some seventy bytes an image."""

    def __init__(self, wanted: str | None):
        self.wanted = "cls" if wanted == "auto" else wanted
        self.keys, self.key_ends = bytearray(), array("q")  # as in PathList
        self.places = array("q")  # shard, first byte and number of bytes of each image
        self.labels: dict[bytes, Any] = {}  # by the key's exact bytes, which need not be UTF-8
        self.endings: set[str] = set()

    def add(self, number: int, shard: Path) -> None:
        try:
            with tarfile.open(shard, "r:") as tar:  # "r:" refuses compressed tars: no random access in them
                seen: set[bytes] = set()  # one image a key, as WebDataset has it
                for member in tar:
                    if member.isfile():
                        self._add_member(tar, member, number, shard, seen)
        except tarfile.TarError as error:
            raise DataError(f"{shard} is not a readable, uncompressed .tar: {error}") from None

    def _add_member(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, number: int, shard: Path, seen: set[bytes]
    ) -> None:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key, ending = os.fsencode("/".join(filter(None, (shard.stem, folder, stem)))), ending.lower()
        self.endings.add(ending)
        if f".{ending}" in image_extensions() and key not in seen:
            seen.add(key)
            self.keys += key
            self.key_ends.append(len(self.keys))
            self.places.extend((number, member.offset_data, member.size))
        elif self.wanted is not None and ending == self.wanted:
            self.labels[key] = tar.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
        elif self.wanted is not None and ending == "json":
            fields = json.load(tar.extractfile(member))  # type: ignore[arg-type]
            if self.wanted in fields:
                self.labels.setdefault(key, fields[self.wanted])


@dataclass
class TarItems:
    """Images inside uncompressed tars; table: int64 (N, 3) = shard, first byte, number of bytes."""

    shards: list[Path]
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def open(self, i: int) -> Encoded:
        shard, start, size = (int(v) for v in self.table[i])
        with open(self.shards[shard], "rb") as file:
            file.seek(start)
            return file.read(size)

    def sample(self, limit: int) -> np.ndarray:
        return evenly_spaced(len(self), limit)
