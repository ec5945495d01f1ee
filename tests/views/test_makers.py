from __future__ import annotations

import pytest
import torch

from attar.errors import RecipeError
from attar.views.augmentation import Augmentation, CentreView, RandomCropPad
from attar.views.draws import Draws
from attar.views.makers import (
    MakeImageAndPatches,
    MakeMultiCrop,
    MakeOneView,
    MakePatchGrid,
    MakeRotated,
    MakeTwoViews,
)


def test_one_view_is_the_augmentation(make_batch, make_spec):
    batch, augment = make_batch(), Augmentation(make_spec())
    made = MakeOneView(augment)(batch, Draws(0, batch.index))
    assert torch.equal(made.images, augment(batch, Draws(0, batch.index)))
    assert made.index is batch.index and list(made.pictures()) == ["view"]


def test_two_views_are_independent_draws(make_batch, make_spec):
    batch, augment = make_batch(), Augmentation(make_spec())
    made = MakeTwoViews(augment)(batch, Draws(0, batch.index))
    draws = Draws(0, batch.index)
    assert torch.equal(made.view1, augment(batch, draws)) and torch.equal(made.view2, augment(batch, draws))
    assert (made.view1 - made.view2).abs().flatten(1).amax(dim=1).min() > 0.01


def test_second_view_may_have_its_own_augmentation(make_batch, make_spec):
    batch = make_batch()
    made = MakeTwoViews(Augmentation(make_spec(), grey=0.0), Augmentation(make_spec(), grey=1.0))(
        batch, Draws(0, batch.index)
    )
    is_grey = lambda view: torch.allclose(view[:, 0], view[:, 2])  # noqa: E731
    assert not is_grey(made.view1) and is_grey(made.view2)


def test_multi_crop_sizes_and_names(make_batch, make_spec):
    batch = make_batch()
    large, small = Augmentation(make_spec(), scale=(0.4, 1.0)), Augmentation(make_spec(), size=16, scale=(0.05, 0.4))
    made = MakeMultiCrop(global_views=[large] * 2, local_views=[small] * 3)(batch, Draws(0, batch.index))
    assert [tuple(v.shape) for v in made.global_views] == [(6, 3, 32, 32)] * 2
    assert [tuple(v.shape) for v in made.local_views] == [(6, 3, 16, 16)] * 3
    assert list(made.pictures()) == ["global 1", "global 2", "local 1", "local 2", "local 3"]
    without = MakeMultiCrop(global_views=[large])(batch, Draws(0, batch.index))
    assert without.local_views == [] and torch.equal(without.global_views[0], made.global_views[0])


def test_rotations_rotate_back(make_batch, make_spec):
    batch = make_batch(4)
    made = MakeRotated(RandomCropPad(make_spec()))(batch, Draws(0, batch.index))
    view = RandomCropPad(make_spec())(batch, Draws(0, batch.index))  # mirrored where drawn, before turning
    assert made.pretext_targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    for image, turns, upright in zip(made.images, made.pretext_targets.tolist(), view.repeat(4, 1, 1, 1)):
        assert torch.equal(torch.rot90(image, -turns, (1, 2)), upright)
    assert len(made.index) == 4 and list(made.pictures()) == ["0°", "90°", "180°", "270°"]


def test_turns_are_counter_clockwise(make_batch, make_spec):
    batch = make_batch(1, canvas=32)
    upright, left, down, right = MakeRotated(CentreView(make_spec()))(batch, Draws(0, batch.index)).images
    assert torch.equal(left[:, -1, 0], upright[:, 0, 0])  # the top left corner comes to the bottom left
    assert torch.equal(down[:, -1, -1], upright[:, 0, 0]) and torch.equal(right[:, 0, -1], upright[:, 0, 0])


def test_mirroring_turns_90_into_270(make_batch, make_spec):
    """Why the mirror comes first: hflip(rot90(x)) = rot270(hflip(x))."""
    batch = make_batch(3)
    plain = MakeRotated(RandomCropPad(make_spec(), pad=0, flip=0.0))(batch, Draws(0, batch.index)).images.chunk(4)
    mirrored = MakeRotated(RandomCropPad(make_spec(), pad=0, flip=1.0))(batch, Draws(0, batch.index)).images.chunk(4)
    for turns in range(4):
        assert torch.equal(plain[turns].flip(-1), mirrored[-turns % 4])


def test_patches_lie_on_a_grid_and_neighbours_share_half(make_batch, make_spec):
    batch = make_batch()
    made = MakePatchGrid(CentreView(make_spec()), num_rows=7)(batch, Draws(0, batch.index))
    images = CentreView(make_spec())(batch)
    assert made.patches.shape == (6, 7, 7, 3, 8, 8)  # of 32 px
    for i, j in ((0, 0), (2, 5), (6, 6)):
        assert torch.equal(made.patches[:, i, j], images[:, :, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8])
    assert torch.equal(made.patches[:, 3, 3, :, 4:], made.patches[:, 4, 3, :, :4])
    assert made.index is batch.index and made.pictures()["patches"].shape == (6, 3, 56, 56)
    assert torch.equal(made.pictures()["patches"][:, :, 16:24, 40:48], made.patches[:, 2, 5])


def test_a_part_of_each_patch_is_kept_in_the_middle_of_a_border(make_batch, make_spec):
    batch = make_batch()
    made = MakePatchGrid(CentreView(make_spec()), num_rows=5, kept=0.8)(batch, Draws(0, batch.index))
    images = CentreView(make_spec())(batch)
    patches = made.patches  # stride 5, patches of 10, one pixel left over on each side, 8 of 10 kept
    assert patches.shape == (6, 5, 5, 3, 10, 10)
    edge = torch.ones(10, 10, dtype=torch.bool)
    edge[1:9, 1:9] = False
    assert (patches[..., edge] == 0).all()
    shifts = set()
    for b in range(6):
        for i in range(5):
            for j in range(5):
                inner = patches[b, i, j, :, 1:9, 1:9]
                found = [
                    (dy, dx)
                    for dy in range(3)
                    for dx in range(3)
                    if torch.equal(
                        inner, images[b, :, 1 + 5 * i + dy : 9 + 5 * i + dy, 1 + 5 * j + dx : 9 + 5 * j + dx]
                    )
                ]
                assert found, "a part of the patch at this place"
                shifts.update(found)
    assert len(shifts) == 9


def test_patches_that_do_not_fit_are_refused(make_batch, make_spec):
    batch = make_batch()
    with pytest.raises(RecipeError, match="num_rows=32 patches do not fit into a view of 32 pixels; use 31 or less"):
        MakePatchGrid(CentreView(make_spec()), num_rows=32)(batch, Draws(0, batch.index))


def plain_patch(spec, **settings) -> Augmentation:
    return Augmentation(spec, size=8, flip=0.0, jitter=None, grey=0.0, blur=0.0, **settings)


def test_patches_lie_in_their_cells_in_an_order_of_their_own(make_batch, make_spec):
    """Canvases whose red is the row and green the column of a pixel, so a patch tells where it was cut."""
    batch = make_batch(4, canvas=48)
    place = torch.arange(48, dtype=torch.uint8)
    batch.canvases[:, 0], batch.canvases[:, 1] = place[:, None], place[None, :]
    patch = plain_patch(make_spec(), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    made = MakeImageAndPatches(CentreView(make_spec()), patch, share=0.5)(batch, Draws(0, batch.index))
    assert made.patches.shape == (4, 9, 3, 8, 8) and made.images.shape == (4, 3, 32, 32)
    top, left = (made.patches[:, :, c].flatten(2).amin(dim=2) * 255 for c in (0, 1))
    bottom, right = (made.patches[:, :, c].flatten(2).amax(dim=2) * 255 for c in (0, 1))
    assert torch.equal(top // 16, bottom // 16) and torch.equal(left // 16, right // 16), "a patch crosses its cell"
    assert ((bottom - top - 7).abs() < 0.01).all(), "half a cell is 8 of 16 pixels"
    cells = (top // 16 * 3 + left // 16).long()
    assert torch.equal(cells.sort(dim=1).values, torch.arange(9).expand(4, 9))
    assert len({tuple(row) for row in cells.tolist()}) == 4, "each image has its own order"
    assert len({round(float(offset), 2) for offset in (top % 16).flatten()}) > 9, "each patch has its own gap"
    assert list(made.pictures()) == ["image", *(f"patch {i}" for i in range(1, 10))]


def test_patches_take_their_own_colours(make_batch, make_spec):
    batch = make_batch()
    patch = Augmentation(make_spec(), size=8, scale=(0.6, 1.0), grey=0.5, jitter=None, blur=0.0)
    made = MakeImageAndPatches(CentreView(make_spec()), patch)(batch, Draws(0, batch.index))
    is_grey = (made.patches[:, :, 0] - made.patches[:, :, 2]).abs().flatten(2).amax(dim=2) < 1e-5  # (B, 9)
    assert (is_grey.any(dim=1) & ~is_grey.all(dim=1)).all()


def test_patches_do_not_depend_on_the_batch(make_batch, make_spec):
    batch, make = make_batch(), MakeImageAndPatches(CentreView(make_spec()), plain_patch(make_spec()))
    whole = make(batch, Draws(0, batch.index))
    half = type(batch)(batch.canvases[3:], batch.rectangles[3:], batch.index[3:])
    assert torch.equal(make(half, Draws(0, half.index)).patches, whole.patches[3:])
