"""BYOL: predict what a momentum teacher says about the other view; no negatives. What keeps it from
the trivial answer is that the teacher gets no gradient, and that only the student has a predictor.

Grill et al. 2020, arXiv:2006.07733.

    z = projector(backbone(x)),  p = predictor(z),  z' = the same by the momentum teacher, without gradient
    loss = mean over images of |n(p1) - n(z2')|^2 + |n(p2) - n(z1')|^2,   n(v) = v / |v|,   in [0, 8]

State: after the optimiser's step, teacher <- m teacher + (1 - m) (backbone, projector) over parameters, m from
`momentum` to 1 by a cosine. The teacher's batch norms use the statistics of its own forward passes. The predictor is
not averaged.

The two views are augmented differently (table 6): the first always blurred, the second seldom blurred and sometimes
solarised; the loss takes both directions. Each view is a forward pass of its own, as published.

Differs: the published code initialises the teacher with other random weights, the paper and we with the student's.
"small" has the networks, rate, decay and first momentum of the benchmark named there, not its loss, which is half the
sum of two -cos, a quarter of ours (with SGD four times the rate); and there m stays 0.99 and no warm-up comes first.

Cost: two forward and backward passes an image, and two forward passes of the teacher; a second copy of the network.

Choose it when a batch can be some hundred images and negatives are unwanted, as where many images are nearly alike. It
leans on batch statistics and on a teacher that moves slowly: at a few hundred steps of training take `simclr`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from attar.data.images import ImageSpec
from attar.losses import byol_regression
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.methods.momentum import cosine_to_one
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class BYOLRecipe(Recipe):
    """BYOL's own settings."""

    momentum: float  # of the teacher at the first step; section 3.2: 0.996 for 1000 epochs, 0.99 for 300
    projector_hidden_dim: int = 4096  # section 3.2
    projector_dim: int = 256  # section 3.2
    predictor_hidden_dim: int = 4096  # section 3.2: built like the projector
    blur: tuple[float, float]  # probability in view 1 and 2; table 6
    solarise: tuple[float, float] = (0.0, 0.2)  # probability in view 1 and 2; table 6


RECIPES = {
    "photo": BYOLRecipe(  # 1000 epochs: published code (google-deepmind/deepmind-research, byol/configs/byol.py)
        epochs=1000,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.2,
        warmup_fraction=10 / 1000,
        weight_decay=1.5e-6,
        momentum=0.996,
        blur=(1.0, 0.1),
    ),
    "small": BYOLRecipe(  # 32 px: after the CIFAR-10 benchmark of lightly (ResNet-18, kNN 86.9 after 200 epochs)
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # 0.06 at a batch of 128
        warmup_fraction=10 / 200,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        momentum=0.99,
        projector_hidden_dim=1024,
        predictor_hidden_dim=1024,
        blur=(0.0, 0.0),  # left out at 32 px, as usual: a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
    ),
}


def views(recipe: BYOLRecipe, image: ImageSpec) -> MakeTwoViews:
    """Table 6: common crops and colours, then blur and solarisation that differ between the views."""
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


class BYOL(Method):
    """See the module's docstring. B images, E embedding."""

    recipe: BYOLRecipe
    projector: MLP

    def __init__(self, recipe: BYOLRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        width = recipe.projector_dim
        self.projector = MLP(
            [backbone.num_features, recipe.projector_hidden_dim, width], norm="batch", final_bias=False
        )
        self.predictor = MLP([width, recipe.predictor_hidden_dim, width], norm="batch", final_bias=False)
        self.teacher = MomentumTeacher(self.encoder)

    @property
    def encoder(self) -> nn.Sequential:
        """The part of the student that the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)  # (B, E)
        target1, target2 = self.teacher(batch.view1), self.teacher(batch.view2)
        one_two = byol_regression(self.predictor(z1), target2)
        two_one = byol_regression(self.predictor(z2), target1)
        metrics = {"view_1_to_2": one_two.detach(), "view_2_to_1": two_one.detach()}
        return StepOutput(one_two + two_one, metrics, z1.detach(), z2.detach())

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self.encoder, cosine_to_one(self.recipe.momentum, progress))


METHOD = BYOL
