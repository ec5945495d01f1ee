"""What a source holds, listed without decoding: names, labels and a digest. Compact enough for many million files."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from attar.data.decode import Encoded, Unusable, image_extensions
from attar.errors import DataError


class PathList(Sequence[str]):
    """Many strings in one byte buffer: 8 bytes each beside the text, instead of a hundred."""

    def __init__(self, buffer: bytes, ends: np.ndarray, rows: np.ndarray | None = None):
        self._buffer, self._ends, self._rows = buffer, ends, rows

    @classmethod
    def of(cls, names: Iterable[bytes | str]) -> PathList:
        buffer, ends = bytearray(), array("q")
        for name in names:
            buffer += os.fsencode(name)
            ends.append(len(buffer))
        return cls(bytes(buffer), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self._ends if self._rows is None else self._rows)

    def raw(self, i: int) -> bytes:
        """The exact bytes, as the file system knows them."""
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = i if self._rows is None else int(self._rows[i])
        return self._buffer[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])]

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> PathList: ...
    def __getitem__(self, i: int | slice) -> str | PathList:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        return self.raw(int(i)).decode("utf-8", "backslashreplace")

    def take(self, positions: np.ndarray) -> PathList:
        """The strings at these positions; shares the buffer."""
        return PathList(self._buffer, self._ends, positions if self._rows is None else self._rows[positions])

    def hash(self) -> bytes:
        return hashlib.sha256(self._buffer).digest() + hashlib.sha256(self._ends.tobytes()).digest()


class Items(Protocol):
    """The images of a source by position, still encoded. Safe to use from several threads."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> Encoded:
        """What `decode` takes; raises Unusable where there is nothing."""
        ...

    def sample(self, limit: int) -> np.ndarray:
        """Up to `limit` positions spread over all, cheap to open."""
        ...


def evenly_spaced(length: int, limit: int) -> np.ndarray:
    return (
        np.unique(np.linspace(0, length - 1, min(length, limit)).astype(np.int64)) if length else np.zeros(0, np.int64)
    )


@dataclass
class FileItems:
    """Files below (or beside) a root."""

    root: Path
    paths: PathList

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Encoded:
        if not self.paths.raw(i):
            raise Unusable("no path given")
        return os.fsdecode(os.path.join(os.fsencode(self.root), self.paths.raw(i)))

    def sample(self, limit: int) -> np.ndarray:
        return evenly_spaced(len(self), limit)


@dataclass
class ArrayItems:
    """Images in memory: uint8 (N, H, W, C)."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, i: int) -> Encoded:
        return self.pixels[i]

    def sample(self, limit: int) -> np.ndarray:
        return evenly_spaced(len(self), limit)


@dataclass
class Source:
    """Everything known before decoding.

    index i of an image is its position here, broken images included. digest covers what could change the pixels:
    names, sizes and times of files, or the bytes of arrays. ignored counts files left out, by file name ending.
    """

    name: str
    digest: str
    items: Items
    where: Sequence[str] = ()  # names for people; empty where there are only row numbers
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)  # folders that could not be opened

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, i: int) -> str:
        return self.where[i] if len(self.where) else f"row {i}"


@dataclass
class Listing:
    """The image files below a folder, sorted by path; group -1 is the folder itself, others its sub-folders."""

    root: Path
    paths: PathList
    sizes: np.ndarray
    times: np.ndarray
    groups: np.ndarray  # position in group_names of the first directory level, -1 directly in the folder
    group_names: tuple[str, ...]
    ignored: Counter[str]
    unreadable: list[str]

    def digest(self) -> str:
        """Of relative paths, sizes and modification times; not of where the folder lies."""
        parts = (self.paths.hash(), self.sizes.tobytes(), self.times.tobytes())
        return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()


def list_folder(root: Path) -> Listing:
    """Walk a folder of any depth.

    Files count by their ending (see `image_extensions`); others are ignored and counted. Hidden files and folders
    (leading dot) and __MACOSX are passed over. Links are followed, each folder is entered once.
    """
    return _Walk(root).listing()


class _Walk:
    """One pass by os.scandir. Sorting each folder by itself gives a sorted listing without sorting everything."""

    def __init__(self, root: Path):
        self.root = root
        self.buffer, self.ends = bytearray(), array("q")
        self.sizes, self.times, self.groups = array("q"), array("q"), array("i")
        self.group_names: list[str] = []
        self.ignored: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.entered: set[tuple[int, int]] = set()
        self.endings = {os.fsencode(e) for e in image_extensions()}

    def listing(self) -> Listing:
        self._enter(os.fsencode(self.root), b"", group=-1, top=True)
        return Listing(
            self.root,
            PathList(bytes(self.buffer), np.frombuffer(self.ends, np.int64)),
            np.frombuffer(self.sizes, np.int64),
            np.frombuffer(self.times, np.int64),
            np.frombuffer(self.groups, np.int32),
            tuple(self.group_names),
            self.ignored,
            self.unreadable,
        )

    def _enter(self, folder: bytes, relative: bytes, *, group: int, top: bool = False) -> None:
        names, sizes, times = [], array("q"), array("q")  # size -1 marks a folder
        try:
            with os.scandir(folder) as entries:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self.entered and status.st_ino:
                    return
                self.entered.add((status.st_dev, status.st_ino))
                for entry in entries:
                    name = entry.name
                    if name.startswith(b".") or name == b"__MACOSX":
                        continue
                    if entry.is_dir():
                        size, time = -1, 0
                    else:
                        ending = os.path.splitext(name)[1].lower()
                        if ending not in self.endings:
                            self.ignored[os.fsdecode(ending)] += 1
                            continue
                        size, time = _size_and_time(entry)
                    names.append(name)
                    sizes.append(size)
                    times.append(time)
        except OSError as error:
            self.unreadable.append(f"{os.fsdecode(relative) or '.'} ({error.strerror})")
            return
        for i in sorted(range(len(names)), key=names.__getitem__):
            path = os.path.join(relative, names[i])
            if sizes[i] >= 0:
                self._add(path, sizes[i], times[i], group)
            elif top:
                self._enter_group(os.path.join(folder, names[i]), path)
            else:
                self._enter(os.path.join(folder, names[i]), path, group=group)

    def _enter_group(self, folder: bytes, relative: bytes) -> None:
        """A folder of the first level; it becomes a group when it holds an image."""
        before = len(self.ends)
        self._enter(folder, relative, group=len(self.group_names))
        if len(self.ends) > before:
            self.group_names.append(relative.decode("utf-8", "backslashreplace"))

    def _add(self, path: bytes, size: int, time: int, group: int) -> None:
        self.buffer += path
        self.ends.append(len(self.buffer))
        self.sizes.append(size)
        self.times.append(time)
        self.groups.append(group)


def _size_and_time(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # a dangling link: listed, and reported as broken when it is opened
        return 0, 0
    return status.st_size, status.st_mtime_ns


def require_folder(path: Path) -> None:
    if not path.exists():
        raise DataError(f"no such file or folder: {path} (looked in {path.absolute()}).{_nearest_existing(path)}")


def _nearest_existing(path: Path) -> str:
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    if parent is None:
        return ""
    inside = sorted(p.name + ("/" if p.is_dir() else "") for p in parent.iterdir())[:8]
    return f" {parent} exists and holds {', '.join(inside) or 'nothing'}."
