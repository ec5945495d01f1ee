"""Exemplars: seeds where something is, kept for ever; transformations of the image, each as told."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch

from attar.data.images import CanvasBatch, ImageSpec
from attar.errors import RecipeError
from attar.views.colour import contrast_of_components, contrast_of_hsv
from attar.views.draws import Draws
from attar.views.exemplars import MakeExemplars, cut_turned, seed_boxes, squared_gradient

PLAIN = dict(translation=0.0, scale=(1, 1), rotation=0.0, components=(1, 1), power=(1, 1), factor=(1, 1), offset=0.0)
IMAGE = ImageSpec(size=16, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def batch(num: int = 6, channels: int = 3, size: int = 48) -> CanvasBatch:
    """Smooth colourful canvases of which the right quarter is no picture."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, channels, 6, 6, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    canvases = (255 * pixels).byte()
    canvases[..., size * 3 // 4 :] = 0
    rectangles = torch.tensor([[0.0, 0.0, size, size * 3 // 4]]).expand(num, -1)
    return CanvasBatch(canvases, rectangles, torch.arange(num) * 3 + 2)


def test_without_transformation_a_sample_is_its_seed():
    made = MakeExemplars(IMAGE, num_samples=2, hue=0.0, **PLAIN)(batch(), Draws(0, batch().index))
    assert len(made.transformed) == 2 and made.seeds.shape == (6, 3, 16, 16)
    for sample in made.transformed:
        torch.testing.assert_close(sample, made.seeds, atol=1e-4, rtol=1e-4)
    assert torch.equal(made.index, batch().index) and list(made.pictures()) == ["seed", "sample 1", "sample 2"]


def test_the_seed_stays_and_its_samples_change_with_the_epoch():
    maker = MakeExemplars(IMAGE, num_samples=2)
    first, later = (maker(batch(), Draws(0, batch().index, epoch=e)) for e in (0, 5))
    assert torch.equal(first.seeds, later.seeds)
    assert not torch.isclose(first.transformed[0], later.transformed[0]).all(dim=(1, 2, 3)).any()
    assert not torch.isclose(*first.transformed).all(dim=(1, 2, 3)).any()
    one = CanvasBatch(batch().canvases[3:4], batch().rectangles[3:4], batch().index[3:4])
    alone = maker(one, Draws(0, one.index))
    torch.testing.assert_close(alone.transformed[1], first.transformed[1][3:4])


def test_seeds_lie_in_the_picture_and_where_it_has_gradients():
    flat = torch.full((40, 3, 64, 64), 90, dtype=torch.uint8)
    flat[..., 48:] = 0  # no picture: its edge must not count
    flat[:, :, 40:56, 8:24] = (torch.arange(16) % 2 * 200).byte()[None, None, :, None]
    rectangles = torch.tensor([[0.0, 0.0, 64.0, 48.0]]).expand(40, -1)
    row, column, side = seed_boxes(
        flat / 255, rectangles, torch.arange(40), scale=(0.2, 0.5), num_candidates=16
    ).unbind(1)
    assert (side >= 0.2 * 48).all() and (side <= 0.5 * 48).all() and side.std() > 1
    inside = (row - side / 2 >= 0) & (row + side / 2 <= 64) & (column - side / 2 >= 0) & (column + side / 2 <= 48)
    assert inside.all()
    meets = ((row - 48).abs() < side / 2 + 8) & ((column - 16).abs() < side / 2 + 8)
    assert meets.all()
    anywhere = seed_boxes(torch.ones_like(flat) / 7, rectangles, torch.arange(40), scale=(0.2, 0.5), num_candidates=16)
    row, column, side = anywhere.unbind(1)
    assert ((row - 48).abs() < side / 2 + 8).float().mean() < 0.8


def test_stronger_gradients_are_taken_more_often_in_proportion():
    canvases = torch.zeros(4000, 1, 16, 16, dtype=torch.uint8)
    canvases[:, :, 4, :], canvases[:, :, 12, :] = 40, 80
    real = torch.tensor([[0.0, 0, 16, 16]]).expand(4000, -1)
    row = seed_boxes(canvases / 255, real, torch.arange(4000), scale=(0.25, 0.25), num_candidates=64)[:, 0]
    low, high = ((row - 4.5).abs() < 2).float().mean(), ((row - 12.5).abs() < 2).float().mean()
    assert float(high / low) == pytest.approx(4.0, rel=0.2)  # twice the step is four times the squared gradient


def test_the_gradient_is_that_of_real_pixels():
    canvases = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    canvases[0, 0, :4, :4] = 255
    canvases[0, 0, 1, 1] = 0
    energy = squared_gradient(canvases / 255, torch.tensor([[0.0, 0.0, 4.0, 4.0]]))[0]
    expected = torch.zeros(6, 6)
    expected[0, 1] = expected[1, 0] = 1
    expected[1, 1] = 2
    assert torch.equal(energy, expected)


def ramp(size: int = 40) -> torch.Tensor:
    """Rows in the first channel, columns in the second; linear, so interpolation is exact."""
    place = torch.arange(size) + 0.5
    return torch.stack([place[:, None].expand(size, size), place[None].expand(size, size)])[None]


@pytest.mark.parametrize("fineness", [1, 3])
def test_a_cut_is_moved_scaled_and_turned_as_told(fineness):
    canvas, real = ramp(), torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    angle = math.radians(20)
    box = torch.tensor([[18.0, 22.0, 12.0]])
    cut = cut_turned(canvas, real, box, torch.tensor([angle]), 8, fineness=fineness)[0]
    for i, j in ((0, 0), (0, 7), (7, 0), (3, 5)):
        down, right = 12 * ((i + 0.5) / 8 - 0.5), 12 * ((j + 0.5) / 8 - 0.5)
        row = 18 + math.cos(angle) * down + math.sin(angle) * right
        column = 22 - math.sin(angle) * down + math.cos(angle) * right
        assert cut[:, i, j].tolist() == pytest.approx([row, column], abs=1e-3)


def test_outside_the_picture_it_is_mirrored_and_no_border_of_zeros_shows():
    canvas = ramp()
    canvas[..., 30:] = 0  # no picture
    real = torch.tensor([[0.0, 0.0, 40.0, 30.0]])
    cut = cut_turned(canvas, real, torch.tensor([[20.0, 26.0, 20.0]]), torch.zeros(1), 20, fineness=1)[0, 1]
    columns = [16 + j + 0.5 for j in range(20)]
    expected = [min(c if c < 30 else 60 - c, 29.5) for c in columns]
    assert cut[7].tolist() == pytest.approx(expected, abs=1e-3)
    turned = cut_turned(canvas + 1, real, torch.tensor([[2.0, 28.0, 30.0]]), torch.tensor([0.3]), 16, fineness=1)
    assert turned.min() > 0


def test_contrast_is_stretched_along_the_principal_components():
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    spread = torch.randn(2, 3, 20, 20, generator=generator) * torch.tensor([3.0, 1.0, 0.2]).view(3, 1, 1)
    images = torch.einsum("ck,bkhw->bchw", directions, spread) + 5
    factors = torch.tensor([[2.0, 0.5, 1.5], [1.0, 1.0, 1.0]])
    stretched = contrast_of_components(images, factors)
    torch.testing.assert_close(stretched[1], images[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stretched.mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)
    before, after = (torch.cov(x[0].flatten(1)) for x in (images, stretched))
    for vector, factor in zip(torch.linalg.eigh(before)[1].T.flip(0), factors[0]):
        torch.testing.assert_close(after @ vector, factor**2 * before @ vector, atol=1e-3, rtol=1e-3)
    grey = torch.rand(1, 1, 8, 8)
    doubled = contrast_of_components(grey, torch.tensor([[2.0]]))
    torch.testing.assert_close(doubled - doubled.mean(), 2 * (grey - grey.mean()))


def test_contrast_of_saturation_and_value_is_that_of_the_textbook():
    images = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0] = 0.3  # grey
    images[0, :, 0, 1] = 0.0  # black
    power = torch.tensor([[0.25, 4.0], [1.0, 1.0], [2.0, 0.5]])
    factor = torch.tensor([[1.4, 0.7], [1.0, 1.0], [0.8, 1.3]])
    offset = torch.tensor([[0.1, 0.1], [0.0, 0.0], [-0.1, 0.05]])
    out = contrast_of_hsv(images, power, factor, offset)
    torch.testing.assert_close(out[1], images[1])
    clamp = lambda t: min(max(t, 0.0), 1.0)  # noqa: E731
    for b in range(3):
        for i in range(5):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*images[b, :, i, j].tolist())
                new_v = clamp(v ** power[b, 1].item() * factor[b, 1].item() + offset[b, 1].item())
                new_s = clamp(s ** power[b, 0].item() * factor[b, 0].item() + offset[b, 0].item()) if s else 0.0
                assert out[b, :, i, j].tolist() == pytest.approx(colorsys.hsv_to_rgb(h, new_s, new_v), abs=1e-5)


def test_grey_images_and_images_of_other_channels_are_transformed_too():
    for channels in (1, 4):
        image = ImageSpec(size=16, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
        made = MakeExemplars(image, num_samples=1)(batch(channels=channels), Draws(0, torch.arange(6)))
        assert made.transformed[0].shape == (6, channels, 16, 16) and made.transformed[0].isfinite().all()
    with pytest.raises(RecipeError, match="seed_scale"):
        MakeExemplars(IMAGE, seed_scale=(0.5, 1.2))
    with pytest.raises(RecipeError, match=r"power=\(0.0, 4.0\)"):
        MakeExemplars(IMAGE, power=(0.0, 4.0))


def test_powers_that_lighten_are_as_frequent_as_those_that_darken():
    grey = CanvasBatch(
        torch.full((2000, 3, 8, 8), 64, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 8, 8]]).expand(2000, -1),
        torch.arange(2000),
    )
    image = ImageSpec(size=4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    made = MakeExemplars(image, **{**PLAIN, "power": (0.25, 4.0)})(grey, Draws(0, grey.index))
    drawn = (made.transformed[0].mean(dim=(1, 2, 3)).log() / math.log(64 / 255)).log() / math.log(4)
    assert drawn.min() >= -1.01 and drawn.max() <= 1.01
    for share in (0.25, 0.5, 0.75):
        assert drawn.quantile(share).item() == pytest.approx(2 * share - 1, abs=0.06)
