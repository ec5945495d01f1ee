"""Class labels: from values of a column to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def _short(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
