"""Class labels: from values of a column to numbers, and checks for those who need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attar.data.images import Images
from attar.errors import DataError


def encode_labels(
    values: Sequence[Any], *, where: str, classes: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers 0 .. K-1 and their names.

    Args:
        values: strings, whole numbers or booleans; None, "" and negative numbers mean unknown (-1).
        where: the table and column, for errors.
        classes: names known beforehand; whole numbers are then positions in it. Otherwise the classes are the
            values that occur, sorted.

    Raises:
        DataError: for values that are no classes, such as fractions, or that `classes` does not hold.
    """
    missing = [v is None or v == "" or (isinstance(v, float) and v != v) for v in values]
    known = [v for v, gone in zip(values, missing) if not gone]
    fractions = [v for v in known if isinstance(v, float) and not v.is_integer()]
    if fractions:
        raise DataError(
            f"{where}: labels must be classes, but there are fractions such as {fractions[0]}; bin them first."
        )
    if all(isinstance(v, (int, float, np.integer)) and not isinstance(v, bool) for v in known):
        return _encode_numbers([-1 if gone else int(v) for v, gone in zip(values, missing)], where, classes)
    if not all(isinstance(v, (str, bool, int)) for v in known):
        raise DataError(f"{where}: labels must be strings or whole numbers, not {type(known[0]).__name__}.")
    names = tuple(classes) if classes is not None else tuple(sorted({str(v) for v in known}))
    position = {name: i for i, name in enumerate(names)}
    foreign = next((str(v) for v in known if str(v) not in position), None)
    if foreign is not None:
        raise DataError(f"{where}: label {foreign!r} is not among the classes {_short(names)}.")
    return np.array([-1 if gone else position[str(v)] for v, gone in zip(values, missing)], np.int64), names


def _encode_numbers(
    values: Sequence[int], where: str, classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    numbers = np.maximum(np.asarray(values, np.int64), -1)
    if classes is not None:
        if len(numbers) and numbers.max() >= len(classes):
            raise DataError(f"{where}: label {numbers.max()} has no name; there are {len(classes)} classes.")
        return numbers, tuple(classes)
    found = np.unique(numbers[numbers >= 0])
    labels = np.where(numbers >= 0, np.searchsorted(found, numbers), -1)
    return labels.astype(np.int64), tuple(str(v) for v in found)


def require_classes(images: Images) -> None:
    """Check that there is something to tell apart.

    Raises:
        DataError: without labels, or if the labelled images belong to fewer than two classes.
    """
    accepted = "Give one sub-folder a class, or a table and the name of its label column (--labels COLUMN)."
    if images.labels is None:
        raise DataError(f"{images.name} has no labels. {accepted}")
    present = np.unique(images.labels[images.labels >= 0])
    if len(present) < 2:
        names = [images.classes[i] for i in present if i < len(images.classes)]
        found = f"one class only ({names[0]!r})" if names else "no labelled image"
        raise DataError(f"{images.name}: {found}; at least 2 classes are needed to tell apart. {accepted}")


def match_classes(images: Images, classes: Sequence[str]) -> Images:
    """The same images with labels numbered as in `classes` (e.g. those of the training set), matched by name.

    Raises:
        DataError: if an image belongs to a class that `classes` does not hold.
    """
    if images.labels is None or images.classes == tuple(classes):
        return images
    position = {name: i for i, name in enumerate(classes)}
    present = np.unique(images.labels[images.labels >= 0])
    foreign = [images.classes[i] for i in present if images.classes[i] not in position]
    if foreign:
        raise DataError(
            f"{images.name}: classes {_short(foreign)} are not among {_short(classes)}; names must be equal."
        )
    table = np.array([position.get(name, -1) for name in images.classes] + [-1], np.int64)  # last: for label -1
    return replace(images, labels=table[images.labels], classes=tuple(classes))


def _short(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
