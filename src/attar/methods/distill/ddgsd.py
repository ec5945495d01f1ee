"""DDGSD: two distorted views of an image must be named alike by one network, and look alike to it on the average. Each
view is the other's teacher, so there is nothing to train before and no second network.

Xu and Liu 2019, Data-Distortion Guided Self-Distillation, AAAI, DOI 10.1609/aaai.v33i01.33015565.

    f_a = backbone(view a),  l_a = classifier(f_a),  p_a = softmax(l_a / T);  likewise b
    loss = c [CE(l_a, y) + CE(l_b, y)] + w T^2 [KL(sg(p_b) || p_a) + KL(sg(p_a) || p_b)]
           + mu sum_d (mean_i f_a,id - mean_i f_b,id)^2;   sg: no gradient

There is no state besides the weights. The means of the last term are over the views of all processes.

Numbers are those of a re-implementation that says it has the paper's (youngerous/ddgsd-pytorch), but for the batch,
which is 64 there. Formulas are from memory, from that and from another re-implementation (recipe "released").

Differs: whether the paper stops the gradient of the targets and multiplies by T^2 could not be looked up; both are as
in the other one. Its discrepancy is dead: it subtracts two scalars, means over samples and dimensions, which for
features of two views is about a millionth of the distance between the means of each dimension. So "released" has no
such term, and "paper" has the distance of the means. Its prediction is the mean over two views; ours is one view's.
Both views go through the network in one batch, as there: batch norm sees them together.

Cost: two forward and backward passes a step, twice those of plain training. Compare it with plain training on two
views a step, which is what `-s distillation_weight=0 -s discrepancy_weight=0` gives: much of the gain is there.

Choose it when you want a little more accuracy and better calibration from labels without training a teacher; label
smoothing is free, so try it first (method supervised, -s label_smoothing=0.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from attar.data.images import ImageSpec
from attar.losses import kl_divergence, mean_discrepancy
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.supervised.supervised import SupervisedRecipe, labelled_view
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class DDGSDRecipe(SupervisedRecipe):
    """DDGSD's own settings."""

    cross_entropy_weight: float = 1.0  # c, of each view; released: the mean of both, 0.5
    distillation_weight: float = 1.0  # w: lambda of the paper
    discrepancy_weight: float = 5e-4  # mu of the paper, from 1e-4 in a summary of it; released: dead, see above
    temperature: float = 3.0  # T; released: 4

    used_with = {
        "temperature": above("distillation_weight"),
        "label_smoothing": above("cross_entropy_weight"),
    }


PAPER = DDGSDRecipe(  # CIFAR: youngerous/ddgsd-pytorch; the batch from memory
    epochs=200,
    batch_size=128,
    optimiser="sgd",
    base_lr=0.2,  # 0.1 at a batch of 128
    schedule="step",
    lr_drops=(60 / 200, 120 / 200, 180 / 200),
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    nesterov=True,
    crop="padded",
)
RECIPES = {
    "paper": PAPER,
    "released": replace(  # winycg/Self-KD-Lib, methods/ddgsd.py, without its dead discrepancy
        PAPER,
        lr_drops=(100 / 200, 150 / 200),
        weight_decay=5e-4,
        cross_entropy_weight=0.5,
        discrepancy_weight=0.0,
        temperature=4.0,
    ),
    "photo": replace(  # ours: the schedule that is usual for ResNet-50
        PAPER, epochs=90, batch_size=256, base_lr=0.1, lr_drops=(30 / 90, 60 / 90, 80 / 90), crop="resized"
    ),
    "small": replace(PAPER, weight_decay=5e-4),  # ours: the decay of all others here, to compare arms
}


def views(recipe: DDGSDRecipe, image: ImageSpec) -> MakeTwoViews:
    return MakeTwoViews(labelled_view(image, crop=recipe.crop, crop_scale=recipe.crop_scale).view)


class DDGSD(Method):
    """See the module's docstring. B images, D features, N classes."""

    needs_labels = True
    batch_coupled = True
    recipe: DDGSDRecipe
    classifier: MLP

    def __init__(self, recipe: DDGSDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        recipe = self.recipe
        features = self.backbone(torch.cat([batch.view1, batch.view2]))  # (2B, D)
        logits = self.classifier(features).float()
        labels = batch.labels.repeat(2)
        cross_entropy = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)  # mean of both views
        a, b = logits.chunk(2)
        mutual = kl_divergence(a, b, temperature=recipe.temperature)  # detaches its second
        mutual = mutual + kl_divergence(b, a, temperature=recipe.temperature)
        features_a, features_b = features.chunk(2)
        discrepancy = mean_discrepancy(features_a, features_b)
        loss = (
            2 * recipe.cross_entropy_weight * cross_entropy
            + recipe.distillation_weight * mutual
            + recipe.discrepancy_weight * discrepancy
        )
        metrics = {
            "cross_entropy": cross_entropy.detach(),
            "mutual_kl": mutual.detach(),
            "mean_discrepancy": discrepancy.detach(),
            "accuracy": (logits.argmax(dim=1) == labels).float().mean(),
        }
        return StepOutput(loss, metrics, features_a.detach(), features_b.detach())


METHOD = DDGSD
