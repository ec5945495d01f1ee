"""LeJEPA: every view must predict the mean embedding of the large views, while the embeddings of each view are held to
an isotropic Gaussian. That constraint alone prevents a collapse: no teacher, no stop-gradient, no predictor.

Balestriero and LeCun 2025, arXiv:2511.08544.

    z_v = projector(backbone(view v)),  (B, E), not normalised;  centre_i = mean over the global views of z_vi
    prediction = mean over views, images and dimensions of (centre_i - z_vi)^2
    SIGReg(z) = mean over random directions a of  B integral |phi_a(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt
        phi_a(t) = mean_i exp(i t <a, z_i>): how far <a, z> is from N(0, 1), by the test of Epps and Pulley
    loss = (1 - sigreg_weight) * prediction + sigreg_weight * mean over views of SIGReg(z_v)

There is no state besides the weights. The directions are drawn anew in every step from the seed and the number of the
step, so all processes have the same ones; phi is that of the joined batch. The gradient goes through the centre too.
SIGReg takes local views as well as global ones. Its floor is 1.05, not 0: that of a perfect Gaussian sample.

Differs: the integral is the published code's, over [0, 3] with 17 knots and doubled; the paper's listing has [-5, 5].
The code seeds the directions with the step alone. Sides of local views are multiples of 16 here, so 96 instead of 98
pixels of 224. Warm-up and batch size of the ImageNet runs are not in the published settings; those of the minimal
example are taken.

Cost: a pass over all views: with two global and six local ones about 3.1 times the pixels of one view, forward and
backward. SIGReg holds B * num_slices * 17 sines, cosines and angles a view: 53 MiB at a batch of 256, 3 GiB with
eight views at 2048. No second network.

Choose it when there is one knob to turn and little time to turn it: one weight, no schedules, small batches, any
backbone, and a loss that says something about the representation. It is young, and less is known of it at length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import sigreg
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.methods.multi_crop import check_local_views, features_of_crops, local_view_size, require_local_size
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop
from attar.views.makers import MakeMultiCrop


@dataclass(frozen=True, kw_only=True)
class LeJEPARecipe(Recipe):
    """LeJEPA's own settings. Sources: the published settings (README) and the minimal example of the authors."""

    sigreg_weight: float = 0.05  # lambda, the only knob; sensible from 0.01 to 0.1. Minimal example: 0.02
    num_slices: int = 1024  # random directions; minimal example: 256
    projector_hidden_dim: int = 2048  # three layers with batch norm; minimal example
    projector_dim: int = 128  # minimal example; 16 in its run on Imagenette
    num_global_views: int = 2  # published settings; minimal example: 4
    num_local_views: int = 6  # published settings; minimal example: none
    global_scale: tuple[float, float] = (0.3, 1.0)  # area share; published settings
    local_scale: tuple[float, float] = (0.05, 0.3)  # area share; published settings
    local_size: float = 98 / 224  # side of a local view, as a share of the image's; published settings
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # published settings
    blur: float = 0.5  # probability, all views; published settings
    solarise: float = 0.2  # probability, all views; published settings

    used_with = {
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


PHOTO = LeJEPARecipe(  # for ViTs: published settings (rbalestr-lab/lejepa, README.md); warm-up: its MINIMAL.md
    epochs=100,
    batch_size=256,  # minimal example
    optimiser="adamw",
    base_lr=5e-4,
    lr_scaling="none",
    final_lr=5e-7,  # a thousandth
    warmup_fraction=1 / 100,
    weight_decay=5e-2,
    decay_bias_and_norm=True,  # minimal example
)
SMALL = LeJEPARecipe(  # MINIMAL.md (Imagenette, 128 px, ViT-S/8: linear 90.7), with the decay of ResNets
    epochs=800,
    batch_size=256,
    optimiser="adamw",
    base_lr=2e-3,
    lr_scaling="none",
    final_lr=1e-3,
    warmup_fraction=1 / 800,
    weight_decay=5e-4,
    decay_bias_and_norm=True,
    sigreg_weight=0.02,
    num_slices=256,
    projector_dim=16,
    num_global_views=4,
    num_local_views=0,
    global_scale=(0.08, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    blur=0.0,  # there 0.5; at 32 px a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
)
RECIPES = {
    "photo": PHOTO,
    "convnet": replace(PHOTO, weight_decay=5e-4),  # for ResNets: published settings, as "photo" with less weight decay
    "small": SMALL,
    "small_vit": replace(SMALL, weight_decay=5e-2),  # MINIMAL.md, with its decay
}


def views(recipe: LeJEPARecipe, image: ImageSpec, patch_size: int = 1) -> MakeMultiCrop:
    """Global and local views have the same colours; they differ in scale and size only."""

    def augmentation(scale: tuple[float, float], size: int) -> Augmentation:
        return Augmentation(
            image,
            size=size,
            scale=scale,
            flip=0.5,
            jitter=recipe.jitter,
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
            solarise=recipe.solarise,
        )

    local_size = local_view_size(image.size, recipe.local_size, patch_size)
    check_local_views("lejepa", recipe, image.size, local_size)
    return MakeMultiCrop(
        global_views=[augmentation(recipe.global_scale, image.size)] * recipe.num_global_views,
        local_views=[augmentation(recipe.local_scale, local_size)] * recipe.num_local_views,
    )


class LeJEPA(Method):
    """See the module's docstring. B images, V views, D features, E embedding."""

    batch_coupled = True
    recipe: LeJEPARecipe
    projector: MLP

    def __init__(self, recipe: LeJEPARecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        require_local_size(backbone, setup.image, recipe.num_local_views, recipe.local_size)
        if recipe.num_global_views + recipe.num_local_views < 2:
            raise RecipeError(
                f"lejepa: num_global_views={recipe.num_global_views} and num_local_views={recipe.num_local_views} make "
                "one view of an image, and there is no other to predict; give two or more in all."
            )
        self.backbone = backbone
        hidden = recipe.projector_hidden_dim
        self.projector = MLP([backbone.num_features, hidden, hidden, recipe.projector_dim], norm="batch")
        self.seed = setup.seed

    def step(self, batch: MultiCrop, progress: Progress) -> StepOutput:
        crops = [*batch.global_views, *batch.local_views]
        features = features_of_crops(self.backbone, crops)  # (VB, D)
        z = self.projector(features).float().unflatten(0, (len(crops), -1))  # (V, B, E)
        centre = z[: len(batch.global_views)].mean(dim=0)
        prediction = (centre - z).square().mean()
        directions = self.directions(progress).to(z.device)
        gaussian = torch.stack([sigreg(view, directions) for view in z]).mean()
        weight = self.recipe.sigreg_weight
        loss = (1 - weight) * prediction + weight * gaussian
        metrics = {"prediction": prediction.detach(), "sigreg": gaussian.detach()}
        return StepOutput(loss, metrics, z[0].detach(), z[-1].detach())

    def directions(self, progress: Progress) -> Tensor:
        """The slices of this step, (M, E), on the CPU: the same on all processes and all devices."""
        seed = int(np.random.SeedSequence([self.seed, progress.step]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.recipe.num_slices, self.recipe.projector_dim, generator=generator)


METHOD = LeJEPA
