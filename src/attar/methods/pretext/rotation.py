"""Rotation prediction (RotNet): by which multiple of 90 degrees was the image turned?

Gidaris et al. 2018, arXiv:1803.07728.

    loss = 1/(4B) sum_i sum_{r=0..3}  CE( head(backbone(rot90^r(x_i))), r )

All four rotations of an image are in the same batch (section 3.1: much better than one drawn at random), so B images
make 4B rows. An image is mirrored before it is turned, never after: a mirror image turned by 90 is the mirror image
of one turned by 270, and the question would have no answer. There is no state besides the weights.

It cannot work where images have no natural "up" (microscopy, aerial pictures): accuracy then stays near 1/4. The best
features for transfer come from the middle of the network.

Differs: the paper trains AlexNet and NIN. Recipe "photo" has the published values for ResNet-50 (OpenMMLab's
mmselfsup, linear probe 47.0), "small" the paper's for CIFAR-10.

Cost: four forward and backward passes an image.

Choose it as the plainest pretext task, for photographs taken upright; the best siamese and contrastive methods learn
more from the same images (docs/leaderboard.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import nn

from attar.data.images import ImageSpec
from attar.methods.base import Answers, Method, Progress, Recipe, Setup, StepOutput, one_of
from attar.models.backbones import Backbone
from attar.views.augmentation import Augmentation, RandomCropPad
from attar.views.batches import Rotated
from attar.views.makers import MakeRotated


@dataclass(frozen=True, kw_only=True)
class RotationRecipe(Recipe):
    """Rotation's own settings."""

    crop: Literal["resized", "padded"]  # resized: a random share of the image; padded (CIFAR-10): shifted by 1/8
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of the resized crop. Too small a share hides what is up

    used_with = {"crop_scale": one_of("crop", "resized")}


RECIPES = {
    "photo": RotationRecipe(  # ResNet-50: open-mmlab/mmselfsup, configs/selfsup/rotation_pred/, linear 47.0
        epochs=70,
        batch_size=128,  # 512 rows
        optimiser="sgd",
        base_lr=0.4,  # 0.2 at a batch of 128
        schedule="step",
        lr_drops=(30 / 70, 50 / 70),
        warmup_fraction=5 / 70,
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        crop="resized",
    ),
    "small": RotationRecipe(  # CIFAR-10, section 3.1
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
    ),
}


def views(recipe: RotationRecipe, image: ImageSpec) -> MakeRotated:
    """Crop and mirror, then all four turns. No colour operations."""
    if recipe.crop == "padded":
        return MakeRotated(RandomCropPad(image, pad=image.size // 8, flip=0.5))
    return MakeRotated(
        Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0, solarise=0.0)
    )


class Rotation(Method):
    """See the module's docstring. B images, D features."""

    recipe: RotationRecipe

    def __init__(self, recipe: RotationRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 4)

    def step(self, batch: Rotated, progress: Progress) -> StepOutput:
        features = self.backbone(batch.images)  # (4B, D)
        logits = self.head(features).float()
        loss = F.cross_entropy(logits, batch.pretext_targets)
        accuracy = (logits.argmax(dim=1) == batch.pretext_targets).float().mean()
        upright = features[: len(batch.index)].detach()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "rotation_accuracy": accuracy}, upright)

    def answers(self, batch: Rotated) -> Answers:
        """Each turned image, and by how much the network thinks that it was turned."""
        sure, turns = self.head(self.backbone(batch.images)).softmax(dim=1).max(dim=1)  # (4B,)
        said = [f"{90 * turn}° ({p:.0%})" for turn, p in zip(turns.tolist(), sure.tolist())]
        shown = {f"turned by {name}": images for name, images in batch.pictures().items()}
        num = len(batch.index)
        return Answers(shown, {name: said[num * r : num * (r + 1)] for r, name in enumerate(shown)}, batch.index)


METHOD = Rotation
