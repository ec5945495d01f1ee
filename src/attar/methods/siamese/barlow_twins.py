"""Barlow Twins: the correlations between the dimensions of two views' embeddings must form the identity matrix. Views
agree in every dimension (the diagonal), and no dimension repeats another (the rest), so a collapse is no solution.

Zbontar et al. 2021, arXiv:2103.03230.

    z = projector(backbone(x)),  a, b = z of view 1 and 2, every dimension standardised over the batch
    C = a^T b / B,  loss = loss_scale * ( sum_i (C_ii - 1)^2  +  redundancy_weight * sum_{i != j} C_ij^2 )

There is no state besides the weights. The views are BYOL's: the first always blurred, the second seldom blurred and
sometimes solarised. C is that of the joined batch of all processes. Biases and batch norm parameters learn at a rate
of their own (0.0048 against 0.2), are not decayed and not adapted by LARS. Each view is a forward pass of its own.

Differs: nothing in the numbers. The published code standardises with batch norms that keep running statistics nobody
reads; here the loss does it.

Cost: two forward and backward passes of the backbone. The projector is the large part: 150 million weights at the
paper's width of 8192, more than a ResNet-50, and a matrix C of 256 MiB, with as much again for its gradient.

Choose it when batches are small (it works at 256) and a teacher or negatives are unwanted. It gains from wide
embeddings more than others do; on small networks another method is usually as good and cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from attar.data.images import ImageSpec
from attar.losses import barlow_twins_terms
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsRecipe(Recipe):
    """The method's own settings."""

    redundancy_weight: float = 0.0051  # lambda; published command, 0.005 in section 2.2
    loss_scale: float = 1.0  # the paper has none; matters to SGD, hardly to LARS
    projector_layers: int = 3  # section 2.2; CIFAR-10: 2
    projector_hidden_dim: int = 8192  # section 2.2
    projector_dim: int = 8192  # section 2.2
    bias_lr_scale: float = 1.0  # learning rate of biases and norm parameters, as a share; section 2.2: 0.0048 / 0.2
    blur: tuple[float, float]  # probability in view 1 and 2; section 2.2: BYOL's
    solarise: tuple[float, float] = (0.0, 0.2)  # probability in view 1 and 2; section 2.2: BYOL's

    used_with = {"projector_hidden_dim": above("projector_layers", 1)}


RECIPES = {
    "photo": BarlowTwinsRecipe(  # section 2.2 and published code (facebookresearch/barlowtwins, main.py): 73.5 linear
        epochs=1000,
        batch_size=2048,
        optimiser="lars",
        base_lr=0.2,
        final_lr=1.6e-3,  # a thousandth of the peak
        warmup_fraction=10 / 1000,
        weight_decay=1e-6,  # published code; 1.5e-6 in section 2.2
        bias_lr_scale=0.0048 / 0.2,
        blur=(1.0, 0.1),
    ),
    "small": BarlowTwinsRecipe(  # 32 px: the CIFAR-10 benchmark of lightly (ResNet-18, kNN 84.2 after 200 epochs),
        # with a warm-up and a smaller loss: unscaled, the first steps of SGD leave few directions of the embedding
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # 0.06 at a batch of 128
        warmup_fraction=10 / 200,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        redundancy_weight=0.005,
        loss_scale=1e-3,  # ours; about the mean over dimensions instead of their sum
        projector_layers=2,
        projector_hidden_dim=2048,
        projector_dim=2048,
        blur=(0.0, 0.0),  # left out at 32 px, as usual: a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
    ),
}


def views(recipe: BarlowTwinsRecipe, image: ImageSpec) -> MakeTwoViews:
    """BYOL's: common crops and colours, then blur and solarisation that differ between the views."""
    first, second = (
        Augmentation(
            image,
            scale=(0.08, 1.0),
            flip=0.5,
            jitter=(0.4, 0.4, 0.2, 0.1),
            jitter_probability=0.8,
            grey=0.2,
            blur=blur,
            blur_sigma=(0.1, 2.0),
            solarise=solarise,
            interpolation="bicubic",
        )
        for blur, solarise in zip(recipe.blur, recipe.solarise)
    )
    return MakeTwoViews(first, second)


class BarlowTwins(Method):
    """See the module's docstring. B images, E embedding."""

    batch_coupled = True
    recipe: BarlowTwinsRecipe
    projector: MLP

    def __init__(self, recipe: BarlowTwinsRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        hidden = [recipe.projector_hidden_dim] * (recipe.projector_layers - 1)
        self.projector = MLP(
            [backbone.num_features, *hidden, recipe.projector_dim], norm="batch", bias=False, final_bias=False
        )

    @property
    def encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)  # (B, E)
        invariance, redundancy = barlow_twins_terms(z1, z2)
        loss = self.recipe.loss_scale * (invariance + self.recipe.redundancy_weight * redundancy)
        metrics = {"invariance": invariance.detach(), "redundancy": redundancy.detach()}
        return StepOutput(loss, metrics, z1.detach(), z2.detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases and norm parameters learn more slowly."""
        weights = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        return [{"params": weights}, {"params": others, "lr_scale": self.recipe.bias_lr_scale}]


METHOD = BarlowTwins
