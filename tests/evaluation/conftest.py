"""Small labelled images and subjects with features that are known, for the tests of attar.evaluate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.data.images import Images, ImageSpec
from attar.evaluation.features import Features
from attar.evaluation.subject import Subject, Task
from attar.models.backbones import build_backbone


class ArrayStore:
    def __init__(self, canvases):
        self.canvases = canvases

    def read(self, rows):
        size = self.canvases.shape[1]
        rectangles = np.tile(np.array([0, 0, size, size], dtype=np.float32), (len(rows), 1))
        return self.canvases[rows], rectangles


def images_of(canvases, labels=None, *, name="small", classes=(), digest="d0", first_id=0):
    n = len(canvases)
    return Images(
        name=name,
        store=ArrayStore(canvases),
        rows=np.arange(n),
        index=np.arange(n, dtype=np.int64) + first_id,
        canvas_size=canvases.shape[1],
        channels=canvases.shape[3],
        digest=digest,
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        classes=tuple(classes),
    )


@pytest.fixture
def make_images():
    return images_of


@pytest.fixture
def spec():
    return ImageSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def striped(make_images):
    """Images with bright rows (class 0) or bright columns (class 1) under noise: told apart by shape only."""

    def make(n, seed=0, **named):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 2
        canvases = rng.integers(0, 120, size=(n, 16, 16, 3), dtype=np.uint8)
        for canvas, label, at in zip(canvases, labels, rng.integers(4, size=n)):
            lines = canvas[at::4] if label == 0 else canvas[:, at::4]
            lines += np.uint8(110)
        return make_images(canvases, labels, classes=("rows", "columns"), **named)

    return make


@pytest.fixture
def make_subject(make_images, spec):
    """A subject whose features are given instead of computed."""

    def make(train, train_labels, test, test_labels, *, seed=0):
        train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
        train, test = (torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (train, test))
        blank = lambda labels: make_images(np.zeros((len(labels), 16, 16, 3), np.uint8), labels)  # noqa: E731
        num_classes = int(max(train_labels.max(), test_labels.max())) + 1
        classes = tuple(f"class {c}" for c in range(num_classes))
        task = Task(blank(train_labels), blank(test_labels), classes, seed=seed, progress=False)
        subject = Subject("model", build_backbone("pixels", channels=3, image_size=16), spec, task)
        as_features = lambda values, labels: Features(  # noqa: E731
            values, torch.arange(len(values)), torch.from_numpy(labels)
        )
        subject.train, subject.test = as_features(train, train_labels), as_features(test, test_labels)
        return subject

    return make


@pytest.fixture
def clusters():
    """Features (n, dim) around one centre per class, `apart` times as far from zero as the noise is wide; labels."""

    def make(n, *, num_classes=3, dim=8, apart=10.0, seed=0):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % num_classes
        centres = np.random.default_rng(99).normal(size=(num_classes, dim))
        return (apart * centres[labels] + rng.normal(size=(n, dim))).astype(np.float32), labels

    return make
