"""Tiles and neighbours: where they are cut, and what is taken away from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views.augmentation import Augmentation
from attar.views.draws import Draws
from attar.views.puzzles import MakeNeighbours, MakeTiles, cut


def plain(image, size, *, grey=0.0) -> Augmentation:
    """The whole square, nothing random but grey."""
    return Augmentation(
        image, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=None, grey=grey, blur=0.0
    )


def places(num_images=64, side=60) -> CanvasBatch:
    """Pictures whose first channel is the row, the second the column, the third their difference, plus 100."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    picture = torch.stack([row, column, 100 + row - column]).to(torch.uint8)
    rectangles = torch.tensor([[0.0, 0, side, side]]).repeat(num_images, 1)
    return CanvasBatch(picture.repeat(num_images, 1, 1, 1), rectangles, torch.arange(num_images))


def test_cut_is_a_slice_for_every_channel():
    images = torch.randn(3, 2, 10, 12)
    rows, columns = torch.randint(0, 6, (3, 4, 2)), torch.randint(0, 8, (3, 4, 2))
    pieces = cut(images, rows, columns, 5)
    assert pieces.shape == (3, 4, 2, 5, 5)
    for b, p, c in ((b, p, c) for b in range(3) for p in range(4) for c in range(2)):
        top, left = rows[b, p, c], columns[b, p, c]
        assert torch.equal(pieces[b, p, c], images[b, c, top : top + 5, left : left + 5])
    shared = cut(images, rows[..., :1], columns[..., :1], 5)
    assert torch.equal(shared[:, :, 0], pieces[:, :, 0])


def test_tiles_lie_in_their_cells_at_every_place(make_spec):
    batch = places()
    made = MakeTiles(plain(make_spec(), 60), grid=3, side=15, num_permutations=7, normalise=False)
    tiles = (made(batch, Draws(0, batch.index)).tiles * 255).round()
    assert tiles.shape == (64, 9, 3, 15, 15)
    for number in range(9):
        top, left = tiles[:, number, 0, 0, 0] - 20 * (number // 3), tiles[:, number, 1, 0, 0] - 20 * (number % 3)
        assert sorted(top.unique().tolist()) == sorted(left.unique().tolist()) == [0, 1, 2, 3, 4, 5]
        assert torch.equal(tiles[0, number, 0, :, 0] - tiles[0, number, 0, 0, 0], torch.arange(15.0))


def test_channels_of_a_tile_are_shifted_unless_the_picture_is_grey(make_spec):
    batch = places()
    made = MakeTiles(plain(make_spec(), 60), grid=3, side=15, num_permutations=7, channel_shift=2, normalise=False)
    tiles = (made(batch, Draws(0, batch.index)).tiles * 255).round()
    top, left, difference = tiles[..., 0, 0].unbind(2)  # of the pixel each channel's cut begins with
    off = (difference - 100) - (top - left)  # (row - column) of the third against the first two
    assert off.unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert ((top % 20) <= 5).all() and ((left % 20) <= 5).all()
    grey = replace(made, view=plain(make_spec(), 60, grey=1.0))(batch, Draws(0, batch.index)).tiles
    assert torch.equal(grey[:, :, 0], grey[:, :, 1]) and torch.equal(grey[:, :, 0], grey[:, :, 2])


def test_every_tile_has_mean_0_and_deviation_1(make_batch, make_spec):
    batch = make_batch()
    made = MakeTiles(plain(make_spec(), 36), grid=3, side=8, num_permutations=7)(batch, Draws(0, batch.index))
    assert made.tiles.mean(dim=(2, 3, 4)).abs().max() < 1e-5
    assert (made.tiles.std(dim=(2, 3, 4), correction=0) - 1).abs().max() < 1e-4
    batch.canvases[:] = 77
    flat = MakeTiles(plain(make_spec(), 36), grid=3, side=8, num_permutations=7)(batch, Draws(0, batch.index))
    assert flat.tiles.abs().max() < 1e-3  # not rounding errors, blown up
    (name, picture), *others = flat.pictures().items()
    assert (name, picture.shape, others) == ("tiles", (6, 3, 28, 28), [])


def test_a_grey_tile_stays_grey_whatever_the_channels_were_divided_by(make_batch, make_spec):
    batch = make_batch()
    maker = MakeTiles(plain(make_spec(normalise=True), 36, grey=1.0), grid=3, side=8, num_permutations=7)
    tiles = maker(batch, Draws(0, batch.index)).tiles
    assert (tiles - tiles[:, :, :1]).abs().max() < 1e-4
    unlike = replace(maker, normalise=False)(batch, Draws(0, batch.index)).tiles
    assert (unlike - unlike[:, :, :1]).abs().max() > 0.1


def test_tiles_that_do_not_fit_are_refused(make_spec):
    with pytest.raises(RecipeError, match="do not fit into cells of 12"):
        MakeTiles(plain(make_spec(), 36), grid=3, side=11, num_permutations=7, channel_shift=2)


@pytest.mark.parametrize("displaced", [0, 2])
def test_neighbours_keep_their_gap(make_spec, displaced):
    side, gap = 12, 6
    size = MakeNeighbours.extent(side, gap, displaced)
    batch = places(side=size)
    made = MakeNeighbours(plain(make_spec(), size), side=side, gap=gap, displaced=displaced, colours="keep")
    corner = cut_corners(made, batch)  # (B, 9, 2), row and column
    number = torch.arange(9)
    cells = torch.stack([number // 3, number % 3], dim=1) * (side + gap) + displaced
    assert sorted((corner - cells).unique().tolist()) == list(range(-displaced, displaced + 1))
    far = (corner[:, :, None] - corner[:, None]).abs().amax(dim=3)[:, ~torch.eye(9, dtype=torch.bool)]
    assert far.min() >= side + gap - 2 * displaced > side  # no two patches overlap


def cut_corners(made: MakeNeighbours, batch: CanvasBatch) -> torch.Tensor:
    """Where each patch was cut, from pictures of their own places: centring is undone by the known first channels."""
    import attar.views.puzzles as puzzles

    seen, original = [], puzzles.cut
    try:
        puzzles.cut = lambda images, rows, columns, side: (
            seen.append((rows, columns)) or original(images, rows, columns, side)
        )
        made(batch, Draws(0, batch.index))
    finally:
        puzzles.cut = original
    return torch.cat(seen[0], dim=2)


@pytest.mark.parametrize("colours", ["drop", "project", "keep"])
def test_patches_are_centred_and_equally_strong(make_batch, make_spec, colours):
    batch = make_batch()
    made = MakeNeighbours(plain(make_spec(normalise=True), 44), side=8, gap=8, displaced=2, colours=colours)
    patches = made(batch, Draws(0, batch.index)).patches
    assert patches.shape == (6, 9, 3, 8, 8)
    torch.testing.assert_close(patches.square().mean(dim=(2, 3, 4)), torch.ones(6, 9))
    if colours != "drop":  # the noise has its own mean
        assert patches.mean(dim=(3, 4)).abs().max() < 1e-5


def test_dropping_keeps_one_channel_of_each_patch_and_weak_noise(make_batch, make_spec):
    batch = make_batch(20)
    made = MakeNeighbours(plain(make_spec(), 44), side=8, gap=8, displaced=2, colours="drop")
    patches, kept_all = (
        replace(made, colours=colours)(batch, Draws(0, batch.index)).patches for colours in ("drop", "keep")
    )
    strength = patches.square().mean(dim=(3, 4)).sqrt().sort(dim=2, descending=True)  # (B, 9, C)
    kept = strength.indices[:, :, 0]
    assert kept.flatten().bincount().min() > 35 and (kept[:, :1] != kept).any()  # of 180, drawn for each patch
    ratio = strength.values[:, :, 1:] / strength.values[:, :, :1]
    assert ratio.max() < 0.02 and ratio.min() > 0.005
    rows, numbers = torch.arange(20)[:, None], torch.arange(9)
    a, b = patches[rows, numbers, kept].flatten(2), kept_all[rows, numbers, kept].flatten(2)
    torch.testing.assert_close(F.cosine_similarity(a, b, dim=2), torch.ones(20, 9))


def test_projection_leaves_no_green_against_magenta(make_batch, make_spec):
    batch, spec = make_batch(), make_spec(normalise=True)
    made = MakeNeighbours(plain(spec, 44), side=8, gap=8, displaced=2, colours="project")
    red, green, blue = (made(batch, Draws(0, batch.index)).patches * torch.tensor(spec.std)[:, None, None]).unbind(2)
    assert (2 * green - red - blue).abs().max() < 1e-5 < (red - blue).abs().max()
    with pytest.raises(RecipeError, match="defined for 3 channels"):
        MakeNeighbours(plain(make_spec(channels=4), 44), side=8, gap=8, displaced=2, colours="project")


def test_coarse_patches_are_resized_down_and_up(make_batch, make_spec):
    batch = make_batch(30)
    settings = dict(side=16, gap=4, displaced=0, colours="keep")
    sharp = MakeNeighbours(plain(make_spec(), 56), **settings)
    coarse = MakeNeighbours(plain(make_spec(), 56), **settings, low_resolution=0.33, smallest_share=0.25)
    before, after = (made(batch, Draws(0, batch.index)).patches.flatten(0, 1) for made in (sharp, coarse))
    changed = (before - after).abs().flatten(1).amax(dim=1) > 1e-3
    assert 0.33 * 270 * 0.7 < changed.sum() < 0.33 * 270 * 1.3
    sizes = set()
    for old, new in zip(before[changed], after[changed]):
        candidates = []
        for n in range(4, 17):
            small = F.interpolate(old[None], size=n, mode="bilinear", antialias=True)
            again = F.interpolate(small, size=16, mode="bilinear")[0]
            again = again - again.mean(dim=(1, 2), keepdim=True)
            candidates.append((again / again.square().mean().sqrt() - new).abs().max().item())
        assert min(candidates) < 1e-4
        sizes.add(candidates.index(min(candidates)))
    assert len(sizes) > 6
