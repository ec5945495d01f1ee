"""Reproducible choices of labelled images: held-out parts, shares and a number per class.

All are pure functions of (labels, setting, seed), return sorted positions, and leave out images without a label (-1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attar.data.images import Images
from attar.errors import DataError


def _shuffled_classes(labels: np.ndarray, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each class and the positions of its members in an order fixed by (seed, class)."""
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        yield int(label), np.random.default_rng([seed, int(label)]).permutation(members)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _check_fraction(where: str, fraction: float, *, one: bool) -> None:
    if not (0 < fraction < 1 or (one and fraction == 1)):
        raise DataError(
            f"{where}: fraction={fraction} is not accepted; give a share above 0 and {'up to' if one else 'below'} 1."
        )


def stratified_split(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cut into two parts with the same mix of classes.

    Args:
        labels: int64 (N,), -1 where unknown; those are in neither part.
        fraction: share of the second part, in (0, 1).

    Returns:
        Positions of the first and of the second part, sorted. A class with two or more members is in both parts, a
        single one in the first. Rounding is spread over the classes, so the second part holds fraction * N in all,
        up to these rules.
    """
    labels = np.asarray(labels)
    _check_fraction("stratified_split", fraction, one=False)
    first, second = [], []
    owed = 0.0  # what rounding has kept from the second part so far
    for _, members in _shuffled_classes(labels, seed):
        wanted = fraction * len(members) + owed
        taken = int(np.clip(np.floor(wanted + 0.5), min(1, len(members) - 1), max(len(members) - 1, 0)))
        owed = wanted - taken
        second.append(members[:taken])
        first.append(members[taken:])
    return _joined(first), _joined(second)


def subset_per_class(labels: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """k positions of every class, sorted; for the same seed a smaller k gives a subset of a larger one.

    Raises:
        DataError: if a class has fewer than k members.
    """
    labels = np.asarray(labels)
    if k < 1:
        raise DataError(f"subset_per_class: k={k} is not accepted; give 1 or more.")
    parts = []
    for label, members in _shuffled_classes(labels, seed):
        if len(members) < k:
            raise DataError(
                f"subset_per_class: k={k}, but class {label} has {len(members)} images; use k={len(members)} or less."
            )
        parts.append(members[:k])
    return _joined(parts)


def label_fraction(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """A share of every class, at least one image each, as sorted positions; smaller shares lie within larger ones."""
    labels = np.asarray(labels)
    _check_fraction("label_fraction", fraction, one=True)
    return _joined([m[: max(int(fraction * len(m) + 0.5), 1)] for _, m in _shuffled_classes(labels, seed)])


def labelled_share(images: Images, fraction: float, seed: int = 0) -> np.ndarray:
    """The same share of every class by stable id, at least one image each, as sorted positions.

    An image is in or out by its own id and the class' others; the order of the images does not matter, and smaller
    shares lie within larger ones. Images without a label are left out.

    Raises:
        DataError: no labels, or a fraction outside (0, 1].
    """
    _check_fraction("labelled_share", fraction, one=True)
    if images.labels is None:
        raise DataError(f"labelled_share: {images.name} has no labels.")
    drawn = hashed(images.index, seed)
    parts = []
    for label in np.unique(images.labels[images.labels >= 0]):
        members = np.flatnonzero(images.labels == label)
        members = members[np.lexsort((images.index[members], drawn[members]))]
        parts.append(members[: max(int(fraction * len(members) + 0.5), 1)])
    return _joined(parts)


def hashed(ids: np.ndarray, seed: int) -> np.ndarray:
    """A uint64 for each id: the finaliser of splitmix64 (Steele et al. 2014, DOI 10.1145/2714064.2660195)."""
    start = np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def at_most(images: Images, number: int, *, seed: int = 0) -> Images:
    """A random choice of so many images, in their order; all of them where there are no more."""
    if len(images) <= number:
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:number]))
