"""CSV and Parquet tables: a column of paths beside the table, or a column of encoded images."""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.decode import Encoded, Unusable
from attar.data.labels import encode_labels
from attar.data.listing import FileItems, PathList, Source, evenly_spaced
from attar.data.sources import metadata_classes
from attar.errors import DataError, unknown_name

IMAGE_COLUMNS = ("image", "bytes", "path", "img", "file", "filename", "file_name", "image_path")
KEPT_ROW_GROUPS = 4


def open_table(path: Path, labels: str | None) -> Source:
    """A table with a header; the first of IMAGE_COLUMNS that it has holds the images.

    Strings are paths, relative to the table's folder; binary values, or {bytes, path} as Hugging Face writes them,
    are encoded images. labels: None, "auto" (`label` where it exists), or a column.
    """
    import pyarrow as pa

    columns, schema = _read_small_columns(path)
    names = schema.names
    images = next((c for c in IMAGE_COLUMNS if c in names), None)
    if images is None:
        raise DataError(
            f"{path}: no column with images; accepted are {', '.join(IMAGE_COLUMNS)}; found {', '.join(names)}."
        )
    kind = schema.field(images).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        source = _table_of_paths(path, columns(images).to_pylist())
    elif path.suffix.lower() == ".parquet" and (_is_binary(kind) or pa.types.is_struct(kind)):
        source = _table_of_bytes(path, images, columns, names)
    else:
        raise DataError(f"{path}: column {images} is of type {kind}; accepted are strings (paths) and encoded bytes.")
    if not len(source):
        raise DataError(f"{path} has a header, but no rows.")
    column = "label" if labels == "auto" and "label" in names else labels
    if column not in (None, "auto"):
        if column not in names:
            raise DataError(f"{path}: {unknown_name('label column', str(column), names)}")
        classes = metadata_classes(schema.metadata, str(column))
        source.labels, source.classes = encode_labels(
            columns(column).to_pylist(), where=f"{path}, column {column}", classes=classes
        )
    return source


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_small_columns(path: Path) -> tuple[Any, Any]:
    """A function column name -> values, and the schema; nothing but what is asked for is read."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            return lambda name: file.read([name])[name], file.schema_arrow
        options = pyarrow.csv.ConvertOptions(
            column_types={c: pa.string() for c in IMAGE_COLUMNS}, strings_can_be_null=True
        )
        table = pyarrow.csv.read_csv(path, convert_options=options)
        return lambda name: table[name], table.schema
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable {path.suffix} table: {error}") from None


def _table_of_paths(path: Path, paths: list[str | None]) -> Source:
    root = path.parent
    listed = PathList.of(p or "" for p in paths)
    status = array("q")
    for p in paths:
        try:
            found = os.stat(root / p) if p else None
        except OSError:
            found = None
        status.extend((found.st_size, found.st_mtime_ns) if found else (-1, 0))
    digest = hashlib.sha256(listed.hash() + hashlib.sha256(status.tobytes()).digest()).hexdigest()
    return Source(str(path), digest, FileItems(root, listed), where=listed)


def _table_of_bytes(path: Path, column: str, columns: Any, names: list[str]) -> Source:
    status = path.stat()
    digest = hashlib.sha256(f"{path.name} {status.st_size} {status.st_mtime_ns} {column}".encode()).hexdigest()
    described = next((c for c in ("path", "file", "filename", "file_name") if c in names and c != column), None)
    where = PathList.of(str(p) for p in columns(described).to_pylist()) if described else ()
    return Source(str(path), digest, ParquetItems(path, column), where=where)


@dataclass
class ParquetItems:
    """Encoded images in a Parquet column. A few row groups are kept, so reading in order is quick; reading at random
    costs a row group an image, which is what the pack is for.
    """

    path: Path
    column: str
    _ends: np.ndarray = field(init=False)
    _lock: Any = field(init=False, default_factory=threading.Lock)
    _kept: OrderedDict[int, Any] = field(init=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        import pyarrow.parquet

        meta = pyarrow.parquet.ParquetFile(self.path).metadata
        self._ends = np.cumsum([meta.row_group(g).num_rows for g in range(meta.num_row_groups)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self, i: int) -> Encoded:
        group = int(np.searchsorted(self._ends, i, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        value = self._group(group)[i - start].as_py()
        if isinstance(value, dict):
            inside, beside = value.get("bytes"), value.get("path")
            value = inside if inside is not None else (self.path.parent / beside if beside else None)
        if value is None:
            raise Unusable("no bytes (null)")
        return value

    def _group(self, group: int) -> Any:
        import pyarrow.parquet

        with self._lock:
            if group not in self._kept:
                file = pyarrow.parquet.ParquetFile(self.path)
                self._kept[group] = file.read_row_group(group, columns=[self.column])[self.column]
                while len(self._kept) > KEPT_ROW_GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

    def sample(self, limit: int) -> np.ndarray:
        """From at most 8 row groups, so that a large file is not read as a whole."""
        if len(self._ends) <= 8:
            return evenly_spaced(len(self), limit)
        starts = np.concatenate([[0], self._ends[:-1]])
        groups = evenly_spaced(len(starts), 8)
        return np.concatenate([starts[g] + evenly_spaced(int(self._ends[g] - starts[g]), limit // 8) for g in groups])
