"""BYOT, be your own teacher: a classifier after every stage of the network, and the deepest one teaches the others.
The shallow classifiers are early exits: each is a small network of its own, for images that do not need the whole.

Zhang et al. 2019, arXiv:1905.08094.

    F_k = branch_k(map after exit k),  q_k = classifier_k(F_k);  F_C, q_C: of the whole network, the deepest
    loss = d CE(q_C, y) + sum_k { (1 - a) CE(q_k, y) + a T^2 KL( sg(softmax(q_C / T)) || softmax(q_k / T) )
                                  + h mean_i |F_k - sg(F_C)|^2 },   sg: no gradient

A branch is a bottleneck of 1x1, k x k (stride k) and 1x1 convolutions that brings a map to the size and width of the
deepest one. There is no state besides the weights.

The run keeps every exit: RUN/exit1, RUN/exit2, … are networks like any other, with their classifiers. So
`attar evaluate RUN/exit1 SOURCE`, `attar export RUN/exit1` and a teacher RUN/exit2 work as for RUN itself.
`attar export RUN --exits` is one ONNX graph of them all, in which an image leaves at the first exit that is sure
enough and the rest is not computed; `attar export RUN/exit1 --classifier` one exit with its class scores.
`attar evaluate RUN SOURCE --protocol exits` measures them all beside the whole, and what it costs and brings to leave
at the first exit that is sure enough.

Differs: three published codes differ from the paper and from each other. "paper" is the paper's loss (from memory:
squared distances as a mean over images) with the weights of the authors' later codes (d = 1, 0.7, 0.3 and 0.03).
That code has no T^2, its hint is one norm over the whole batch, which grows with the square root of the batch, by an
order of its list it leaves out the second deepest exit, and it trains for 250 epochs with AutoAugment: no recipe here
has that. "released" is the code most cited (luanyunteng), whose schedule "paper" shares: a = 0.1, d = 1 - a as for
every exit, and a hint of 1e-6 summed over a batch of 128 (here a mean, so 1.28e-4). Hints are between pooled features.
"supervised_only" has neither teacher nor hint: deep supervision, which is reported to gain as much; it is to beat.

Cost: one forward and backward pass, and the branches: about a tenth more for a ResNet-18. Nothing in inference unless
an exit is used.

Choose it when you want a network that can stop early, or several sizes out of one training. For accuracy alone,
label smoothing gives about as much (method supervised, -s label_smoothing=0.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.losses import feature_hint, kl_divergence
from attar.methods.base import Method, Progress, Setup, StepOutput, Trained, above
from attar.methods.supervised.supervised import SupervisedRecipe, views
from attar.models.backbones import Backbone, cut_at_exit
from attar.models.early_exit import Branch, exits_of
from attar.models.heads import MLP
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class BYOTRecipe(SupervisedRecipe):
    """BYOT's own settings."""

    distillation_weight: float = 0.3  # a; authors' later code 0.3, most cited code 0.1
    temperature: float = 3.0  # T, both codes
    hint_weight: float = 0.03  # h; authors' later code, as a mean over images: see above
    deepest_weight: float = 1.0  # d, of the deepest cross-entropy; most cited code 1 - a

    used_with = {"temperature": above("distillation_weight")}


PAPER = BYOTRecipe(  # CIFAR-100; the schedule is that of the most cited code
    epochs=200,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.2,  # 0.1 at a batch of 128
    schedule="step",
    lr_drops=(75 / 200, 130 / 200, 180 / 200),
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    crop="padded",
)
RECIPES = {
    "paper": PAPER,
    # luanyunteng/pytorch-be-your-own-teacher, see above
    "released": replace(PAPER, distillation_weight=0.1, hint_weight=1.28e-4, deepest_weight=0.9),
    "supervised_only": replace(PAPER, distillation_weight=0.0, hint_weight=0.0),  # ours: the arm to beat
    "photo": replace(  # ours: the schedule that is usual for ResNet-50
        PAPER,
        epochs=90,
        batch_size=256,
        base_lr=0.1,
        lr_drops=(30 / 90, 60 / 90, 80 / 90),
        weight_decay=1e-4,
        crop="resized",
    ),
    "small": PAPER,  # as "paper", which has images of 32 px
}


class BYOT(Method):
    """See the module's docstring. B images, D features, N classes; exits from the shallowest to the last but one."""

    needs_labels = True
    recipe: BYOTRecipe
    classifier: MLP

    def __init__(self, recipe: BYOTRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        width, num_classes = backbone.num_features, setup.images.num_classes
        self.branches = nn.ModuleDict(exits_of(backbone))  # by the stage whose map they read
        self.classifiers = nn.ModuleList(MLP([width, num_classes]) for _ in self.branches)
        self.classifier = MLP([width, num_classes])  # the deepest

    def answers_of_exits(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features (B, D) and logits (B, N) of every exit and, last, of the whole network; one forward pass."""
        deepest, maps = self.backbone.features_and_stages(images)
        features = [*(branch(maps[stage]) for stage, branch in self.branches.items()), deepest]
        classifiers = [*self.classifiers, self.classifier]
        return features, [classify(f).float() for classify, f in zip(classifiers, features, strict=True)]

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        recipe = self.recipe
        a = recipe.distillation_weight
        features, logits = self.answers_of_exits(batch.images)
        metrics: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch.images.device)
        for k, (f, q) in enumerate(zip(features, logits, strict=True), 1):
            name = f"exit{k}" if k < len(logits) else "deepest"
            cross_entropy = F.cross_entropy(q, batch.labels, label_smoothing=recipe.label_smoothing)
            metrics[f"{name}_cross_entropy"] = cross_entropy.detach()
            metrics[f"{name}_accuracy"] = (q.argmax(dim=1) == batch.labels).float().mean()
            if k == len(logits):
                loss = loss + recipe.deepest_weight * cross_entropy
                continue
            taught = kl_divergence(q, logits[-1], temperature=recipe.temperature)  # detaches its second
            hint = feature_hint(f, features[-1])
            metrics |= {f"{name}_kl": taught.detach(), f"{name}_hint": hint.detach()}
            loss = loss + (1 - a) * cross_entropy + a * taught + recipe.hint_weight * hint
        return StepOutput(loss, metrics, features[-1].detach())

    def others(self) -> Mapping[str, Trained]:
        exits = zip(self.branches.values(), self.classifiers, strict=True)
        return {
            f"exit{k}": Trained(cut_at_exit(self.backbone, k, cast(Branch, branch)), classifier=classifier)
            for k, (branch, classifier) in enumerate(exits, 1)
        }


METHOD = BYOT
__all__ = ["METHOD", "RECIPES", "views"]
