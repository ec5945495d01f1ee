"""Exemplar-CNN: every image is a class of its own, made of random transformations of one part of it. To name the class
of a sample, the network must see past what the transformations change: place, size, angle, contrast and colour.

Dosovitskiy, Fischer, Springenberg, Riedmiller and Brox 2014, arXiv:1406.6909.

    seed s_i: a square part of image i, drawn with a probability in proportion to its squared gradient, and kept
    T_a: moved by up to 0.2 of its side, scaled by 0.7 .. 1.4, turned by up to 20 degrees;
         each principal component of its colours times 0.5 .. 2;
         S and V of HSV: s -> f s^p + o,  p in 0.25 .. 4,  f in 0.7 .. 1.4,  o in -0.1 .. 0.1;  hue shifted by up to 0.1
    h = dropout(relu(BN(W backbone(T_a s_i))))
    loss = mean over images and samples of  CE(V h, i)

The class of a sample is the stable id of its image. There is no state besides the weights, of which V has one row for
each image.

At large scale V is what it costs: N images take N rows of weights and N scores a sample, and near-duplicates are told
apart at all costs. The paper stops at 32,000 seeds and finds features worse beyond 8000; a warning says when there are
more than those. Then take a part of the images, or the same idea without V: inst_disc has a bank of embeddings in its
place; Kolesnikov et al. 2019, arXiv:1901.09005, a triplet loss among 8 samples of each image of a batch, of which
simclr's loss is the form with all negatives.

Numbers without a source beside them are the paper's as others quote them.

Differs: the paper makes about 150 samples of each seed once; here every epoch draws new ones. It does not say how its
factors and powers are distributed within their ranges; here log-uniformly, for uniform powers in 0.25 .. 4 make most
samples nearly black. Principal components are those of the sample's own pixels; the paper takes them over all pixels
of the set, which a view does not see. Where a sample reaches over the edge of the image, the image is mirrored. Hue
and saturation do nothing to grey images. The paper's network is small, without batch norm, and ends in 512 features;
here any backbone has a layer of 512, with batch norm, before the classes. The paper lowers the rate by hand when the
error stops falling. "small" is ours: seeds are most of an image of 32 px, and each step sees several samples of an
image, since few epochs show a class but a few times.

Cost: num_samples views a step, cut by interpolation at any angle, which on a CPU costs a few times a SimCLR view where
images are large; V has N * 512 weights.

Choose it for a few thousand distinct images and hundreds of passes: a class is seen but num_samples times in each, and
after the first few passes features are hardly better than untrained ones. Duplicates or near-duplicates contradict it,
and for more images inst_disc, simclr or moco do better for less.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import Exemplars
from attar.views.exemplars import MakeExemplars

logger = logging.getLogger("attar")

MANY = 32000  # seeds; the most that the paper tries


@dataclass(frozen=True, kw_only=True)
class ExemplarRecipe(Recipe):
    """Exemplar-CNN's own settings."""

    num_samples: int  # of each image in a step
    seed_scale: tuple[float, float]  # side of a seed as a share of the image's
    translation: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    rotation: float = 20.0  # degrees
    components: tuple[float, float] = (0.5, 2.0)  # factor of each principal component of colour
    power: tuple[float, float] = (0.25, 4.0)  # of saturation and value
    factor: tuple[float, float] = (0.7, 1.4)
    offset: float = 0.1
    hue: float = 0.1  # of a full turn
    projector_dim: int = 512
    dropout: float = 0.5


RECIPES = {
    "paper": ExemplarRecipe(  # the paper as others quote it, optimiser from memory
        epochs=1500,  # ours; 150 samples of each seed, ten times over
        batch_size=128,
        optimiser="sgd",
        base_lr=0.01,
        lr_scaling="none",
        schedule="step",
        lr_drops=(0.5, 0.75, 0.9),  # ours, see above
        decay_bias_and_norm=True,
        num_samples=1,
        seed_scale=(0.33, 0.66),  # 32 px of 96, at varying scales
    ),
    "small": ExemplarRecipe(  # 32 px: ours
        epochs=100,
        batch_size=128,
        optimiser="adamw",
        base_lr=2e-3,
        lr_scaling="none",
        warmup_fraction=0.05,
        weight_decay=1e-3,
        num_samples=4,
        seed_scale=(0.6, 0.8),
        # 0.25 .. 4 makes dark images black and bright ones white. On 2000 images of CIFAR-10, resnet8, 4 epochs, two
        # seeds: loss 7.47 and 7.47 for 7.55 and 7.55 (chance 7.60), neighbours the same within noise (0.266, 0.265)
        power=(0.5, 2.0),
        dropout=0.0,
    ),
}


def views(recipe: ExemplarRecipe, image: ImageSpec) -> MakeExemplars:
    """A seed of each image and its transformations."""
    return MakeExemplars(
        image,
        num_samples=recipe.num_samples,
        seed_scale=recipe.seed_scale,
        translation=recipe.translation,
        scale=recipe.scale,
        rotation=recipe.rotation,
        components=recipe.components,
        power=recipe.power,
        factor=recipe.factor,
        offset=recipe.offset,
        hue=recipe.hue,
    )


class Exemplar(Method):
    """See the module's docstring. B images, V samples of each, N classes, E width of the layer before them."""

    recipe: ExemplarRecipe
    projector: MLP
    ids: Tensor

    def __init__(self, recipe: ExemplarRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.projector = MLP([backbone.num_features, recipe.projector_dim], final_norm="batch")
        self.dropout = nn.Dropout(recipe.dropout)
        self.classes = nn.Linear(recipe.projector_dim, len(setup.images))
        nn.init.zeros_(self.classes.weight)  # all classes alike at first: the loss begins at log N, not above
        nn.init.zeros_(self.classes.bias)
        ids = torch.from_numpy(np.sort(setup.images.index))
        self.register_buffer("ids", ids, persistent=False)  # known from the images
        if len(ids) > MANY:
            logger.warning(
                "exemplar: %d images are as many classes, a layer of %.0f MB, and the paper found features to become "
                "worse beyond 8000. Take a part of them, or --method inst_disc, which needs no such layer.",
                len(ids),
                4e-6 * self.classes.weight.numel(),
            )

    def logits(self, features: Tensor) -> Tensor:
        """Scores of all classes, in the order of `ids`. (B, D) -> (B, N)"""
        return self.classes(self.dropout(F.relu(self.projector(features)))).float()

    def step(self, batch: Exemplars, progress: Progress) -> StepOutput:
        features = self.backbone(torch.cat(batch.transformed))  # (V B, D)
        logits = self.logits(features)
        meant = torch.searchsorted(self.ids, batch.index).repeat(len(batch.transformed))
        loss = F.cross_entropy(logits, meant)
        accuracy = (logits.argmax(dim=1) == meant).float().mean()
        first = features[: len(batch.index)].detach()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "seed_accuracy": accuracy}, first)

    def answers(self, batch: Exemplars) -> Answers:
        """A seed, a sample of it, and which of the seeds shown the sample is taken for; below, of all images, the one
        it is taken for and how surely."""
        chance = self.logits(self.backbone(batch.transformed[0])).softmax(dim=1)  # (B, N)
        nearest = chance[:, torch.searchsorted(self.ids, batch.index)].argmax(dim=1)
        sure, best = chance.max(dim=1)
        of = [f"of # {i}" for i in batch.index.tolist()]
        said = [f"of all: # {i} ({p:.0%})" for i, p in zip(self.ids[best].tolist(), sure.tolist())]
        shown = {"seed": batch.seeds, "sample": batch.transformed[0], "taken for": batch.seeds[nearest]}
        return Answers(shown, {"sample": of, "taken for": said}, batch.index)


METHOD = Exemplar
