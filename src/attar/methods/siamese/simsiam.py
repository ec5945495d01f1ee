"""SimSiam: predict the other view's embedding, which gets no gradient; no negatives and no momentum teacher. The
stop-gradient and a predictor that adapts faster than the encoder are all that prevents a collapse.

Chen and He 2021, arXiv:2011.10566.

    z = projector(backbone(x)),  p = predictor(z)
    loss = mean over images of  -1/2 cos(p1, sg(z2)) - 1/2 cos(p2, sg(z1)),   in [-1, 1];  sg: no gradient

There is no state besides the weights. The predictor keeps the peak learning rate for the whole training, while that
of everything else is decayed: it must stay up to date with changing embeddings (section 4.2, table 1: 68.1 against
67.7 when decayed too). It has a bottleneck and no batch norm at its output (section 4.4). Each view is a forward
pass of its own, as published.

Differs: nothing in the numbers. The published code gives the projector's last layer a bias that is never trained;
batch norm takes it away again, so it is left out here.

Cost: two forward and backward passes and a small head; no teacher, no queue, no second copy of the weights: the
cheapest of the siamese methods. Memory as for two views in one step.

Choose it when memory is short or batches are small (it works at 64) and training is long; in short training it starts
slowly, and of all siamese methods it is the nearest to a collapse: watch embedding_std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from attar.data.images import ImageSpec
from attar.losses import negative_cosine
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above, with_own_group
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class SimSiamRecipe(Recipe):
    """SimSiam's own settings."""

    projector_layers: int  # section 3: 3; CIFAR-10, as PatrickHua/SimSiam has it: 2
    projector_hidden_dim: int = 2048  # section 3
    projector_dim: int = 2048  # section 3
    predictor_hidden_dim: int = 512  # section 3: a bottleneck of a quarter of the embedding
    crop_scale: tuple[float, float] = (0.2, 1.0)  # published code
    blur: float  # probability; published code: 0.5; CIFAR-10, as PatrickHua/SimSiam has it: none

    used_with = {"projector_hidden_dim": above("projector_layers", 1)}


RECIPES = {
    "photo": SimSiamRecipe(  # published command (facebookresearch/simsiam, README.md), 68.1 linear after 100 epochs
        epochs=100,
        batch_size=512,
        optimiser="sgd",
        base_lr=0.05,
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        projector_layers=3,
        blur=0.5,
    ),
    "small": SimSiamRecipe(  # CIFAR-10, as PatrickHua/SimSiam: configs/; paper: ResNet-18, linear 91.8, 800 epochs
        epochs=800,
        batch_size=512,
        optimiser="sgd",
        base_lr=0.03,  # 0.06 at a batch of 512
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        projector_layers=2,
        blur=0.0,
    ),
}


def views(recipe: SimSiamRecipe, image: ImageSpec) -> MakeTwoViews:
    """Those of MoCo v2, as in the published code; the same augmentation twice."""
    return MakeTwoViews(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=(0.4, 0.4, 0.4, 0.1),
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
        )
    )


class SimSiam(Method):
    """See the module's docstring. B images, E embedding."""

    recipe: SimSiamRecipe
    projector: MLP

    def __init__(self, recipe: SimSiamRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        width = recipe.projector_dim
        hidden = [recipe.projector_hidden_dim] * (recipe.projector_layers - 1)
        # Batch norm after every layer, so none needs a bias; the last norm has no scale and shift.
        self.projector = MLP(
            [backbone.num_features, *hidden, width],
            norm="batch",
            final_norm="batch_no_affine",
            bias=False,
            final_bias=False,
        )
        self.predictor = MLP([width, recipe.predictor_hidden_dim, width], norm="batch", bias=False)

    @property
    def encoder(self) -> nn.Sequential:
        """f of the paper: backbone and projector."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)  # (B, E)
        one_two = negative_cosine(self.predictor(z1), z2)  # detaches its target
        two_one = negative_cosine(self.predictor(z2), z1)
        metrics = {"view_1_to_2": one_two.detach(), "view_2_to_1": two_one.detach()}
        return StepOutput((one_two + two_one) / 2, metrics, z1.detach(), z2.detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The predictor's learning rate is not decayed."""
        return with_own_group(self, self.predictor, constant_lr=True)


METHOD = SimSiam
