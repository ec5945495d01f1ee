"""From what a person names to a listed Source: folders, tables, arrays, known sets, shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.labels import encode_labels
from attar.data.listing import ArrayItems, FileItems, Source, list_folder, require_folder
from attar.errors import DataError

ACCEPTED = (
    "a folder, a .csv, .parquet or .npz file, an array uint8 (N, H, W[, C]), digits, elpv, torchvision:NAME[:ROOT], "
    "hf:NAME[:SPLIT], shards:PATTERN"
)

AnySource = str | os.PathLike | np.ndarray


def open_source(source: AnySource, labels: str | None = None) -> Source:
    """List a source without decoding.

    Args:
        source: see ACCEPTED. A name such as "digits" means the known set; write "./digits" for a folder of that name.
        labels: None; "auto" (whatever labels there are: class folders, a column `label`, those of a known set);
            "folder" (first level of sub-folders); or the name of a column, array or field. Arrays in .npz files and
            known sets bring their labels along even with None.

    Raises:
        DataError: if it does not exist, holds no images, or has no such labels.
    """
    if isinstance(source, np.ndarray):
        return array_source(source, None, (), name="array", given=labels)
    text = os.fspath(source)
    if text == "digits":
        return _digits(labels)
    kind, _, rest = text.partition(":")
    if text == "elpv" or kind in ("torchvision", "hf"):
        from attar.data import named

        if text == "elpv":
            return named.elpv(labels)
        return named.torchvision_set(rest, labels) if kind == "torchvision" else named.hugging_face(rest, labels)
    if kind == "shards":
        from attar.data.shards import open_shards

        return open_shards(rest, labels)
    return _open_path(Path(text).expanduser(), labels)


def path_of(source: str) -> Path | None:
    """The folder or file that a source names; None for a known set and for shards."""
    known = source in ("digits", "elpv") or source.partition(":")[0] in ("torchvision", "hf", "shards")
    return None if known else Path(source).expanduser()


def _open_path(path: Path, labels: str | None) -> Source:
    require_folder(path)
    if path.is_dir():
        return _folder(path, labels)
    ending = path.suffix.lower()
    if ending == ".npz":
        return _npz(path, labels)
    if ending in (".csv", ".parquet"):
        from attar.data.tables import open_table

        return open_table(path, labels)
    raise DataError(
        f"{path}: files ending in {ending or 'nothing'} are not accepted as a source; accepted are {ACCEPTED}."
    )


def _folder(path: Path, labels: str | None) -> Source:
    listing = list_folder(path)
    if not len(listing.paths):
        raise DataError(f"{path} holds no images (looked in all sub-folders of {path.absolute()}). {_found(listing)}")
    source = Source(
        name=str(path),
        digest=listing.digest(),
        items=FileItems(path, listing.paths),
        where=listing.paths,
        ignored=listing.ignored,
        unreadable=listing.unreadable,
    )
    if labels not in (None, "auto", "folder"):
        raise DataError(
            f"{path} is a folder and has no column {labels!r}; accepted are labels 'folder', 'auto' or none."
        )
    if labels == "folder" and not listing.group_names:
        raise DataError(
            f"{path}: labels='folder' needs one sub-folder a class, but there are no sub-folders with images."
        )
    if labels == "folder" or (labels == "auto" and len(listing.group_names) > 1):
        source.labels, source.classes = listing.groups.astype(np.int64), listing.group_names
    return source


def _found(listing: Any) -> str:
    """What was found instead of images."""
    if listing.unreadable:
        return f"Could not open: {', '.join(listing.unreadable[:5])}."
    if not listing.ignored:
        return "Found no files at all."
    return (
        f"Found only: {describe_ignored(listing.ignored)}. Files are recognised by their ending, e.g. .jpg, .png, .tif."
    )


def describe_ignored(ignored: Any) -> str:
    """'12 x .txt, 3 x without ending'"""
    ranked = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} x {ending or 'without ending'}" for ending, n in ranked[:8])


def array_source(
    images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...], *, name: str, given: str | None = None
) -> Source:
    """Images uint8 (N, H, W[, C]) in memory.

    Raises:
        DataError: for another type or shape.
    """
    if given not in (None, "auto") and labels is None:
        raise DataError(f"{name}: labels={given!r} was asked for, but there are none.")
    if images.dtype != np.uint8:
        raise DataError(
            f"{name}: images of type {images.dtype}; accepted is uint8 (for floats in [0, 1]: multiply by 255, round)."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{name}: images of shape {images.shape}; accepted are (N, H, W) and (N, H, W, C), none of them 0."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"{name}: images of shape {images.shape} look channels-first; give (N, H, W, C): x.transpose(0, 2, 3, 1)."
        )
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels.")
    pixels = images if images.ndim == 4 else images[..., None]
    digest = hashlib.sha256(repr(pixels.shape).encode() + hashlib.sha256(np.ascontiguousarray(pixels).data).digest())
    return Source(name, digest.hexdigest(), ArrayItems(pixels), labels=labels, classes=classes)


def _npz(path: Path, labels: str | None) -> Source:
    """Arrays `images`, and where present `labels`, `classes`; or encoded strips, see `_decode_strips`."""
    try:
        arrays = np.load(path, allow_pickle=False)
        names = list(arrays.files)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    if "images" not in names:
        raise DataError(f"{path}: no array `images`; found {', '.join(names) or 'nothing'}.")
    column = "labels" if labels in (None, "auto") else labels
    if labels not in (None, "auto") and column not in names:
        raise DataError(f"{path}: no array {labels!r} for the labels; found {', '.join(names)}.")
    try:
        images = arrays["images"]
        given = arrays[column] if column in names else None
        class_names = f"{column.removesuffix('labels')}classes"
        classes = [str(c) for c in arrays[class_names]] if class_names in names else None
        if images.ndim == 1 and "offsets" in names:
            images = _decode_strips(images, arrays["offsets"], path)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged, or holds Python objects instead of plain arrays: {error}") from None
    encoded, found = (
        (None, ())
        if given is None
        else encode_labels(given.reshape(-1).tolist(), where=f"{path}, array {column}", classes=classes)
    )
    return array_source(images, encoded, found, name=str(path))


def _decode_strips(encoded: np.ndarray, offsets: np.ndarray, path: Path) -> np.ndarray:
    """Images (N, W, W, C) of encoded strips: bytes offsets[i] to offsets[i + 1] are one picture, W wide and k * W high,
    that holds k square images one below the other. A compact form for many small images.
    """
    from PIL import Image

    def decode(span: tuple[int, int]) -> np.ndarray:
        with Image.open(io.BytesIO(encoded[span[0] : span[1]].tobytes())) as strip:
            pixels = np.asarray(strip)
        height, width = pixels.shape[:2]
        if height % width:
            raise DataError(f"{path}: a strip of {width} x {height} pixels does not hold whole square images.")
        return pixels.reshape(height // width, width, width, -1)

    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(decode, zip(offsets[:-1].tolist(), offsets[1:].tolist()))))


def _digits(labels: str | None) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, 17 grey levels stretched to 0..255."""
    from sklearn.datasets import load_digits

    require_own_labels("digits", labels)
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return array_source(images, found.target.astype(np.int64), tuple("0123456789"), name="digits")


def require_own_labels(name: str, labels: str | None, known: tuple[str, ...] = ()) -> None:
    """A known set brings its labels along; another choice would be ignored, so it is an error."""
    if labels not in (None, "auto", *known):
        accepted = ", ".join(repr(k) for k in ("auto", *known))
        raise DataError(f"{name} brings its own labels; labels={labels!r} is not accepted, only {accepted} or none.")


def metadata_classes(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """Class names kept in a Parquet schema: JSON under `classes`, or Hugging Face's feature of the column."""
    metadata = metadata or {}
    if b"classes" in metadata and column == "label":
        return [str(c) for c in json.loads(metadata[b"classes"])]
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(column, {}).get("names") if isinstance(features.get(column), dict) else None
    return [str(c) for c in names] if names else None
