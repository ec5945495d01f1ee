"""InstDisc: every image is a class of its own, and a view must be recognised as its image. The classifier is not
trained: its rows are the embeddings the images had when they were last seen, kept in a memory bank.

Wu et al. 2018, arXiv:1805.01978.

    v = n(W backbone(x) + b),   n(u) = u / |u|,   M the memory bank, one unit row per training image
    softmax:  loss = mean_i  -log( exp(M_i v_i / t) / sum_j exp(M_j v_i / t) ),  j over all N images
    nce:      P(M | v) = exp(M v / t) / Z,   h = P / (P + K/N),   K random rows M_k
              loss = mean_i  -log h(M_i, v_i) - sum_k log(1 - h(M_k, v_i))
    both:     + proximal_weight * mean_i |v_i - M_i|^2

The proximal term holds an image near where it was an epoch ago: with one image a class, training swings otherwise.

State: the bank, moved after the optimiser's step, M_i <- n(m M_i + (1 - m) v_i) with the embeddings of all processes;
Z, estimated on the first batch (N times the mean of exp(M v / t)) and kept; both are saved. The bank is keyed by the
stable id of an image and starts with random unit rows.

Differs: the paper replaces rows (m = 0) and adds the proximal term (recipe "photo"). The published code has no such
term and moves rows by m = 0.5, which calms the training as well; its later and better ImageNet model picks the own
row by a softmax over 65536 drawn ones (recipe "sampled"), and CIFAR-10 has the softmax over all images ("small"). Its
bank starts with rows whose length is 1 on average only. It draws K negatives for every image; here one draw serves
the batch, which is the same in the mean, and K * E numbers of memory instead of B * K * E. Rows may be drawn twice,
and be the image's own, as in the code: the noise is uniform over all N images.

NCE is for data of ImageNet's size, and a warning says so. Z is estimated while the rows are still random; once they
are embeddings, with much in common, every drawn row scores far above it, and NCE, unlike the softmax, punishes what
all have in common. With few steps an epoch the bank follows faster than the embeddings spread out, and both chase
each other: on 1000 images of CIFAR-10 the softmax learns, and NCE ends at an effective rank of 2.

Cost: one forward and backward of one view; a bank of N * E numbers (1.3 million images: 0.7 GB), and B * K or, with
the softmax, B * N similarities.

Choose it when you want the cheapest contrastive step, one view and no second network, on a data set that is seen many
times; an image must come round again before its row is of any use, so short trainings on large data learn little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.images import ImageSpec
from attar.losses import byol_regression, gather_rows
from attar.methods.base import Method, Progress, Setup, StepOutput
from attar.methods.memory import MemoryRecipe, discriminate, new_banks
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class InstDiscRecipe(MemoryRecipe):
    """InstDisc's own settings, besides those of the bank.

    objective: section 3.2: nce; CIFAR-10 in section 4.1: softmax. num_negatives: section 4.2: 4096. temperature:
    section 4.2: 0.07; published CIFAR-10 command: 0.1. bank_momentum: section 3.1: 0. projector_dim: section 4.1: 128.
    """

    proximal_weight: float  # lambda of section 3.3
    crop_scale: tuple[float, float] = (0.2, 1.0)  # published code
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)  # published code, always applied
    grey_before_jitter: bool = True  # published ImageNet code; CIFAR code: after


RECIPES = {
    # The paper: rows are replaced, the proximal term holds them (section 3.3); batch, rate, decay, epochs and number of
    # negatives as in the published code (zhirongw/lemniscate.pytorch, main.py), which has no such term.
    "photo": InstDiscRecipe(
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.03,
        schedule="step",
        lr_drops=(120 / 200, 160 / 200),
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        objective="nce",
        num_negatives=4096,
        temperature=0.07,
        bank_momentum=0.0,
        proximal_weight=30.0,  # (from memory)
    ),
    "sampled": InstDiscRecipe(  # updated model of the published code (README.md), else as its first: ResNet-50, 58.5
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.03,
        schedule="step",
        lr_drops=(120 / 200, 160 / 200),
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        objective="softmax",
        num_negatives=65536,
        temperature=0.07,
        bank_momentum=0.5,
        proximal_weight=0.0,
    ),
    "small": InstDiscRecipe(  # the published CIFAR-10 command: ResNet-18, kNN 80.8 (section 4.1, table 1)
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.06,  # 0.03 at a batch of 128
        schedule="step",
        lr_drops=(120 / 200, 160 / 200),
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        objective="softmax",
        num_negatives=None,
        temperature=0.1,
        bank_momentum=0.5,
        proximal_weight=0.0,
        flip=0.0,
        grey_before_jitter=False,
    ),
}


def views(recipe: InstDiscRecipe, image: ImageSpec) -> MakeOneView:
    """One view an image and step; the other one is in the bank."""
    return MakeOneView(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=recipe.flip,
            jitter=recipe.jitter,
            jitter_probability=1.0,
            grey=0.2,
            grey_before_jitter=recipe.grey_before_jitter,
            blur=0.0,
        )
    )


class InstDisc(Method):
    """See the module's docstring. B images, E embedding, K negatives, N images in the bank."""

    recipe: InstDiscRecipe
    projector: MLP

    def __init__(self, recipe: InstDiscRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.projector = MLP([backbone.num_features, recipe.projector_dim])
        (self.bank,) = new_banks(recipe, setup, "inst_disc")
        self._seen: list[tuple[Tensor, Tensor]] = []  # ids and embeddings of this step; they enter the bank after it

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        v = self.projector(self.backbone(batch.images))  # (B, E)
        own = self.bank.rows[batch.index]
        recognition = discriminate(self.bank, v, batch.index, self.recipe, progress.step)
        proximal = byol_regression(v, own)  # the squared distance of unit vectors
        self._seen.append((batch.index, v.detach()))
        metrics = {"recognition": recognition.detach(), "proximal": proximal.detach()}
        return StepOutput(recognition + self.recipe.proximal_weight * proximal, metrics, v.detach(), own)

    def after_step(self, progress: Progress) -> None:
        index, v = (gather_rows(torch.cat(parts)) for parts in zip(*self._seen))
        self.bank.update(index, v)
        self._seen.clear()


METHOD = InstDisc
