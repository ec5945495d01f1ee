from __future__ import annotations

import pytest
import torch

from attar.data.images import CanvasBatch, ImageSpec


@pytest.fixture
def make_batch():
    """Smooth-ish random canvases in the layout of the store; outside the rectangle everything is 255."""

    def make(num_images=6, channels=3, canvas=40, *, padded=False, seed=0) -> CanvasBatch:
        generator = torch.Generator().manual_seed(seed)
        canvases = torch.randint(0, 200, (num_images, canvas, canvas, channels), generator=generator, dtype=torch.uint8)
        rectangles = torch.tensor([[0, 0, canvas, canvas]]).repeat(num_images, 1)
        if padded:
            rectangles[::2, 2] = canvas * 2 // 3
            rectangles[1::2, 3] = canvas // 2
            for image, (top, left, height, width) in zip(canvases, rectangles.tolist()):
                inside = image[top : top + height, left : left + width].clone()
                image.fill_(255)
                image[top : top + height, left : left + width] = inside
        return CanvasBatch(canvases.permute(0, 3, 1, 2), rectangles.float(), torch.arange(num_images) * 3 + 5)

    return make


@pytest.fixture
def make_spec():
    def make(size=32, channels=3, *, normalise=False, crop_fraction=1.0) -> ImageSpec:
        mean = tuple(0.3 + 0.05 * c for c in range(channels)) if normalise else (0.0,) * channels
        std = tuple(0.2 + 0.03 * c for c in range(channels)) if normalise else (1.0,) * channels
        return ImageSpec(size=size, channels=channels, mean=mean, std=std, crop_fraction=crop_fraction)

    return make
