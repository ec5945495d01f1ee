"""CRD: the student's embedding of an image must find the teacher's of the same image among those of other classes.

Tian et al. 2020, arXiv:1910.10699.

    s = n( A_s h_student ),  t = n( A_t h_teacher ): linear adapters of the features to width E; n: unit length
    M_s, M_t: memory banks with an s and a t of every training image
    h(v, M) = p / (p + K / n),  p = exp(<v, M> / tau) / Z:  is M the image's own row, or one of K drawn rows?
    L(v, M) = mean_i  -log h(v_i, M_i) - sum_k log(1 - h(v_i, M_k)),  over drawn rows k of another class than i
    loss = ce_weight CE + kd_weight T^2 KL + contrast_weight ( L(s, M_t) + L(t, M_s) )

The teacher is frozen, but its adapter learns. State: after the optimiser's step row i of each bank moves to
n(momentum row + (1 - momentum) new); Z is estimated from the first batch and stays; both are saved with the method.

Differs: in "paper" tau is 0.1, which the paper found best (from memory) among 0.02 to 0.3 (RepDistiller, issue 13);
"released" and the small ones have the published code's 0.07 and its CIFAR-100 schedule. K rows are drawn once a step
and shared by its images, those of an image's own class left out; the published code draws K rows of other classes for
each image anew, which takes B times the memory for the same expectation.

Cost: that of kd, two products of the batch with K rows, and two banks of num_images x E numbers.

Choose it when kd leaves a gap between networks of one family; "small_kd", with soft targets, is the stronger recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attar.losses import gather_rows, nce, nce_partition
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.distill.labelled import PHOTO, SMALL, LabelledRecipe, distilled, labelled_network, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.memory_bank import MemoryBank
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class CRDRecipe(LabelledRecipe):
    """CRD's own settings."""

    contrast_weight: float = 0.8  # section 4.1
    num_negatives: int = 16384  # K; published code
    contrast_temperature: float = 0.07  # tau; published code; the paper 0.1
    bank_momentum: float = 0.5  # published code
    projector_dim: int = 128  # E; published code

    used_with = {
        "num_negatives": above("contrast_weight"),
        "contrast_temperature": above("contrast_weight"),
        "bank_momentum": above("contrast_weight"),
        "projector_dim": above("contrast_weight"),
    }


RELEASED = CRDRecipe(**SMALL, ce_weight=1.0, kd_weight=0.0)  # RepDistiller: -r 1 -a 0 -b 0.8
RECIPES = {
    # temperature from memory; schedule: He et al. 2016
    "paper": CRDRecipe(**PHOTO, ce_weight=1.0, kd_weight=0.0, contrast_temperature=0.1),
    "released": RELEASED,
    "small": RELEASED,  # as "released", which has images of 32 px
    "small_kd": CRDRecipe(**SMALL, ce_weight=1.0, kd_weight=1.0),  # table 4
}


class CRD(Method):
    """See the module's docstring. B images, N classes, K negatives."""

    needs_teacher = True
    needs_labels = True
    recipe: CRDRecipe
    classifier: MLP
    labels: Tensor

    def __init__(self, recipe: CRDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher, images, width = labelled_network("crd", setup, backbone), setup.images, recipe.projector_dim
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, images.num_classes])
        self.student_adapter = MLP([backbone.num_features, width])
        self.teacher_adapter = MLP([teacher.backbone.num_features, width])
        self.student_bank = MemoryBank(images.index, width, momentum=recipe.bank_momentum, seed=setup.seed)
        self.teacher_bank = MemoryBank(images.index, width, momentum=recipe.bank_momentum, seed=setup.seed + 1)
        labels = torch.full((images.num_ids,), -1)
        labels[torch.from_numpy(images.index)] = torch.from_numpy(images.labels)
        self.register_buffer("labels", labels, persistent=False)  # known from the images
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module
        self._new_rows: list[tuple[Tensor, Tensor, Tensor]] = []  # of this step; they enter the banks after it

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        teacher = self._teacher[0]
        features = self.backbone(batch.images)
        teacher_features = teacher.features(batch.images, self.image)
        s, t = self.student_adapter(features), self.teacher_adapter(teacher_features)  # (B, E)
        drawn = self.teacher_bank.draw_ids(self.recipe.num_negatives, progress.step)  # (K,)
        contrast = self._contrast(s, self.teacher_bank, batch.index, drawn)
        contrast = contrast + self._contrast(t, self.student_bank, batch.index, drawn)
        self._new_rows.append((batch.index, s.detach(), t.detach()))
        logits, taught = self.classifier(features), teacher.answer(teacher_features)
        return distilled(
            self.recipe, logits, taught, batch.labels, features, contrast=(self.recipe.contrast_weight, contrast)
        )

    def _contrast(self, embeddings: Tensor, bank: MemoryBank, index: Tensor, drawn: Tensor) -> Tensor:
        """L: embeddings of one network against the bank of the other."""
        positives, negatives = bank.rows[index], bank.rows[drawn]
        shared: dict[str, Any] = {"temperature": self.recipe.contrast_temperature, "num_images": len(bank)}
        if bank.partition == 0:
            bank.partition.copy_(nce_partition(embeddings, positives, negatives, **shared))
        same_class = self.labels[index][:, None] == self.labels[drawn]  # (B, K)
        return nce(embeddings, positives, negatives, **shared, partition=bank.partition, excluded=same_class)

    def after_step(self, progress: Progress) -> None:
        index, s, t = (gather_rows(torch.cat(rows)) for rows in zip(*self._new_rows))
        self.student_bank.update(index, s)
        self.teacher_bank.update(index, t)
        self._new_rows.clear()


METHOD = CRD
__all__ = ["METHOD", "RECIPES", "views"]
