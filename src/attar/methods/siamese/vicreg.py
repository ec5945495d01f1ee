"""VICReg: the two views' embeddings must be close, while every dimension keeps a standard deviation of at least 1 and
no two dimensions are correlated. What prevents a collapse is said in the loss, for each view by itself.

Bardes et al. 2022, arXiv:2105.04906.

    z = projector(backbone(x)),  not normalised
    s = mean over images and dimensions of (z1 - z2)^2
    v = mean over views and dimensions of max(0, 1 - sqrt(Var_d + 1e-4))
    c = sum over views of 1/E sum_{i != j} Cov_ij^2
    loss = similarity_weight * s + variance_weight * v + covariance_weight * c

There is no state besides the weights. Variance and covariance are those of the joined batch of all processes, with
gradient. The views are BYOL's: the first always blurred, the second seldom blurred and sometimes solarised. Each view
is a forward pass of its own, as published.

Differs: equation 6 adds v of both views, the published code takes their mean; the code is followed, so double
variance_weight for the paper's sum. Equation 5 sums s over dimensions; the paper's algorithm and its code take the
mean, as here.

Cost: two forward and backward passes of the backbone. The projector is the large part: 150 million weights at the
paper's width of 8192, more than a ResNet-50, and a covariance matrix of 256 MiB for each view.

Choose it when the two branches differ (other networks, other kinds of data), since nothing is shared between the
views but s; or when you want to read off, term by term, why a representation degrades. Else as Barlow Twins.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from attar.data.images import ImageSpec
from attar.losses import vicreg_terms
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class VICRegRecipe(Recipe):
    """VICReg's own settings."""

    similarity_weight: float = 25.0  # lambda; section 4.2
    variance_weight: float = 25.0  # mu; section 4.2
    covariance_weight: float = 1.0  # nu; section 4.2
    projector_hidden_dim: int = 8192  # section 4.2
    projector_dim: int = 8192  # section 4.2
    crop_scale: tuple[float, float] = (0.08, 1.0)  # appendix C.1
    blur: tuple[float, float]  # probability in view 1 and 2; published code: BYOL's
    solarise: tuple[float, float] = (0.0, 0.2)  # probability in view 1 and 2; published code: BYOL's


RECIPES = {
    "photo": VICRegRecipe(  # published command (facebookresearch/vicreg, README.md), 73.2 linear
        epochs=1000,
        batch_size=2048,
        optimiser="lars",
        base_lr=0.2,
        final_lr=1.6e-3,  # published code: a thousandth of the peak
        warmup_fraction=10 / 1000,
        weight_decay=1e-6,
        blur=(1.0, 0.1),
    ),
    "small": VICRegRecipe(  # 32 px: head and views of solo-learn's CIFAR-10 recipe; the optimiser is ours
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # that of the other small recipes: solo-learn's fits only its own variant of LARS
        warmup_fraction=10 / 200,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        clip_gradient=1.0,  # ours: without it the loss is not finite after some steps in bf16
        projector_hidden_dim=2048,
        projector_dim=2048,
        crop_scale=(0.2, 1.0),
        blur=(0.0, 0.0),
        solarise=(0.1, 0.1),
    ),
}


def views(recipe: VICRegRecipe, image: ImageSpec) -> MakeTwoViews:
    """BYOL's: common crops and colours, then blur and solarisation that differ between the views."""
    first, second = (
        Augmentation(
            image,
            scale=recipe.crop_scale,
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


class VICReg(Method):
    """See the module's docstring. B images, E embedding."""

    batch_coupled = True
    recipe: VICRegRecipe
    projector: MLP

    def __init__(self, recipe: VICRegRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        hidden = recipe.projector_hidden_dim
        self.projector = MLP(
            [backbone.num_features, hidden, hidden, recipe.projector_dim], norm="batch", final_bias=False
        )

    @property
    def encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)  # (B, E)
        s, v, c = vicreg_terms(z1, z2)
        r = self.recipe
        loss = r.similarity_weight * s + r.variance_weight * v + r.covariance_weight * c
        metrics = {"similarity": s.detach(), "variance": v.detach(), "covariance": c.detach()}
        return StepOutput(loss, metrics, z1.detach(), z2.detach())


METHOD = VICReg
