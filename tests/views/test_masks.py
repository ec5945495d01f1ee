"""Masks: exact counts, shapes of blocks, a sample's masks do not depend on its batch, and what a person is shown."""

from __future__ import annotations

import pytest
import torch

from attar.errors import RecipeError
from attar.views.augmentation import CentreView
from attar.views.batches import hide
from attar.views.draws import Draws
from attar.views.masks import (
    MakeContextAndTargets,
    MakeMaskedMultiCrop,
    MakeMaskedView,
    block_masks,
    central_square,
    context_and_targets,
    enlarge,
    random_blots,
    random_masks,
    shrunk,
)

BLOCKS = dict(
    num_targets=4, target_scale=(0.15, 0.2), target_aspect=(0.75, 1.5), context_scale=(0.85, 1.0), min_context=10
)


def draws(num: int = 64, epoch: int = 0, first: int = 0) -> Draws:
    return Draws(0, torch.arange(first, first + num), epoch=epoch)


def is_rectangle(mask: torch.Tensor, grid: int) -> tuple[int, int] | None:
    """Its height and width, if these patches are a full rectangle."""
    rows, columns = mask.view(grid, grid).nonzero().unbind(1)
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    return (height, width) if height * width == int(mask.sum()) else None


def test_random_masks_hide_an_exact_number_anywhere():
    masks = random_masks(draws(2000), grid=4, num_masked=12)
    assert (masks.sum(1) == 12).all()
    assert (masks.float().mean(0) - 0.75).abs().max() < 0.04
    assert not torch.equal(masks[:64], random_masks(draws(64, epoch=1), grid=4, num_masked=12))


@pytest.mark.parametrize(
    ("grid", "ratio", "cell", "masked"),
    [(14, 0.75, 1, 147), (14, 0.6, 2, 30), (8, 0.6, 2, 10), (4, 0.75, 1, 12), (7, 0.75, 1, 37), (10, 0.9, 1, 90)],
)
def test_numbers_of_masked_cells_are_the_papers(make_spec, grid, ratio, cell, masked):
    assert MakeMaskedView(CentreView(make_spec()), grid=grid, ratio=ratio, cell=cell).num_masked == masked


def test_cells_are_squares_of_patches():
    cells = random_masks(draws(5), grid=3, num_masked=4)
    masks = enlarge(cells, 2).view(5, 6, 6)
    for row in range(6):
        for column in range(6):
            assert torch.equal(masks[:, row, column], cells[:, row // 2 * 3 + column // 2])


def test_block_masks_cover_nearly_the_wanted_number_in_blocks():
    wanted = torch.arange(256) % 99
    masks = block_masks(draws(256), wanted, grid=14)
    covered = masks.sum(1)
    assert (covered <= wanted).all() and (covered[wanted == 0] == 0).all()
    enough = wanted >= 20
    assert (covered[enough] / wanted[enough]).mean() > 0.9
    # neighbours share their fate far more often than in a random mask of the same share
    square = masks[wanted > 40].view(-1, 14, 14)
    assert (square[:, 1:] == square[:, :-1]).float().mean() > 0.8


def test_the_first_block_is_a_rectangle_with_the_wanted_aspect_and_area():
    masks = block_masks(draws(500), torch.full((500,), 40), grid=14, attempts=1)
    shapes = [is_rectangle(m, 14) for m in masks if m.any()]
    assert len(shapes) > 250 and None not in shapes
    assert all(3 <= h * w <= 40 for h, w in shapes)
    ratios = torch.tensor([h / w for h, w in shapes])
    assert ratios.min() > 0.15 and ratios.max() < 7 and (ratios > 1).float().mean() == pytest.approx(0.5, abs=0.15)


def test_i_jepas_blocks():
    context, targets = context_and_targets(draws(200), grid=14, **BLOCKS)
    assert targets.shape == (200, 4, 196)
    for image in range(200):
        shapes = {is_rectangle(t, 14) for t in targets[image]}
        assert len(shapes) == 1 and None not in shapes, "four rectangles of one size"
        height, width = shapes.pop()
        assert 0.12 * 196 < height * width < 0.24 * 196 and 0.6 < height / width < 1.8
    assert not (context & targets.any(1)).any()
    assert (context.sum(1) >= 10).all() and 60 < context.sum(1).float().mean() < 130
    assert len({tuple(t.nonzero()[0].tolist()) for t in targets[:, 0]}) > 30, "places differ"


def test_a_small_grid_gives_up_targets_one_by_one_rather_than_the_context():
    context, targets = context_and_targets(draws(200), grid=4, **{**BLOCKS, "target_scale": (0.3, 0.5)})
    assert (targets.sum(2) >= 1).all()
    assert ((context.sum(1) >= 10) | (context.sum(1) == 9)).all()  # a context of 3 x 3 has no more
    first_only = [not (c & t[0]).any() for c, t in zip(context, targets)]
    assert not all(first_only)
    fitting, targets = context_and_targets(draws(200), grid=4, **{**BLOCKS, "min_context": 1})
    leaking = (fitting & targets.any(1)).any(1)
    assert leaking.float().mean() < 0.2


def makers(spec):
    view = CentreView(spec)
    return [
        MakeMaskedView(view, grid=8, ratio=0.75),
        MakeMaskedView(view, grid=8, ratio=0.6, cell=2),
        MakeMaskedMultiCrop(global_views=[view] * 2, local_views=[view], grid=8, probability=0.5, ratio=(0.1, 0.5)),
        MakeContextAndTargets(view, grid=8, **BLOCKS),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_sample_is_masked_the_same_in_any_batch(make_batch, make_spec, which):
    batch, make = make_batch(6), makers(make_spec())[which]
    whole = make(batch, Draws(3, batch.index, epoch=2))
    part = batch.__class__(batch.canvases[4:], batch.rectangles[4:], batch.index[4:])
    half = make(part, Draws(3, part.index, epoch=2))
    for name in ("mask", "context", "targets"):
        if hasattr(whole, name):
            assert torch.equal(getattr(whole, name)[4:], getattr(half, name))
    for all_masks, own in zip(getattr(whole, "masks", []), getattr(half, "masks", [])):
        assert torch.equal(all_masks[4:], own)


def test_about_half_of_the_global_views_are_masked_independently(make_batch, make_spec):
    make = makers(make_spec())[2]
    shares = torch.stack([m.float().mean(1) for m in make(make_batch(6), draws(6)).masks])
    assert shares.shape == (2, 6) and shares.max() <= 0.5
    masks = [make._masks(draws(400, first=1000 * k)).float().mean(1) for k in range(2)]
    assert (masks[0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert masks[0][masks[0] > 0].mean() == pytest.approx(0.3, abs=0.06)


def test_hidden_patches_are_grey_and_the_others_whole():
    images = torch.randn(2, 3, 12, 12)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 2
    hidden = hide(images, mask)
    assert (hidden[0, :, 4:8, 8:] == 0).all() and torch.equal(hidden[1], images[1])
    assert torch.equal(hidden[0, :, :, :8], images[0, :, :, :8])


def test_pictures_show_what_is_hidden(make_batch, make_spec):
    batch = make_batch(6)
    names = [list(make(batch, Draws(0, batch.index)).pictures()) for make in makers(make_spec())]
    assert names[0] == ["view", "masked"]
    assert names[2] == ["global 1", "masked 1", "global 2", "masked 2", "local 1"]
    assert names[3] == ["view", "context", "target 1", "target 2", "target 3", "target 4"]


def test_masks_that_leave_nothing_are_refused(make_spec):
    view = CentreView(make_spec())
    with pytest.raises(RecipeError, match="mask_ratio=1.0 of 4 x 4 cells leaves nothing to see"):
        MakeMaskedView(view, grid=4, ratio=1.0)
    with pytest.raises(RecipeError, match="leaves nothing"):
        MakeMaskedView(view, grid=1, ratio=0.5)
    with pytest.raises(RecipeError, match="3 x 3 patches does not fit a grid of 8"):
        MakeMaskedView(view, grid=8, ratio=0.5, cell=3)


def test_the_middle_has_its_share_and_blots_have_exactly_theirs():
    assert central_square(128, 0.25) == slice(32, 96) and central_square(32, 0.25) == slice(8, 24)
    blots = random_blots(draws(50), size=30, share=0.25, cells=8)
    assert blots.shape == (50, 30, 30) and (blots.sum(dim=(1, 2)) == 225).all()
    often = blots.float().mean(dim=0)
    assert often.min() > 0.02 and often.max() < 0.6  # anywhere, and never always
    edges = (blots[:, 1:] != blots[:, :-1]).float().mean()
    assert edges < 0.15  # blots, not dots: those would differ from their neighbours in 3 of 8 cases
    alone = random_blots(draws(1, first=7), size=30, share=0.25, cells=8)
    assert torch.equal(alone[0], blots[7])


def test_a_region_shrinks_from_its_edge_but_not_from_the_border_of_the_image():
    region = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    region[..., 2:9, 0:7] = True
    expected = torch.zeros_like(region)
    expected[..., 4:7, 0:5] = True
    assert torch.equal(shrunk(region, 2), expected)
    assert torch.equal(shrunk(region, 0), region)
