"""Mean and spread of the pixels a network is trained on."""

from __future__ import annotations

import numpy as np

from attar.data.images import Images, ImageSpec
from attar.errors import DataError

BATCH = 256


def measure_statistics(images: Images, limit: int = 2000, seed: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels scaled to [0, 1].

    Over all real pixels (not the padding) of up to `limit` images chosen by `seed`; large images weigh more. A channel
    that never changes gets the spread of one grey level, so that normalising does not divide by zero.
    """
    if not len(images):
        raise DataError(f"{images.name}: no images to measure.")
    positions = np.arange(len(images))
    if len(images) > limit:
        positions = np.sort(np.random.default_rng(seed).choice(len(images), limit, replace=False))
    total, squares, count = np.zeros(images.channels), np.zeros(images.channels), 0
    for start in range(0, len(positions), BATCH):
        canvases, rectangles = images.store.read(images.rows[positions[start : start + BATCH]])
        for canvas, (top, left, height, width) in zip(canvases, rectangles.astype(int)):
            real = canvas[top : top + height, left : left + width].reshape(-1, images.channels)
            levels = np.stack([np.bincount(real[:, c], minlength=256) for c in range(images.channels)])
            total += levels @ np.arange(256.0)
            squares += levels @ np.arange(256.0) ** 2
            count += len(real)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def image_spec(images: Images, size: int, crop_fraction: float = 1.0) -> ImageSpec:
    """What a network trained on these images at this size expects of its input."""
    mean, std = measure_statistics(images)
    return ImageSpec(size=size, channels=images.channels, mean=mean, std=std, crop_fraction=crop_fraction)
