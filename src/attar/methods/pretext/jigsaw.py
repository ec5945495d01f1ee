"""Jigsaw: an image is cut into nine tiles and these are shuffled; in which of P orders are they shown? To answer, a
network must know what the parts of things look like and how they lie to each other. Jigsaw++ makes it harder: up to
two tiles come from another image.

Noroozi and Favaro 2016, arXiv:1603.09246; Jigsaw++: Noroozi et al. 2018, arXiv:1805.00385.

    tiles t_0 .. t_8 in reading order, permutation s_k number k of P, shown[i] = t[s_k(i)]
    z_i  = tile_head(backbone(shown[i])), each tile alone
    loss = mean  CE( head(z_0, .., z_8), k )

Against shortcuts: the tiles are cut from cells a third larger, at random places (no line runs on from tile to tile);
each has mean 0 and deviation 1 (no brightness to sort by); some images are grey, which hides colour fringes (they point
to the middle of a photograph), and in the others the channels of each tile are shifted, which blurs that trace where
fringes are narrower than the shift.

The permutations are chosen greedily, each as far as possible from those before (Hamming distance): 1000 of nine tiles
differ in 8.0 of 9 places on average, and in 5 at least. Jigsaw++: image i gives up to two tiles to image i - 1 of the
batch over all processes, the last to the first, never to itself; which tiles, how many and where is drawn per image.
The label stays the permutation, so any two permutations must differ in more places than tiles are foreign.

State: the table of permutations, so that a label keeps its meaning; it never moves. Saved.

Differs: the published permutations of Jigsaw differ in 2 places at least and those of Jigsaw++ in 3, what is needed;
ours in 5. The paper's AlexNet has no batch norm; here the head has it, as in the ResNets of Goyal et al. 2019
(arXiv:1905.01235). Any backbone takes the place of AlexNet, with its own stride. Units, the grey share of 0.3 and the
channel shift of 2 px are the paper's; the published code has 1024 units for each tile, and cells of 85 px where the
paper's last version has 75. The grey share of Jigsaw++ is that of a port (gatheluck/10YearVisualSSL). "small" is ours:
2 x 2 tiles of 12 px from images of 32 in all 24 orders, with crops and mirroring, which the paper has not;
"small_plus_plus" has 3 x 3 from images grown to 48 px, since four tiles cannot spare two.

Cost: nine tiles of 64 px have 0.73 times the pixels of one view of 224 px.

Choose it when pictures have a composition (objects, scenes) and a network of its own for tiles is wanted, or as the
teacher of cluster_transfer. It cannot work on textures, and contrastive methods learn better features at equal cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows
from attar.losses.gather import first_own_row
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import Tiles, side_by_side
from attar.views.permutations import hamming_distances, spread_permutations
from attar.views.puzzles import MakeTiles


@dataclass(frozen=True, kw_only=True)
class JigsawRecipe(Recipe):
    """Jigsaw's own settings. 2016: sections 3 and 4."""

    num_permutations: int = 1000
    grid: int = 3  # tiles a side
    tile_scale: float = 64 / 224  # side of a tile as a share of the image's: 64 px
    gap: float = 21 / 85  # share of a cell's side that its tile leaves: cells of 85 px
    crop_scale: tuple[float, float] = (1.0, 1.0)  # area of the square; 1: as large as fits
    flip: float = 0.0
    grey: float = 0.3
    channel_shift: int = 2  # px
    normalise_tiles: bool = True
    max_foreign: int = 0  # tiles of another image
    projector_dim: int = 512  # fc6, of each tile
    projector_hidden_dim: int = 4096  # fc7, of all
    dropout: float = 0.5  # before the last layer; published code


_PHOTO = JigsawRecipe(  # published code (MehdiNoroozi/JigsawPuzzleSolver, solver_cfn_jps.prototxt), its steps in epochs
    epochs=70,  # 350,000 steps
    batch_size=256,
    optimiser="sgd",
    base_lr=0.01,
    schedule="step",
    lr_drops=(100 / 350, 200 / 350, 300 / 350),  # published code
    weight_decay=5e-4,  # published code
)
_SMALL = JigsawRecipe(  # 32 px: ours
    epochs=200,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.1,  # 0.05 at a batch of 128
    weight_decay=5e-4,
    grid=2,
    num_permutations=24,  # all there are
    tile_scale=3 / 8,  # 12 px of 32
    crop_scale=(0.5, 1.0),
    flip=0.5,
    channel_shift=0,  # pictures as small as these have no fringes
    projector_dim=128,
    projector_hidden_dim=512,
    dropout=0.0,
)

RECIPES = {
    "photo": _PHOTO,
    "jigsaw_plus_plus": replace(_PHOTO, num_permutations=701, grey=0.7, max_foreign=2),  # as "photo"; 2018, section 3
    "small": _SMALL,
    "small_plus_plus": replace(_SMALL, grid=3, num_permutations=100, grey=0.7, max_foreign=2),  # ours, as "small"
}


def tile_side(recipe: JigsawRecipe, image: ImageSpec) -> int:
    """In pixels; at least 8."""
    return max(round(recipe.tile_scale * image.size), 8)


def views(recipe: JigsawRecipe, image: ImageSpec) -> MakeTiles:
    """A square of the image, grey or not, and its tiles."""
    side = tile_side(recipe, image)
    if not 0 <= recipe.gap < 1:
        raise RecipeError(f"jigsaw: gap={recipe.gap} is not accepted; give a share of a cell from 0 to below 1.")
    cell = round(side / (1 - recipe.gap))
    square = Augmentation(
        image,
        size=recipe.grid * cell,
        scale=recipe.crop_scale,
        ratio=(1.0, 1.0),
        flip=recipe.flip,
        jitter=None,
        grey=recipe.grey,
        blur=0.0,
    )
    return MakeTiles(
        square,
        grid=recipe.grid,
        side=side,
        num_permutations=recipe.num_permutations,
        channel_shift=recipe.channel_shift,
        normalise=recipe.normalise_tiles,
        max_foreign=recipe.max_foreign,
    )


class Jigsaw(Method):
    """See the module's docstring. B images, T tiles, P permutations, D features, E embedding of a tile."""

    recipe: JigsawRecipe
    permutations: Tensor

    def __init__(self, recipe: JigsawRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        backbone.require_size(tile_side(recipe, setup.image), setting="tile_scale")
        num_tiles, E = recipe.grid**2, recipe.projector_dim
        permutations = spread_permutations(num_tiles, recipe.num_permutations)
        _check_distance(permutations, recipe.max_foreign)
        self.register_buffer("permutations", permutations.clone())
        self.backbone = backbone
        self.tile_head = nn.Sequential(MLP([backbone.num_features, E], final_norm="batch"), nn.ReLU())
        hidden = recipe.projector_hidden_dim
        self.head = nn.Sequential(
            MLP([num_tiles * E, hidden], final_norm="batch"),
            nn.ReLU(),
            nn.Dropout(recipe.dropout),
            nn.Linear(hidden, recipe.num_permutations),
        )

    def step(self, batch: Tiles, progress: Progress) -> StepOutput:
        features, logits = self._read(self.shown(with_foreign(batch), batch.pretext_targets))
        loss = F.cross_entropy(logits, batch.pretext_targets)
        accuracy = (logits.argmax(dim=1) == batch.pretext_targets).float().mean()
        metrics = {"cross_entropy": loss.detach(), "puzzle_accuracy": accuracy}
        return StepOutput(loss, metrics, features.mean(dim=1).detach())

    def answers(self, batch: Tiles) -> Answers:
        """The puzzle, the tiles put back as the network says, with its confidence, and the image as it was."""
        puzzle = self.shown(with_foreign(batch, over_processes=False), batch.pretext_targets)
        sure, numbers = self._read(puzzle)[1].softmax(dim=1).max(dim=1)
        home = (self.permutations[numbers] == self.permutations[batch.pretext_targets]).sum(dim=1).tolist()
        said = [f"{n} of {puzzle.shape[1]} ({p:.0%})" for n, p in zip(home, sure.tolist())]
        pictures = {"puzzle": puzzle, "solved": self.solved(puzzle, numbers), "image": batch.tiles}
        shown = {name: side_by_side(tiles) for name, tiles in pictures.items()}
        return Answers(shown, {"solved": said}, batch.index)

    def shown(self, tiles: Tensor, numbers: Tensor) -> Tensor:
        """Tiles (B, T, C, h, w) in the order of the permutations of these numbers (B,)."""
        return _take(tiles, self.permutations[numbers])

    def solved(self, shown: Tensor, numbers: Tensor) -> Tensor:
        """The tiles put back as if these were the numbers of their permutations; undoes `shown`."""
        return _take(shown, self.permutations[numbers].argsort(dim=1))

    def _read(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the tiles (B, T, D) and logits (B, P)."""
        features = self.backbone(shown.flatten(0, 1))  # (B T, D)
        z = self.tile_head(features)  # (B T, E)
        return features.unflatten(0, shown.shape[:2]), self.head(z.view(len(shown), -1)).float()


def with_foreign(batch: Tiles, *, over_processes: bool = True) -> Tensor:
    """The tiles, some replaced by those that the next image offers, of the batch over all processes or of this one.

    An image that is its own neighbour (a batch of one, an image drawn twice in a row) keeps its tiles.
    """
    B, num_places = batch.offered.shape
    if num_places == 0:
        return batch.tiles
    offers, ids, first = _take(batch.tiles, batch.offered), batch.index, 0
    if over_processes:
        offers, ids, first = gather_rows(offers), gather_rows(ids), first_own_row(B)
    partner = torch.arange(first + 1, first + 1 + B, device=ids.device) % len(ids)
    taken = torch.arange(num_places, device=ids.device) < batch.num_foreign[:, None]  # (B, F)
    taken = taken & (ids[partner] != batch.index)[:, None]
    rows = torch.arange(B, device=ids.device)[:, None]
    own = batch.tiles[rows, batch.replaced]
    tiles = batch.tiles.clone()
    tiles[rows, batch.replaced] = torch.where(taken[..., None, None, None], offers[partner], own)
    return tiles


def _take(tiles: Tensor, places: Tensor) -> Tensor:
    """result[b, i] = tiles[b, places[b, i]]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], places]


def _check_distance(permutations: Tensor, max_foreign: int) -> None:
    if max_foreign == 0 or len(permutations) < 2:
        return
    far = permutations.shape[1] + 1
    least = int((hamming_distances(permutations) + far * torch.eye(len(permutations), dtype=torch.long)).min())
    if least <= max_foreign:
        raise RecipeError(
            f"jigsaw: with max_foreign={max_foreign} tiles of another image, permutations must differ in more places, "
            f"and these {len(permutations)} differ in {least} at least; use fewer permutations or foreign tiles."
        )


METHOD = Jigsaw
