"""Relative position (context prediction): two patches of an image, one beside the other; on which of eight sides? To
answer, a network must know what it sees and where that lies in what it belongs to.

Doersch et al. 2015, arXiv:1505.05192.

    patches x_0 .. x_8 of a 3 x 3 neighbourhood in reading order, x_4 in the middle
    z_i  = patch_head(backbone(x_i)), each patch alone
    loss = mean over the 16 ordered pairs (p, q) of the middle and its neighbours  CE( head(z_p, z_q), label(p, q) )
    label = where q lies from p, in reading order without the middle: 0 above left, 1 above, 2 above right, 3 left,
            4 right, … 7 below right; so label(p, q) + label(q, p) = 7

Every answer occurs twice per image, so chance is 1/8. There is no state besides the weights.

Against shortcuts: a gap of half a patch, and each patch displaced at random (no line or texture runs on); colour
fringes, by which a lens tells where in the photograph a patch is, are taken away ("drop": one channel of each patch
remains, the others are weak noise; "project": the green-magenta axis is removed); the mean of each channel of each
patch is 0 and all patches are equally strong; a third of the patches is coarse.

Differs: the paper samples pairs, its code uses all pairs of larger grids in both orders; here the middle patch is
paired with its neighbours, in both orders, as OpenMMLab's mmselfsup does in one. The paper's optimiser (momentum 0.999,
a sum over pairs) fits its AlexNet; "photo" has mmselfsup's for ResNet-50 (linear probe 40.4, with other patches),
without its fivefold weight decay of the head. Widths and batch norm without scale and shift are those of the published
code (cdoersch/deepcontext: train.py), but for fc8, which has no norm there. The axis that "project" removes and the
noise of "drop", a hundredth of what remains, are the paper's. "small" is ours.

Cost: nine patches of 96 px have 1.7 times the pixels of one view of 224 px.

Choose it when the arrangement of parts matters more than colour. Many patches (sky, grass) have no answer, 40 % correct
is good, and jigsaw asks for the same knowledge with less ambiguity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import Neighbours, side_by_side
from attar.views.puzzles import Colours, MakeNeighbours

MIDDLE = 4
AROUND = (0, 1, 2, 3, 5, 6, 7, 8)  # the neighbour at place k has label k seen from the middle, 7 - k the other way


@dataclass(frozen=True, kw_only=True)
class RelativePositionRecipe(Recipe):
    """Relative position's own settings; section 3 and the published code."""

    patch_scale: float = 96 / 224  # side of a patch as a share of the image's: 96 px
    gap: float = 48 / 96  # between patches, as a share of their side
    displaced: float = 7 / 96  # of each patch in each direction at most, as a share of its side
    crop_scale: tuple[float, float] = (0.35, 1.0)  # 398 px squared of pictures resized to 150,000 to 450,000 px
    flip: float = 0.0
    colours: Colours = "drop"
    low_resolution: float = 0.33  # share of patches; down to 100 pixels
    projector_dim: int = 4096  # fc6, of each patch
    projector_hidden_dim: int = 4096  # fc7 and fc8, of the pair


RECIPES = {
    # optimiser: open-mmlab/mmselfsup, configs/selfsup/relative_loc/, for ResNet-50; there the head decays 5 x as much
    "photo": RelativePositionRecipe(
        epochs=70,
        batch_size=512,
        optimiser="sgd",
        base_lr=0.1,  # 0.2 at a batch of 512
        schedule="step",
        lr_drops=(30 / 70, 50 / 70),
        warmup_fraction=5 / 70,
        weight_decay=1e-4,
    ),
    "small": RelativePositionRecipe(  # 32 px: ours
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.2,  # 0.1 at a batch of 128
        weight_decay=5e-4,
        patch_scale=3 / 8,
        gap=1 / 4,
        displaced=1 / 12,
        crop_scale=(0.8, 1.0),
        flip=0.5,
        colours="project",  # keeps colours that the exported network will see
        low_resolution=0.0,  # patches of 12 px are coarse enough
        projector_dim=256,
        projector_hidden_dim=256,
    ),
}


def patch_side(recipe: RelativePositionRecipe, image: ImageSpec) -> int:
    """In pixels; at least 8."""
    return max(round(recipe.patch_scale * image.size), 8)


def views(recipe: RelativePositionRecipe, image: ImageSpec) -> MakeNeighbours:
    """A square of the image, large enough for nine patches with gaps, and these."""
    side = patch_side(recipe, image)
    gap, displaced = round(recipe.gap * side), round(recipe.displaced * side)
    square = Augmentation(
        image,
        size=MakeNeighbours.extent(side, gap, displaced),
        scale=recipe.crop_scale,
        ratio=(1.0, 1.0),
        flip=recipe.flip,
        jitter=None,
        grey=0.0,
        blur=0.0,
    )
    return MakeNeighbours(
        square,
        side=side,
        gap=gap,
        displaced=displaced,
        colours=recipe.colours,
        low_resolution=recipe.low_resolution,
    )


class RelativePosition(Method):
    """See the module's docstring. B images, D features, E embedding of a patch."""

    recipe: RelativePositionRecipe

    def __init__(self, recipe: RelativePositionRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        backbone.require_size(patch_side(recipe, setup.image), setting="patch_scale")
        E, hidden = recipe.projector_dim, recipe.projector_hidden_dim
        self.backbone = backbone
        self.patch_head = nn.Sequential(MLP([backbone.num_features, E], final_norm="batch_no_affine"), nn.ReLU())
        self.head = MLP([2 * E, hidden, hidden, 8], norm="batch_no_affine")

    def step(self, batch: Neighbours, progress: Progress) -> StepOutput:
        features = self.backbone(batch.patches.flatten(0, 1))  # (9B, D)
        logits = self._of_pairs(self.patch_head(features).unflatten(0, (-1, 9)))  # (B, 16, 8)
        targets = pretext_targets(logits.device).expand(len(logits), -1)  # (B, 16)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        accuracy = (logits.argmax(dim=2) == targets).float().mean()
        metrics = {"cross_entropy": loss.detach(), "position_accuracy": accuracy}
        return StepOutput(loss, metrics, features.unflatten(0, (-1, 9)).mean(dim=1).detach())

    def answers(self, batch: Neighbours) -> Answers:
        """The neighbours out of order, put where the network finds them most likely (one place each), and the image;
        with how many came home and the mean confidence of their places."""
        z = self.patch_head(self.backbone(batch.patches.flatten(0, 1))).unflatten(0, (-1, 9))
        logs = self._of_pairs(z).log_softmax(dim=2)
        logs = (logs[:, :8] + logs[:, 8:].flip(2)) / 2  # both orders: (B, neighbour, place)
        puzzle, solved = batch.patches.clone(), batch.patches.clone()
        puzzle[:, list(AROUND)] = batch.patches[:, list(AROUND[3:] + AROUND[:3])]
        said = []
        for image, scores in enumerate(logs.cpu()):
            places = _one_place_each(scores)
            solved[image, [AROUND[place] for place in places]] = batch.patches[image, list(AROUND)]
            home = sum(place == neighbour for neighbour, place in enumerate(places))
            said.append(f"{home} of 8 ({scores[range(8), places].exp().mean():.0%})")
        shown = {"puzzle": side_by_side(puzzle), "solved": side_by_side(solved), "image": batch.images}
        return Answers(shown, {"solved": said}, batch.index)

    def _of_pairs(self, z: Tensor) -> Tensor:
        """Logits (B, 16, 8): of (middle, neighbour) for the eight in reading order, then of (neighbour, middle)."""
        around = z[:, list(AROUND)]  # (B, 8, E)
        middle = z[:, MIDDLE, None].expand_as(around)
        pairs = torch.cat([torch.cat([middle, around], dim=2), torch.cat([around, middle], dim=2)], dim=1)
        return self.head(pairs.flatten(0, 1)).float().unflatten(0, (-1, 16))


def pretext_targets(device: torch.device) -> Tensor:
    """Labels of the 16 pairs of an image, (16,)."""
    place = torch.arange(8, device=device)
    return torch.cat([place, 7 - place])


def _one_place_each(scores: Tensor) -> list[int]:
    """The assignment of neighbours (rows) to places (columns) with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(scores.numpy(), maximize=True)[1].tolist()


METHOD = RelativePosition
