"""SimCLR: two views of an image must find each other among all views of the batch. Views of
one image differ by crop and colours only, so what they share is what the image shows.

v1 Chen et al. 2020, arXiv:2002.05709. v2 Chen et al. 2020, arXiv:2006.10029: a third layer in the projector and a
larger backbone (`skresnet50` has selective kernels; the paper's largest, ResNet-152 three times as wide with them, is
not in timm); in "v2_memory" the embeddings that a slowly moving copy of the network made of earlier second views are
negatives too, as in MoCo. Of v2's later stages, fine-tuning starts from the first layer of the projector.

    h = backbone(x),  z = projector(h),  both views of all images in one pass
    l_i = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),  s = cosine of z;  j the other view of image i
    loss = mean of l_i over the 2B views; the negatives are the 2B - 2 views of the other images

There is no state besides the weights, and with a memory the copy and the memory, which are moved after the optimiser's
step. Across processes negatives are gathered, with gradient, and batch norm must be synchronised: with local statistics
a view can recognise its partner by them.

Differs: the published code sums both views, twice this value (LARS does not notice; with SGD double base_lr to match
it); it also feeds pixels in [0, 1], where views here are normalised by the data's mean and standard deviation. Its LARS
multiplies by the learning rate before the momentum (v <- 0.9 v + lr q g, p <- p - v), ours after it (v <- 0.9 v + q g,
p <- p - lr v), which differs while the rate changes; and its Linears start from N(0, 0.01^2), ours as torch's.

Cost: two forward and backward passes of the backbone, and logits of 2B x 2B, in blocks. A memory adds a forward pass.

Choose it when a large batch fits (256 and more on small images, thousands on photographs): it is the plainest of its
family, and the first to try. With small batches take `moco` or `byol`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import gather_rows, nt_xent
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class SimCLRRecipe(Recipe):
    """SimCLR's own settings."""

    temperature: float  # section 5.1: 0.1 for ImageNet; appendix B.9: 0.5 for CIFAR-10
    projector_layers: int = 2  # section 4.2; v2 section 3: 3
    projector_hidden_dim: int | None = None  # None: the width of the features, 2048 for ResNet-50 (section 4.2)
    projector_dim: int = 128  # section 4.2
    memory_length: int | None = None  # v2: 64k, about one point in its paper; None: no memory
    memory_momentum: float = 0.999  # v2: as MoCo
    crop_scale: tuple[float, float] = (0.08, 1.0)  # appendix A: area share of the crops
    colour_strength: float  # s of appendix A: jitter 0.8 s, 0.8 s, 0.8 s, 0.2 s. ImageNet 1, CIFAR-10 0.5 (B.9)
    blur: float  # probability; appendix A: 0.5 for ImageNet, none for CIFAR-10

    used_with = {
        "projector_hidden_dim": above("projector_layers", 1),
        "memory_momentum": above("memory_length"),
    }


V2 = SimCLRRecipe(  # arXiv:2006.10029, section 3.1; temperature and decay: published ImageNet command
    epochs=800,
    batch_size=4096,
    optimiser="lars",
    base_lr=0.1,
    lr_scaling="sqrt",
    warmup_fraction=0.05,
    weight_decay=1e-4,
    temperature=0.1,
    projector_layers=3,
    colour_strength=1.0,
    blur=0.5,
)
RECIPES = {
    "photo": SimCLRRecipe(  # published command for ImageNet (google-research/simclr, README.md), 1000 epochs
        epochs=1000,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.075,  # appendix B.1: the square-root rule, better for small batches and few epochs
        lr_scaling="sqrt",
        warmup_fraction=10 / 1000,
        weight_decay=1e-4,  # published ImageNet command
        temperature=0.1,
        colour_strength=1.0,
        blur=0.5,
    ),
    "v2": V2,
    "v2_memory": replace(V2, memory_length=65536),  # as "v2", with the memory of its section 3
    "small": SimCLRRecipe(  # 32 px: the CIFAR-10 benchmark of lightly, ResNet-18, kNN 84.7 after 200 epochs
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # 0.06 at a batch of 128
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        temperature=0.5,
        colour_strength=0.5,
        blur=0.0,
    ),
    "small_lars": SimCLRRecipe(  # CIFAR-10, appendix B.9 and the published command; for long training
        epochs=1000,
        batch_size=512,
        optimiser="lars",
        base_lr=1.0,
        warmup_fraction=10 / 1000,
        weight_decay=1e-4,
        temperature=0.5,
        colour_strength=0.5,
        blur=0.0,
    ),
}


def views(recipe: SimCLRRecipe, image: ImageSpec) -> MakeTwoViews:
    """Crop, flip, jitter, grey, blur (appendix A); the same augmentation twice."""
    s = recipe.colour_strength
    return MakeTwoViews(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
            interpolation="bicubic",
        )
    )


class SimCLR(Method):
    """See the module's docstring. B images, D features, E embedding."""

    batch_coupled = True
    recipe: SimCLRRecipe
    projector: MLP

    def __init__(self, recipe: SimCLRRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        hidden = [recipe.projector_hidden_dim or backbone.num_features] * (recipe.projector_layers - 1)
        # Linear-BN-ReLU, then Linear-BN without shift: every Linear is followed by batch norm, so none needs a bias.
        self.projector = MLP(
            [backbone.num_features, *hidden, recipe.projector_dim],
            norm="batch",
            final_norm="batch_no_shift",
            bias=False,
            final_bias=False,
        )
        if recipe.memory_length:
            self.teacher = MomentumTeacher(self.encoder)
            self.memory = FeatureQueue(recipe.memory_length, recipe.projector_dim, setup.seed)
            warn_of_long_queue("simclr", recipe.memory_length, len(setup.images), field="memory_length")
        self._new_keys: list[Tensor] = []  # of this step; they enter the memory after it

    @property
    def encoder(self) -> nn.Sequential:
        """The trained network that the memory's copy follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = self.projector(self.backbone(torch.cat([batch.view1, batch.view2]))).chunk(2)  # (B, E) each
        memory = None
        if self.recipe.memory_length:
            memory = self.memory.rows
            with torch.no_grad():
                self._new_keys.append(F.normalize(self.teacher(batch.view2).float(), dim=1))
        loss = nt_xent(z1, z2, temperature=self.recipe.temperature, memory=memory)
        return StepOutput(loss, {"nt_xent": loss.detach()}, z1.detach(), z2.detach())

    def after_step(self, progress: Progress) -> None:
        if self.recipe.memory_length:
            self.teacher.update(self.encoder, self.recipe.memory_momentum)
            self.memory.push(gather_rows(torch.cat(self._new_keys)))
            self._new_keys.clear()


METHOD = SimCLR
