"""Pretext tasks can be solved without seeing what is in a picture. Here such shortcuts are planted in pictures of
random texture, in which there is nothing else to see, and a small network sees the shortcut's cue alone: it does well
where the defence is off, and no better than chance where it is on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import CanvasBatch, ImageSpec
from attar.methods.base import load, resolve_recipe
from attar.methods.pretext.relative_position import AROUND, pretext_targets
from attar.views.draws import Draws

NUM_IMAGES = 800


def test_accuracy_of_the_small_network_is_chance_without_a_cue_and_1_with_one():
    targets = torch.arange(4000) % 8
    noise = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))
    assert accuracy(noise, targets) < 0.125 + 0.03
    assert accuracy(noise + 6 * F.one_hot(targets, 20), targets) > 0.9


@pytest.mark.parametrize("defended", [False, True])
def test_relative_position_edges_that_run_on(defended):
    """Texture that changes over three pixels continues across a cut, not across a gap."""
    settings = dict(gap=1 / 2, displaced=1 / 12) if defended else dict(gap=0.0, displaced=0.0)
    patches, first, second, targets = pairs(texture, colours="keep", **settings)
    solved = accuracy(edges_that_match(patches, first, second).flatten(0, 1), targets)
    assert solved < 1 / 8 + 0.03 if defended else solved > 0.4


@pytest.mark.parametrize("colours", ["keep", "drop", "project"])
def test_relative_position_colour_fringes(colours):
    """Green is magnified a little, as by a lens: the direction in which it is off says where a patch was."""
    patches, first, second, targets = pairs(fringes, gap=1 / 2, displaced=1 / 12, colours=colours)
    seen = direction_of_green(patches)
    solved = accuracy(torch.cat([seen[:, first], seen[:, second]], dim=2).flatten(0, 1), targets)
    assert solved > 0.4 if colours == "keep" else solved < 1 / 8 + 0.03


@pytest.mark.parametrize("defended", [False, True])
def test_jigsaw_edges_that_run_on(defended):
    many = lambda size: texture(size, 3 * NUM_IMAGES)  # noqa: E731
    tiles, targets = puzzles(many, gap=0.25 if defended else 0.0, grid=2, num_permutations=24)
    first, second = (torch.tensor([pair[i] for pair in NEIGHBOURS_OF_4]) for i in range(2))
    solved = accuracy(edges_that_match(tiles, first, second).flatten(1), targets)
    assert solved < 1 / 24 + 0.03 if defended else solved > 0.4


@pytest.mark.parametrize("defended", [False, True])
def test_jigsaw_brightness_and_contrast(defended):
    """Every picture is darker and duller above than below, and on the left than on the right."""
    tiles, targets = puzzles(shaded, normalise_tiles=defended, grey=1.0)
    statistics = torch.stack([tiles.mean(dim=(3, 4)), tiles.std(dim=(3, 4))], dim=2)  # of each channel
    solved = accuracy(statistics.flatten(1), targets)
    assert solved < 1 / 10 + 0.03 if defended else solved > 0.6


@pytest.mark.parametrize("defence", ["none", "grey"])
def test_jigsaw_colour_fringes(defence):
    """Grey hides them. (Shifted channels only weaken fringes as strong as these, and so does a share of grey.)"""
    tiles, targets = puzzles(fringes, grey=float(defence == "grey"))
    solved = accuracy(direction_of_green(tiles).flatten(1), targets)
    assert solved > 0.4 if defence == "none" else solved < 1 / 10 + 0.03


def test_jigsaw_narrow_colour_fringes_are_blurred_by_shifted_channels():
    """Of 0.4 px, as of a lens. Shifts leave a third of the answers, and with the share of grey of jigsaw++ fewer."""
    narrow = lambda size: fringes(size, width=0.4)  # noqa: E731
    settings = [dict(), dict(channel_shift=2), dict(channel_shift=2, grey=0.7)]
    made = [puzzles(narrow, **given) for given in settings]
    plain, shifted, and_grey = (accuracy(direction_of_green(tiles).flatten(1), targets) for tiles, targets in made)
    assert plain > 0.9
    assert shifted < 0.5
    assert and_grey < 0.25


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_rotation_borders(crop):
    """A crop leaves a trace at the borders of a picture: black, or another sharpness. It must be alike on every side,
    or it would say what is up."""
    recipe = resolve_recipe("rotation", "small" if crop == "padded" else "photo", {"crop": crop})
    canvases = batch_of(texture(32))
    made = load("rotation").views(recipe, image_of(32))(canvases, Draws(0, canvases.index))
    assert turn_told_by_borders(made.images, made.pretext_targets) < 1 / 4 + 0.04
    planted = torch.cat(
        [F.pad(made.images[: len(canvases.index), :, 3:], (0, 0, 3, 0)).rot90(r, (2, 3)) for r in range(4)]
    )
    assert turn_told_by_borders(planted, made.pretext_targets) > 0.6  # one that is always above is seen


def turn_told_by_borders(images: Tensor, targets: Tensor) -> float:
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # they come turn by turn
    grey = images.mean(dim=1)
    sides = [grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]]
    cues = torch.cat(sides + [torch.stack([side.std(dim=1) for side in sides], dim=1)], dim=1)
    return accuracy(cues[rows], targets[rows])


# --- what is seen ---

NEIGHBOURS_OF_4 = [(i, j) for i in range(4) for j in range(4) if i != j]


def edges_that_match(pieces: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """For pieces (B, P, C, h, w) and pairs (N,): how alike are edges and corners that would touch, (B, N, 8)."""
    grey = pieces.mean(dim=2)
    edges = torch.stack([grey[..., 0, :], grey[..., -1, :], grey[..., 0], grey[..., -1]], dim=2)
    corners = torch.stack([grey[..., i, j] for i in (0, -1) for j in (0, -1)], dim=2)  # (B, P, 4)
    edges_touch, corners_touch = [1, 0, 3, 2], [3, 2, 1, 0]  # above to below, left to right; across
    alike = F.cosine_similarity(edges[:, first], edges[:, second][:, :, edges_touch], dim=3)
    return torch.cat([alike, corners[:, first] * corners[:, second][:, :, corners_touch]], dim=2)


def direction_of_green(pieces: Tensor) -> Tensor:
    """How much better green fits red when moved by d than when moved by -d, for pieces (B, P, 3, h, w): (B, P, 12).

    This is 0 where both channels show the same, whatever that is.
    """
    red, green = pieces.unbind(2)[:2]
    moved = lambda c, y, x: c[..., 2 + y : c.shape[-2] - 2 + y, 2 + x : c.shape[-1] - 2 + x]  # noqa: E731
    fit = lambda a, b, y, x: (moved(a, 0, 0) * moved(b, y, x)).mean(dim=(2, 3))  # noqa: E731
    half = [(y, x) for y in range(3) for x in range(-2, 3) if (y, x) > (0, 0)]
    return torch.stack([fit(red, green, y, x) - fit(green, red, y, x) for y, x in half], dim=2)


def accuracy(cues: Tensor, targets: Tensor) -> float:
    """Of a network with one hidden layer, trained on the first two thirds of the rows, on the others.

    Rows of one picture are together, so none is on both sides.
    """
    torch.manual_seed(0)
    cues = cues + 1e-4 * torch.randn_like(cues)  # so that rounding errors are no cue
    cues = (cues - cues.mean(dim=0)) / cues.std(dim=0)
    network = torch.nn.Sequential(
        torch.nn.Linear(cues.shape[1], 32), torch.nn.ReLU(), torch.nn.Linear(32, int(targets.max()) + 1)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.05)
    split = len(cues) * 2 // 3
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(network(cues[:split]), targets[:split]).backward()
        optimiser.step()
    with torch.no_grad():
        return (network(cues[split:]).argmax(dim=1) == targets[split:]).float().mean().item()


# --- pictures of random texture ---


def texture(size: int, num_images: int = NUM_IMAGES) -> Tensor:
    """(B, 3, size, size), in every channel the same smooth noise of deviation 1: alike over about three pixels."""
    noise = torch.randn(num_images, 1, size + 4, size + 4, generator=torch.Generator().manual_seed(size))
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    smooth = F.conv2d(noise, (line[:, None] * line)[None, None])
    return (smooth / smooth.std()).expand(-1, 3, -1, -1)


def fringes(size: int, width: float = 1.5) -> Tensor:
    """Texture; green is magnified about the middle, by so many pixels half-way to the border."""
    images = texture(size)
    grid = F.affine_grid(
        torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]) * (1 - 4 * width / size), [1, 1, size, size], align_corners=False
    )
    green = F.grid_sample(images[:, 1:2], grid.expand(len(images), -1, -1, -1), align_corners=False)
    return torch.cat([images[:, :1], green, images[:, 2:]], dim=1)


def shaded(size: int) -> Tensor:
    ramp = torch.linspace(-1, 1, size)
    place = ramp[:, None] + 0.5 * ramp
    return texture(size) * (1 + 0.3 * place) + place


# --- from pictures to puzzles, through the methods' own views ---


def image_of(size: int) -> ImageSpec:
    return ImageSpec(size=size, channels=3, mean=(0.5, 0.45, 0.4), std=(0.2, 0.25, 0.3))


def batch_of(images: Tensor) -> CanvasBatch:
    size = images.shape[-1]
    canvases = (127 + 30 * images).clamp(0, 255).to(torch.uint8)
    return CanvasBatch(canvases, torch.tensor([[0.0, 0, size, size]]).repeat(len(images), 1), torch.arange(len(images)))


def made_from(pictures, method: str, **settings):
    """The batch of a method's small views at 32 px, whole pictures, from pictures that need no resizing."""
    recipe = resolve_recipe(method, "small", {"crop_scale": (1.0, 1.0), "flip": 0.0, **settings})
    make = load(method).views(recipe, image_of(32))
    batch = batch_of(pictures(make.view.view_size))
    return make(batch, Draws(0, batch.index)), recipe


def pairs(pictures, **settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches (B, 9, C, h, w), numbers of the first and the second of each pair (16,), targets (16 B,)."""
    patches = made_from(pictures, "relative_position", **settings)[0].patches
    middle, around = torch.full((8,), 4), torch.tensor(AROUND)
    targets = pretext_targets(patches.device).repeat(len(patches))
    return patches, torch.cat([middle, around]), torch.cat([around, middle]), targets


def puzzles(pictures, **settings) -> tuple[Tensor, Tensor]:
    """Tiles as shown (B, T, C, h, w), and the numbers of their permutations; ten of them unless told."""
    from attar.views.permutations import spread_permutations

    batch, recipe = made_from(
        pictures, "jigsaw", **{"grid": 3, "num_permutations": 10, "grey": 0.0, "gap": 0.25, **settings}
    )
    order = spread_permutations(recipe.grid**2, recipe.num_permutations)[batch.pretext_targets]
    return batch.tiles[torch.arange(len(order))[:, None], order], batch.pretext_targets
