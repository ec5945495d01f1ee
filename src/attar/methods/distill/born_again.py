"""Born-again networks: train the same network again, from new weights, on the labels and on what the network trained
before said; the second generation is often better than the first. Then a third, until it helps no more.

Furlanello et al. 2018, arXiv:1805.04770.

    generation 0: ordinary training with labels (method supervised)
    generation k: q = logits of the network in training, t = logits of generation k - 1, which is frozen
    loss = w_y CE(q, y) + w_t mean_i - sum_n softmax(t_i)_n log softmax(q_i)_n

Two variants ask what of the teacher's answer helps (section 3.2), with i counting all samples of a step:

    CWTM ("confidence weighted by teacher max"): labels alone, CE(q_i, y_i) weighted by max_n softmax(t_i)_n
    DKPP ("dark knowledge with permuted predictions"): softmax(t_i) with all but its largest entry in random order

There is no state besides the weights. Each generation is a run of its own with the one before as teacher, so each can
be evaluated, resumed and exported: docs/pipelines.md has three of them in one file. The teacher must have the
student's architecture and must not be the student itself: published code exists that hands the same object over as
both, so that from the second generation on the network learns from itself.

Differs: the loss has no temperature, as in the paper; later re-implementations soften both sides by 3. The order of
DKPP is drawn anew for every image and epoch (the paper does not say how often).

Cost: one forward and backward pass and a forward pass of the teacher; and as many trainings as generations.

Choose it when training is cheap and accuracy counts; count all generations when you compare it: one training of the
same total length, label smoothing, and the ensemble of the generations are the arms to beat.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import RecipeError
from attar.losses import confidence_weighted_cross_entropy
from attar.methods.base import Method, Progress, Setup, StepOutput, above, one_of
from attar.methods.distill.labelled import require_same_network
from attar.methods.supervised.supervised import SupervisedRecipe, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.teachers import FrozenTeacher, check_classes
from attar.views.batches import OneView
from attar.views.draws import Draws

logger = logging.getLogger("attar")


@dataclass(frozen=True, kw_only=True)
class BornAgainRecipe(SupervisedRecipe):
    """Born-again networks' own settings."""

    label_weight: float = 1.0  # w_y; section 3: 1, or 0 ("without label loss")
    teacher_weight: float = 1.0  # w_t; section 3: 1; CWTM 0
    weighted_by_confidence: bool = False  # CWTM, section 3.2
    permuted: bool = False  # DKPP, section 3.2
    teacher_output: Literal["logits"] = "logits"

    used_with = {
        "weighted_by_confidence": above("label_weight"),
        "label_smoothing": one_of("weighted_by_confidence", False),  # and so, in turn, with label_weight
        "permuted": above("teacher_weight"),
    }


PAPER = BornAgainRecipe(  # CIFAR, section 4: as szagoruyko/wide-residual-networks: scripts/train_cifar.sh, train.lua
    epochs=200,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.2,  # 0.1 at a batch of 128
    schedule="step",
    lr_drops=(60 / 200, 120 / 200, 160 / 200),
    lr_drop_factor=0.2,
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    nesterov=True,
    crop="padded",
)
RECIPES = {
    "paper": PAPER,
    "teacher_only": replace(PAPER, label_weight=0.0),  # as "paper", without the labels: section 3
    "cwtm": replace(PAPER, teacher_weight=0.0, weighted_by_confidence=True),  # as "paper": section 3.2
    "dkpp": replace(PAPER, label_weight=0.0, permuted=True),  # as "paper": section 3.2
    "photo": replace(  # ours: the schedule that is usual for ResNet-50
        PAPER,
        epochs=90,
        batch_size=256,
        base_lr=0.1,
        lr_drops=(30 / 90, 60 / 90, 80 / 90),
        lr_drop_factor=0.1,
        weight_decay=1e-4,
        crop="resized",
    ),
    "small": replace(  # ours: the schedule of pskd, so that arms can be compared
        PAPER, epochs=300, lr_drops=(150 / 300, 225 / 300), lr_drop_factor=0.1
    ),
}


class BornAgain(Method):
    """See the module's docstring. B images, N classes."""

    needs_teacher = True
    needs_labels = True
    recipe: BornAgainRecipe
    classifier: MLP

    def __init__(self, recipe: BornAgainRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        num_classes = setup.images.num_classes
        teacher = setup.require_teacher("born_again", backbone)
        _check_generation(teacher, backbone, setup)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, num_classes])
        self.image, self.seed = setup.image, setup.seed
        self.batch_coupled = recipe.weighted_by_confidence  # type: ignore[misc]
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        recipe = self.recipe
        features = self.backbone(batch.images)
        logits = self.classifier(features).float()  # (B, N)
        taught = self._teacher[0](batch.images, batch.index, self.image, view=progress.epoch)  # (B, N)
        if recipe.weighted_by_confidence:
            of_labels = confidence_weighted_cross_entropy(logits, batch.labels, taught)
        else:
            of_labels = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        targets = torch.softmax(taught, dim=1)
        if recipe.permuted:
            draws = Draws(self.seed + 1, batch.index, epoch=progress.epoch)  # another stream than the views'
            targets = with_permuted_rest(targets, draws.permutation(targets.shape[1] - 1))
        of_teacher = F.cross_entropy(logits, targets)
        answers = logits.argmax(dim=1)
        metrics = {
            "label_cross_entropy": of_labels.detach(),
            "teacher_cross_entropy": of_teacher.detach(),
            "accuracy": (answers == batch.labels).float().mean(),
            "teacher_accuracy": (taught.argmax(dim=1) == batch.labels).float().mean(),
            "agreement": (answers == taught.argmax(dim=1)).float().mean(),
        }
        loss = recipe.label_weight * of_labels + recipe.teacher_weight * of_teacher
        return StepOutput(loss, metrics, features.detach())


def with_permuted_rest(probabilities: Tensor, order: Tensor) -> Tensor:
    """Each row's largest entry in its place, the others in another order. (B, N), (B, N - 1)."""
    largest = probabilities.argmax(dim=1, keepdim=True)
    places = torch.arange(probabilities.shape[1], device=probabilities.device).expand_as(probabilities)
    rest = places[places != largest].view(len(places), -1)  # (B, N - 1), the other places in a row
    return probabilities.scatter(1, rest, probabilities.gather(1, rest).gather(1, order))


def _check_generation(teacher: object, backbone: Backbone, setup: Setup) -> None:
    """The generation before: a network of the same architecture, with the same classes, from other weights."""
    if not isinstance(teacher, FrozenTeacher):
        raise RecipeError("born_again: its teacher is a run; give the folder of the generation before as --teacher.")
    require_same_network(
        "born_again",
        backbone,
        teacher.backbone,
        why="a generation has the network of the one before",
        otherwise="take kd for a student of another architecture",
    )
    check_classes("born_again", teacher, setup.images)
    if teacher.seed == setup.seed:
        logger.warning(
            "born_again: the generation before had the seed %d too, so this one begins with its initial weights and "
            "sees its views. Give each generation its own --seed.",
            setup.seed,
        )


METHOD = BornAgain
__all__ = ["METHOD", "RECIPES", "views"]
