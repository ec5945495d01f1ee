"""MoCo v3: the prediction for one view must find the momentum teacher's key of the other view among the keys of the
batch. No queue: the batch is large, a predictor is added, and the recipe is made stable for vision transformers.

Chen, Xie and He 2021, arXiv:2104.02057.

    q = predictor(projector(backbone(x))),  k = the momentum teacher's projector(backbone(x)); both normalised
    ctr(q, k) = 2 t mean_i  -log( exp(q_i k_i / t) / sum_j exp(q_i k_j / t) ),  over the B keys of the batch
    loss = ctr(q1, k2) + ctr(q2, k1)

The factor 2 t keeps the scale of the gradient when t changes; the published learning rates count on it. The only
negatives are the other images' keys of the other view; they come from all processes and get no gradient.

State: after the optimiser's step, teacher <- m teacher + (1 - m) (backbone, projector) over parameters, m from
`momentum` to 1 by a cosine. The predictor is not averaged. The teacher's batch norms use the statistics of its own
forward passes.

A vision transformer's patch projection keeps its first, random weights: its gradient is where training becomes unstable
first (section 4.2); `freeze_patches=False` trains it. A backbone without a patch projection, a convnet, is trained
whole.

Training that becomes unstable shows as spikes of the gradient: `gradient_norm` of metrics.jsonl, step by step, and
`gradient_spike` of health.jsonl, the largest of some steps over their median.

Differs: the paper's ViT has fixed sine-cosine position embeddings and Xavier's initial weights, here the backbone comes
as it was built (so published weights may be trained further; their patch projection is frozen too), and its learned
positions have no weight decay, which would pull them to 0. The published
code moves the teacher before it makes the keys, with the same weights but a momentum one step further on its cosine.

Cost: two views forward and backward and two forward in the teacher, about 2.7 times one view; a second copy of
backbone and projector; no queue, but the paper's batch is 4096 (its code also names 1024).
Choose it when the backbone is a vision transformer and large batches are possible. On a small machine MoCo with its
queue asks for less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import info_nce
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above, without_decay
from attar.methods.momentum import cosine_to_one
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class MoCoV3Recipe(Recipe):
    """MoCo v3's own settings. Defaults are those of ViT on ImageNet."""

    temperature: float = 0.2  # section 4.1; ResNet-50: 1 (published command)
    momentum: float = 0.99  # of the teacher at the first step; published commands, 0.996 for ResNet-50 over 1000 epochs
    projector_layers: int = 3  # section 4.1; ResNet-50: 2 (published code)
    projector_hidden_dim: int = 4096  # section 4.1
    projector_dim: int = 256  # section 4.1
    predictor_hidden_dim: int = 4096  # section 4.1
    predictor_norm: bool = True  # batch norm after the predictor's last layer; ResNet-50: none (published code)
    freeze_patches: bool = True  # a ViT's patch projection keeps its random weights; section 4.2
    crop_scale: tuple[float, float] = (0.08, 1.0)  # published command; ResNet-50: (0.2, 1)
    blur: tuple[float, float] = (1.0, 0.1)  # probability in view 1 and 2; BYOL's
    solarise: tuple[float, float] = (0.0, 0.2)  # probability in view 1 and 2; BYOL's

    used_with = {"projector_hidden_dim": above("projector_layers", 1)}


RECIPES = {
    "vit": MoCoV3Recipe(  # ViT-S and ViT-B, published command (facebookresearch/moco-v3, CONFIG.md): 73.2, 76.7 linear
        epochs=300,
        batch_size=4096,
        optimiser="adamw",
        base_lr=1.5e-4,
        warmup_fraction=40 / 300,
        weight_decay=0.1,
        decay_bias_and_norm=True,  # AdamW over all parameters in the published code
    ),
    "convnet": MoCoV3Recipe(  # ResNet-50, published command (CONFIG.md): 72.8 linear
        epochs=300,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.3,
        warmup_fraction=10 / 300,
        weight_decay=1e-6,
        temperature=1.0,
        projector_layers=2,
        predictor_norm=False,
        crop_scale=(0.2, 1.0),
    ),
    "small": MoCoV3Recipe(  # 32 px, ResNets: heads and views as solo-learn's CIFAR-10, optimiser as our small BYOL
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.12,
        warmup_fraction=10 / 200,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        projector_layers=2,
        predictor_norm=False,
        blur=(0.0, 0.0),  # left out at 32 px, as usual: a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
    ),
    # 32 px: ours, for a small ViT, a small batch and few passes; the paper's 1.5e-4 and heads of 4096 are for ViT-B and
    # a batch of 4096. Views are the paper's, blur too: the numbers of claim moco_v3_patches are with it
    "small_vit": MoCoV3Recipe(
        epochs=200,
        batch_size=256,
        optimiser="adamw",
        base_lr=1e-3,
        lr_scaling="none",
        warmup_fraction=40 / 300,
        weight_decay=0.1,
        decay_bias_and_norm=True,
        projector_hidden_dim=512,
        predictor_hidden_dim=512,
    ),
}


def views(recipe: MoCoV3Recipe, image: ImageSpec) -> MakeTwoViews:
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
        )
        for blur, solarise in zip(recipe.blur, recipe.solarise)
    )
    return MakeTwoViews(first, second)


class MoCoV3(Method):
    """See the module's docstring. B images, E embedding."""

    batch_coupled = True
    recipe: MoCoV3Recipe
    projector: MLP

    def __init__(self, recipe: MoCoV3Recipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        projection = _patch_projection(backbone)
        if projection is None and "freeze_patches" in recipe.given:
            raise RecipeError(
                f"moco_v3: freeze_patches would be ignored: {backbone.spec.name} has no patch projection to freeze. "
                "Leave it out, or take a vision transformer, such as --backbone vit_small_patch16_224."
            )
        if projection is not None and recipe.freeze_patches:
            projection.requires_grad_(False)
        hidden = [recipe.projector_hidden_dim] * (recipe.projector_layers - 1)
        width = recipe.projector_dim
        self.projector = MLP(
            [backbone.num_features, *hidden, width], final_norm="batch_no_affine", bias=False, final_bias=False
        )
        self.predictor = MLP(
            [width, recipe.predictor_hidden_dim, width],
            final_norm="batch_no_affine" if recipe.predictor_norm else None,
            bias=False,
            final_bias=False,
        )
        self.teacher = MomentumTeacher(self.encoder)

    @property
    def encoder(self) -> nn.Sequential:
        """The part of the student that the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)  # (B, E)
        k1, k2 = self.teacher(batch.view1), self.teacher(batch.view2)
        t = self.recipe.temperature
        one_two = 2 * t * info_nce(self.predictor(z1), k2, temperature=t)
        two_one = 2 * t * info_nce(self.predictor(z2), k1, temperature=t)
        metrics = {"view_1_to_2": one_two.detach(), "view_2_to_1": two_one.detach()}
        return StepOutput(one_two + two_one, metrics, z1.detach(), z2.detach())

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self.encoder, cosine_to_one(self.recipe.momentum, progress))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on the positions of a ViT."""
        return without_decay(self, "pos_embed")


def _patch_projection(backbone: Backbone) -> nn.Conv2d | None:
    """Of timm's transformers, whose patch embedding is a convolution without overlap; convnets have none."""
    projection = getattr(getattr(backbone.network, "patch_embed", None), "proj", None)
    return projection if isinstance(projection, nn.Conv2d) else None


METHOD = MoCoV3
