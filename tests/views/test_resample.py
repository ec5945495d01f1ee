from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from attar.errors import ShapeError
from attar.views.resample import crop_and_resize, resize_weights


def random_boxes(num_boxes: int, canvas: int, seed: int = 0) -> torch.Tensor:
    """Whole-numbered boxes inside the canvas, from one pixel to everything."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, canvas + 1, (num_boxes, 2), generator=generator)
    corners = (torch.rand(num_boxes, 2, generator=generator) * (canvas - sides + 1)).long()
    return torch.cat([corners, sides], dim=1).float()


def by_torchvision(canvases, boxes, size, flip, interpolation):
    """Crop, resize, mirror: one picture at a time."""
    views = []
    for image, (top, left, height, width), mirrored in zip(canvases, boxes.int().tolist(), flip):
        crop = tv.crop(image, top, left, height, width)
        view = tv.resize(crop, [size, size], InterpolationMode(interpolation), antialias=True)
        views.append(tv.horizontal_flip(view) if mirrored else view)
    return torch.stack(views)


# one tile; several tiles; shrinking to odd sizes; enlarging
@pytest.mark.parametrize(("canvas", "size"), [(32, 32), (40, 24), (150, 96), (130, 41), (40, 100)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_and_resize_is_torchvisions_antialiased_result(make_batch, canvas, size, interpolation):
    canvases = make_batch(5, canvas=canvas).canvases.double() / 255
    boxes, flip = random_boxes(5, canvas), torch.tensor([True, False, True, True, False])
    views = crop_and_resize(canvases, boxes, size, flip=flip, interpolation=interpolation)
    assert views.dtype == torch.float64
    torch.testing.assert_close(views, by_torchvision(canvases, boxes, size, flip, interpolation), rtol=0, atol=1e-12)


def test_uint8_is_scaled_and_equals_the_float_path(make_batch):
    canvases = make_batch(5, canvas=150).canvases
    boxes = random_boxes(5, 150, seed=1)
    for interpolation in ("bilinear", "bicubic"):
        stored = crop_and_resize(canvases, boxes, 96, interpolation=interpolation)
        exact = crop_and_resize(canvases.double() / 255, boxes, 96, interpolation=interpolation)
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored.double(), exact.clamp(0, 1), rtol=0, atol=3e-5)


def test_memory_layout_does_not_matter(make_batch):
    canvases = make_batch(3, canvas=64).canvases
    boxes = random_boxes(3, 64)
    assert torch.equal(crop_and_resize(canvases, boxes, 96), crop_and_resize(canvases.contiguous(), boxes, 96))


@pytest.mark.parametrize(("canvas", "size"), [(40, 32), (150, 96)])
def test_nothing_outside_the_box_is_seen(canvas, size):
    canvases = torch.full((4, 1, canvas, canvas), 255, dtype=torch.uint8)
    boxes = random_boxes(4, canvas, seed=3)
    for image, (top, left, height, width) in zip(canvases, boxes.int().tolist()):
        image[:, top : top + height, left : left + width] = 0
    assert crop_and_resize(canvases, boxes, size).max() == 0
    assert crop_and_resize(canvases, boxes, size, interpolation="bicubic").max() == 0


def test_weights_sum_to_one_and_stay_inside():
    start, length = torch.tensor([0.0, 3.0, 2.5]), torch.tensor([20.0, 9.0, 7.2])
    weights = resize_weights(start, length, 11, 20)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 11))
    assert weights[1, :, :3].abs().max() == 0 and weights[1, :, 12:].abs().max() == 0
    assert weights[2, :, :2].abs().max() == 0 and weights[2, :, 10:].abs().max() == 0  # touches pixels 2 .. 9


def test_fractional_boxes_move_smoothly():
    """A ramp, cut half a pixel further, is brighter by half a step."""
    ramp = torch.arange(30.0).expand(1, 1, 30, 30)
    whole = crop_and_resize(ramp, torch.tensor([[5.0, 5.0, 16.0, 16.0]]), 16)
    half = crop_and_resize(ramp, torch.tensor([[5.0, 5.5, 16.0, 16.0]]), 16)
    torch.testing.assert_close(whole, ramp[:, :, 5:21, 5:21])
    torch.testing.assert_close((half - whole)[..., 1:-1], torch.full((1, 1, 16, 14), 0.5))


@pytest.mark.parametrize(("canvas", "size"), [(32, 32), (80, 80)])
def test_shift_moves_the_window_over_black(make_batch, canvas, size):
    canvases = make_batch(3, canvas=canvas).canvases
    boxes = torch.tensor([[0.0, 0.0, canvas, canvas]]).repeat(3, 1)
    shift, flip = torch.tensor([[-4, 3], [0, 0], [2, -1]]), torch.tensor([False, True, True])
    views = crop_and_resize(canvases, boxes, size, shift=shift, flip=flip)
    for view, image, (down, right), mirrored in zip(views, canvases, shift.tolist(), flip):
        bordered = tv.pad(image.float() / 255, [4, 4, 4, 4])
        expected = bordered[:, 4 + down : 4 + down + size, 4 + right : 4 + right + size]
        torch.testing.assert_close(view, expected.flip(-1) if mirrored else expected)


def test_shift_of_an_enlarged_picture_does_not_repeat_its_edge():
    """A pixel of the resized picture beyond its edge would still be near a real pixel, yet it is black."""
    boxes, shift = torch.tensor([[2.0, 2.0, 10.0, 10.0]]), torch.tensor([[3, -2]])
    view = crop_and_resize(torch.ones(1, 1, 14, 14), boxes, 40, shift=shift)[0, 0]
    expected = torch.zeros(40, 40)
    expected[:37, 2:] = 1
    torch.testing.assert_close(view, expected)


def test_autocast_does_not_degrade_pixels(make_batch):
    canvases, boxes = make_batch(2).canvases, random_boxes(2, 40)
    exact = crop_and_resize(canvases, boxes, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_and_resize(canvases, boxes, 32), exact)


def test_shapes_that_do_not_fit_are_named(make_batch):
    canvases = make_batch(3).canvases
    with pytest.raises(ShapeError, match=r"canvases \(3, 3, 40, 40\) and boxes \(2, 4\)"):
        crop_and_resize(canvases, torch.ones(2, 4), 8)
    with pytest.raises(ShapeError, match=r"flip has shape \(2,\); 3 boxes need \(3,\)"):
        crop_and_resize(canvases, torch.ones(3, 4), 8, flip=torch.ones(2, dtype=torch.bool))
