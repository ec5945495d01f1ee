"""Snapshot distillation: one training cut into cycles of the learning rate; in every cycle but the first, the network
at the end of the cycle before is the teacher. Several generations at the price of one.

Yang et al. 2019, arXiv:1812.00123.

    cycle c = 0 .. C - 1 of equal length; the learning rate falls by a cosine and starts at its peak again
    q = logits of the network in training, t = logits of the network as it was at the end of cycle c - 1
    c = 0:  loss = CE(q, y)
    c > 0:  loss = CE(q, y) + w mean_i - sum_n softmax(t_i / T)_n log softmax(q_i)_n

Only the teacher is softened (T > 1, "asymmetric"): a snapshot of the same training is sure of the training images and
would repeat the labels. The second term has the gradient of KL.

State: after the optimiser's last step of a cycle the teacher becomes a copy of the network, batch norm's statistics
included; the copy is saved with the method and stays in eval mode. The network itself is not reset, only its learning
rate.

Numbers are those of a re-implementation (DefangChen/Self-KD, train_SD.py), where not said otherwise.

Differs: the re-implementation weights the labels of later cycles by 1 + 1 / T, not by 1, and has T = 3 and 4 cycles;
what the paper has could not be looked up.

Cost: one forward and backward pass, and from the second cycle a forward pass of the teacher: (C - 1) / 3C more than
plain training (a quarter, for 5 cycles); one more copy of the weights.

Choose it when born-again generations would help and there is time for one training only; compare it with a plain one
of the same length, whose learning rate does not restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import nn

from attar.losses import soft_cross_entropy
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.supervised.supervised import SupervisedRecipe, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import FrozenCopy
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class SnapshotRecipe(SupervisedRecipe):
    """Snapshot distillation's own settings; num_cycles is C."""

    distillation_weight: float = 1.0  # w
    teacher_temperature: float = 2.0  # T, 2 to 3 (from memory)
    schedule: Literal["cosine"] = "cosine"  # the cycles whose ends are the teachers are those of a cosine

    used_with = {
        "distillation_weight": above("num_cycles", 1),
        "teacher_temperature": above("distillation_weight"),
    }


PAPER = SnapshotRecipe(  # CIFAR-100: DefangChen/Self-KD; cycles of 60 epochs from memory
    epochs=300,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.2,  # 0.1 at a batch of 128
    num_cycles=5,
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    nesterov=True,
    crop="padded",
)
RECIPES = {
    "paper": PAPER,
    "photo": replace(  # ours: two cycles, the schedule otherwise as is usual for ResNet-50
        PAPER, epochs=90, batch_size=256, base_lr=0.1, num_cycles=2, crop="resized"
    ),
    "small": replace(PAPER, num_cycles=3, weight_decay=5e-4),  # ours: longer cycles, the decay of all others here
}


class Snapshot(Method):
    """See the module's docstring. B images, N classes."""

    needs_labels = True
    recipe: SnapshotRecipe
    classifier: MLP

    def __init__(self, recipe: SnapshotRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        self.teacher = FrozenCopy(self.network)  # of no use before the second cycle

    @property
    def network(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.classifier)

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        recipe = self.recipe
        features = self.backbone(batch.images)
        logits = self.classifier(features).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        answers = logits.argmax(dim=1)
        metrics = {"cross_entropy": loss.detach(), "accuracy": (answers == batch.labels).float().mean()}
        if self._cycle(progress.step, progress) > 0:
            taught = self.teacher(batch.images)
            distillation = soft_cross_entropy(
                logits, taught, student_temperature=1.0, teacher_temperature=recipe.teacher_temperature
            )
            metrics |= {
                "teacher_cross_entropy": distillation.detach(),
                "teacher_accuracy": (taught.argmax(dim=1) == batch.labels).float().mean(),
                "agreement": (taught.argmax(dim=1) == answers).float().mean(),
            }
            loss = loss + recipe.distillation_weight * distillation
        return StepOutput(loss, metrics, features.detach())

    def after_step(self, progress: Progress) -> None:
        if self._cycle(progress.step + 1, progress) > self._cycle(progress.step, progress):
            self.teacher.update(self.network)

    def _cycle(self, step: int, progress: Progress) -> int:
        return self.recipe.cycle(step, progress.total_steps)[0]


METHOD = Snapshot
__all__ = ["METHOD", "RECIPES", "views"]
