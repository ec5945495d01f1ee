"""PS-KD: the targets of an image are its label mixed with what the network itself said of it an epoch ago; the more
training has gone on, the more its own word counts. It is label smoothing that knows which classes are alike.

Kim et al. 2021, arXiv:2006.12000.

    p_t-1(i) = softmax of the logits of image i in the previous epoch, as they were in training
    a_t = a_end * t / E,   t = 1 .. E epochs,   a_end = 0.8
    loss = mean_i CE( logits_i, (1 - a_t) onehot(y_i) + a_t p_t-1(i) )

In the first epoch, and for images not seen before (the last, incomplete batch of an epoch is left out), the target is
the label.

State: after the optimiser's step the predictions of this step, of all processes, are written into a table with a row
for every image, keyed by its stable id; it is saved with every checkpoint. Predictions are those under that epoch's
view and batch norm's training statistics, as published: no extra pass over the images.

Memory of the table: (largest id + 1) x N x 2 bytes in half precision, on the device of training and in every
checkpoint. CIFAR-100: 50,000 x 100 x 2 = 10 MB. ImageNet: 1,281,167 x 1,000 x 2 = 2.6 GB; `-s table_precision=fp32`
takes twice as much and changes targets by less than 0.05 % of a probability.

Differs: the published code holds the table in fp32. On ImageNet it has colour jitter and noise along the principal
components of colours besides crop and mirror; "photo" has only these two.

Cost: one forward and backward pass of one view, as plain training, and the table.

Choose it when you want calibrated probabilities from labels at no cost of time: that is its robust gain. In accuracy
label smoothing comes close (ResNet-18 on CIFAR-100: 20.8 % error against 20.9 %).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.losses import gather_rows
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.supervised.supervised import SupervisedRecipe, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView

logger = logging.getLogger("attar")


@dataclass(frozen=True, kw_only=True)
class PSKDRecipe(SupervisedRecipe):
    """PS-KD's own settings."""

    own_share: float = 0.8  # a_end, section 4.1: weight of the network's own prediction in the last epoch
    table_precision: Literal["fp16", "fp32"] = "fp16"

    used_with = {"table_precision": above("own_share")}


PAPER = PSKDRecipe(  # CIFAR-100, section 4.1
    epochs=300,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.2,  # 0.1 at a batch of 128
    schedule="step",
    lr_drops=(150 / 300, 225 / 300),
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    nesterov=True,
    crop="padded",
)
RECIPES = {
    "paper": PAPER,
    "photo": replace(  # ImageNet, section 4.1
        PAPER,
        epochs=90,
        batch_size=256,
        base_lr=0.1,
        lr_drops=(30 / 90, 60 / 90),
        weight_decay=1e-4,
        own_share=0.3,  # supplement, as quoted in issue 4 of lgcnsai/PS-KD-Pytorch
        crop="resized",
    ),
    "small": PAPER,  # as "paper", which has images of 32 px
}


class PSKD(Method):
    """See the module's docstring. B images, N classes, I largest id + 1."""

    needs_labels = True
    recipe: PSKDRecipe
    classifier: MLP
    predictions: Tensor

    def __init__(self, recipe: PSKDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        num_classes = setup.images.num_classes
        self.classifier = MLP([backbone.num_features, num_classes])
        dtype = torch.float16 if recipe.table_precision == "fp16" else torch.float32
        # (I, N); a row of zeros: nothing was recorded yet
        self.register_buffer("predictions", torch.zeros(setup.images.num_ids, num_classes, dtype=dtype))
        size = self.predictions.numel() * self.predictions.element_size() / 1e9
        if size > 1:
            logger.warning("pskd: the table of recorded predictions takes %.1f GB on the device.", size)
        self._recorded: list[tuple[Tensor, Tensor]] = []  # of this step; they enter the table after it

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        recipe = self.recipe
        features = self.backbone(batch.images)
        logits = self.classifier(features).float()  # (B, N)
        share = recipe.own_share * (progress.epoch + 1) / progress.total_epochs
        own = self.predictions[batch.index].float()  # (B, N)
        known = own.sum(dim=1, keepdim=True) > 0
        label = F.one_hot(batch.labels, logits.shape[1]).float()
        targets = torch.where(known, label.lerp(own, share), label)
        loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        self._recorded.append((batch.index, torch.softmax(logits.detach(), dim=1)))
        metrics = {
            "soft_cross_entropy": loss.detach(),
            "own_share": share,
            "recorded": known.float().mean(),
            "accuracy": (logits.argmax(dim=1) == batch.labels).float().mean(),
        }
        return StepOutput(loss, metrics, features.detach())

    def after_step(self, progress: Progress) -> None:
        for index, predictions in self._recorded:
            self.predictions[gather_rows(index)] = gather_rows(predictions).to(self.predictions.dtype)
        self._recorded.clear()


METHOD = PSKD
__all__ = ["METHOD", "RECIPES", "views"]
