"""Supervised training: name the class of an image. The teacher of distillers with labels, and everybody's upper line.

He et al. 2016, arXiv:1512.03385 (CIFAR, section 4.2); Szegedy et al. 2016, arXiv:1512.00567 (label smoothing).

    loss = mean_i CE( classifier(backbone(view of x_i)), (1 - s) onehot(y_i) + s / N )

s is `label_smoothing`, N the number of classes. There is no state besides the weights.

Differs: "photo" has the schedule that is usual for ResNet-50 today (Goyal et al. 2017, arXiv:1706.02677), "small" the
one that the distillation literature trains its CIFAR-100 teachers with (Tian et al. 2020, arXiv:1910.10699).

Cost: one forward and backward pass of one view.

Choose it when all of your images are labelled and the labels are what you want; it is also what to distil from (kd).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

from attar.data.images import ImageSpec
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, one_of
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation, RandomCropPad
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Recipe):
    """Supervised training's own settings."""

    crop: Literal["resized", "padded"]  # resized: a random share of the image; padded (CIFAR): shifted by 1/8
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of the resized crop
    label_smoothing: float = 0.0  # Szegedy et al. 0.1

    used_with = {"crop_scale": one_of("crop", "resized")}


RECIPES = {
    "photo": SupervisedRecipe(  # Goyal et al. 2017, arXiv:1706.02677
        epochs=90,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.1,
        schedule="step",
        lr_drops=(30 / 90, 60 / 90, 80 / 90),
        warmup_fraction=5 / 90,
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        nesterov=True,
        crop="resized",
    ),
    "small": SupervisedRecipe(  # Tian et al., section 4.1: 0.05 at a batch of 64
        epochs=240,
        batch_size=64,
        optimiser="sgd",
        base_lr=0.2,
        schedule="step",
        lr_drops=(150 / 240, 180 / 240, 210 / 240),
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        crop="padded",
    ),
}


def labelled_view(image: ImageSpec, *, crop: str, crop_scale: tuple[float, float], flip: float = 0.5) -> MakeOneView:
    """Crop and mirror; colours stay, as labels may depend on them."""
    if crop == "padded":
        return MakeOneView(RandomCropPad(image, pad=max(image.size // 8, 1), flip=flip))
    return MakeOneView(Augmentation(image, scale=crop_scale, flip=flip, jitter=None, grey=0.0, blur=0.0))


def views(recipe: SupervisedRecipe, image: ImageSpec) -> MakeOneView:
    return labelled_view(image, crop=recipe.crop, crop_scale=recipe.crop_scale)


class Supervised(Method):
    """See the module's docstring. B images, N classes."""

    needs_labels = True
    recipe: SupervisedRecipe
    classifier: MLP

    def __init__(self, recipe: SupervisedRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        features = self.backbone(batch.images)
        logits = self.classifier(features).float()  # (B, N)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.recipe.label_smoothing)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}, features.detach())


METHOD = Supervised
