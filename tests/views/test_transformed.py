"""Views beside transformed ones: the target says what was done, and undoing it gives the picture back."""

from __future__ import annotations

import pytest
import torch

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.draws import Draws
from attar.views.transformed import ORDERS, MakeTransformed, as_drawn, shuffled, turned, turned_at_random

IMAGES = torch.randn(40, 3, 8, 6, generator=torch.Generator().manual_seed(0))
SQUARE = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def draws(epoch: int = 0, index: torch.Tensor | None = None) -> Draws:
    return Draws(0, torch.arange(40) if index is None else index, epoch=epoch)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_turning_back_gives_the_picture(number):
    images, target = turned(SQUARE, number, draws())
    assert (target == number).all()
    assert torch.equal(torch.rot90(images, -number, (2, 3)), SQUARE)


def test_random_turns_are_all_four_and_no_question():
    images, target = turned_at_random(SQUARE, 1, draws())
    found = [next(r for r in range(4) if torch.equal(torch.rot90(x, -r, (1, 2)), y)) for x, y in zip(images, SQUARE)]
    assert set(found) == {0, 1, 2, 3} and not target.any()


def test_quarters_stand_where_the_target_says():
    images, target = shuffled(IMAGES, 1, draws())
    assert target.min() >= 1 and target.max() <= 23 and len(target.unique()) > 8
    corners = [(0, 0), (0, 3), (4, 0), (4, 3)]
    for image, source, number in zip(images, IMAGES, target):
        for place, quarter in enumerate(ORDERS[number]):
            (r, c), (y, x) = corners[place], corners[quarter]
            assert torch.equal(image[:, r : r + 4, c : c + 3], source[:, y : y + 4, x : x + 3])
    assert ORDERS[0] == (0, 1, 2, 3)
    with pytest.raises(RecipeError, match="a side of 7 pixels has no halves"):
        shuffled(torch.zeros(40, 3, 7, 7), 1, draws())


def test_blocks_hold_the_same_images_in_the_same_order_each_drawn_anew(make_batch):
    batch = make_batch(5)
    pixels = batch.canvases.float() / 255
    brightened = lambda b, d: b.canvases.float() / 255 + d.uniform()[:, None, None, None]  # noqa: E731
    make = MakeTransformed(brightened, brightened, as_drawn)
    made = make(batch, Draws(0, batch.index))
    assert made.transformed.shape == (15, *made.images.shape[1:]) and made.index is batch.index
    offsets = torch.cat([(x - pixels).mean(dim=(1, 2, 3)) for x in (made.images, *made.transformed.split(5))])
    assert len({round(float(o), 4) for o in offsets}) == 20
    assert list(made.pictures()) == ["image", "transformed 1", "transformed 2", "transformed 3"]
    part = CanvasBatch(batch.canvases[2:4], batch.rectangles[2:4], batch.index[2:4])
    alone = make(part, Draws(0, part.index)).transformed[2:4]
    torch.testing.assert_close(alone, made.transformed[7:9])
