"""Real sets of the folder ATTAR_DATA load with their known numbers of images and classes."""

import os
from pathlib import Path

import numpy as np
import pytest

from attar.data.load import load_images
from attar.data.statistics import measure_statistics

SETS = {  # file -> images, classes, channels
    "cifar10_train.npz": (50_000, 10, 3),
    "cifar100_test.npz": (10_000, 100, 3),
    "imagenette128_val.parquet": (2_000, 10, 3),
    "scene15_train.parquet": (1_500, 15, 3),
    "davis_tennis.parquet": (70, 0, 3),
}


@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_real_set(name):
    folder = os.environ.get("ATTAR_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"ATTAR_DATA holds no {name}")
    images = load_images(Path(folder) / name, image_size=32, labels="auto")
    number, classes, channels = SETS[name]
    assert (len(images), len(images.classes), images.channels) == (number, classes, channels)
    assert images.broken == [] and (classes == 0 or len(np.unique(images.labels)) == classes)
    assert images.batch(np.array([number - 1, 0])).canvases.float().std() > 10


@pytest.mark.real
def test_statistics_of_cifar10_are_the_published_ones():
    folder = os.environ.get("ATTAR_DATA")
    if not folder:
        pytest.skip("ATTAR_DATA is not set")
    mean, std = measure_statistics(load_images(Path(folder) / "cifar10_train.npz", image_size=32), limit=50_000)
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=2e-3)
