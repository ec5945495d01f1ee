"""Wrong and few training labels, on purpose: to measure what a method makes of them. Never for images to test on.

All are pure functions of (labels, stable ids, setting, seed), so an image that is left out changes no other's label;
images without a label (-1) keep none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from attar.data.images import Images
from attar.data.splits import hashed, labelled_share
from attar.errors import DataError, unknown_name

KINDS = ("symmetric", "asymmetric", "asymmetric_cifar10")
# Patrini et al. 2017, arXiv:1609.03683, section 4: CIFAR-10's truck -> automobile, bird -> airplane, deer -> horse,
# cat <-> dog; the other classes keep their labels
CIFAR10 = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)


def symmetric_noise(
    labels: np.ndarray, rate: float, num_classes: int, seed: int = 0, *, ids: np.ndarray | None = None
) -> np.ndarray:
    """A share of every class becomes another class, any other one equally often.

    Args:
        labels: int64 (N,), -1 where unknown. rate: share of wrong labels in [0, 1); of each class round(rate * size).
        ids: stable ids (N,) that decide what becomes of a label; None: the positions.

    Returns:
        A copy with wrong labels. For the same seed, what is wrong at a rate is wrong, and alike, at every higher one.
    """
    labels = _checked("symmetric_noise", labels, rate, num_classes)
    ids = np.arange(len(labels)) if ids is None else ids
    steps = 1 + (hashed(ids, 2 * seed) % np.uint64(num_classes - 1)).astype(np.int64)
    return np.where(_chosen(labels, rate, seed, ids), (labels + steps) % num_classes, labels)


def asymmetric_noise(
    labels: np.ndarray,
    rate: float,
    num_classes: int,
    seed: int = 0,
    *,
    becomes: Sequence[int] | None = None,
    ids: np.ndarray | None = None,
) -> np.ndarray:
    """A share of every class is taken for one certain other class.

    Args:
        labels, rate, ids: as for `symmetric_noise`.
        becomes: for each class the one it is taken for; itself: it keeps its labels. None: the next, the last being
            followed by the first. CIFAR10 holds the confusions that are usual for CIFAR-10.
    """
    labels = _checked("asymmetric_noise", labels, rate, num_classes)
    target = np.roll(np.arange(num_classes), -1) if becomes is None else np.asarray(becomes)
    if len(target) != num_classes or target.min() < 0 or target.max() >= num_classes:
        raise DataError(f"asymmetric_noise: becomes={list(target)} must name one of {num_classes} classes for each.")
    ids = np.arange(len(labels)) if ids is None else ids
    return np.where(_chosen(labels, rate, seed, ids), target[labels], labels)


def with_label_noise(images: Images, noise: str, *, seed: int = 0) -> Images:
    """The same images with wrong labels. noise: "symmetric:RATE", e.g. symmetric:0.4, "asymmetric:RATE" (the next
    class) or "asymmetric_cifar10:RATE" (the confusions that are usual for CIFAR-10).

    Raises:
        DataError: no labels, or not understood.
    """
    kind, _, share = noise.partition(":")
    if kind not in KINDS:
        raise DataError(unknown_name("label noise", kind, KINDS) + " Give e.g. symmetric:0.4.")
    try:
        rate = float(share)
    except ValueError:
        raise DataError(f"label noise {noise!r}: give the share of wrong labels, e.g. {kind}:0.4.") from None
    if images.labels is None:
        raise DataError(f"label noise: {images.name} has no labels that could be wrong.")
    asked = (images.labels, rate, images.num_classes, seed)
    if kind == "symmetric":
        return replace(images, labels=symmetric_noise(*asked, ids=images.index))
    becomes = CIFAR10 if kind == "asymmetric_cifar10" else None
    return replace(images, labels=asymmetric_noise(*asked, becomes=becomes, ids=images.index))


def with_label_fraction(images: Images, fraction: float, *, seed: int = 0) -> Images:
    """A share of every class, at least one image each; the other images are left out. Smaller shares lie in larger.

    Raises:
        DataError: no labels, or a share outside (0, 1].
    """
    if images.labels is None:
        raise DataError(f"label fraction: {images.name} has no labels to choose by.")
    return images.subset(labelled_share(images, fraction, seed))


def _checked(where: str, labels: np.ndarray, rate: float, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if not 0 <= rate < 1:
        raise DataError(f"{where}: rate={rate} is not accepted; give a share from 0 to below 1.")
    if num_classes < 2 or labels.max(initial=-1) >= num_classes:
        raise DataError(f"{where}: num_classes={num_classes} does not suit labels up to {labels.max(initial=-1)}.")
    return labels


def _chosen(labels: np.ndarray, rate: float, seed: int, ids: np.ndarray) -> np.ndarray:
    """bool (N,): the first round(rate * size) of each class in an order fixed by the seed and the ids."""
    drawn = hashed(ids, 2 * seed + 1)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        order = members[np.lexsort((ids[members], drawn[members]))]
        chosen[order[: int(rate * len(members) + 0.5)]] = True
    return chosen
