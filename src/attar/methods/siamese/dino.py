"""DINO: self-distillation; every crop must predict what a momentum teacher says about the large crops. The
answers are distributions over prototypes; centring and sharpening those of the teacher keeps them from collapsing.

Caron et al. 2021, arXiv:2104.14294.

    g = head(backbone(x)) scores over K prototypes, of the student s and of its momentum teacher t
    P = softmax((g_t - c) / t_t),  Q = softmax(g_s / t_s)
    loss = 1/N sum over pairs of a global view and another view of  mean_b  - sum_k P_k log Q_k,   N = 2V - 2

The teacher sees the two global views, the student all V; crops of one size go through the backbone together.
The centre c keeps one prototype from winning, the low temperature t_t keeps the scores from becoming uniform.

State, after the optimiser's step: c <- 0.9 c + 0.1 * mean of this step's raw teacher scores (not their softmax) over
both global views and all processes; teacher <- m teacher + (1 - m) student over parameters, m from `momentum` to 1 by
a cosine. t_t rises linearly from epoch to epoch over the first part of training. RUN is the student; the teacher, whose
figures are published, is kept in RUN/teacher.

The last layer gets no update in the first epoch, gradients are clipped tensor by tensor, and weight decay rises by a
cosine (appendix C); it spares biases and norms, not positions, as the published code does.

Differs: the paper's student, not its teacher, has drop-path 0.1; here the backbone comes as it was built, without.
The rows of the last layer are of unit length (`norm_last_layer` of the published code) in every recipe. "small" has
the rate, decay, prototypes and first momentum of the benchmark named there, which has a head of two layers, m constant,
no warm-up, no clipping and no frozen last layer.

Cost: V forward and backward passes an image, small crops at their share of the area, and two forward passes of the
teacher; a second copy of the network, and the last layer of K prototypes in both.

Choose it for vision transformers, and where attention maps should show the objects (they are in the report). For
convnets and short trainings it has more settings to go wrong than `moco` or `simclr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import dino, gather_rows
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, Trained, above, with_own_group
from attar.methods.momentum import cosine_to_one
from attar.methods.multi_crop import check_local_views, features_of_crops, local_view_size, require_local_size
from attar.methods.temperature import rising_temperature
from attar.models.backbones import Backbone
from attar.models.heads import DINOHead
from attar.models.momentum import MomentumTeacher
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop
from attar.views.makers import MakeMultiCrop


@dataclass(frozen=True, kw_only=True)
class DINORecipe(Recipe):
    """DINO's own settings. Defaults are those of ViT-S/16 on ImageNet."""

    student_temperature: float = 0.1  # section 3.1
    teacher_temperature: float = 0.07  # after its warm-up; above 0.07 training is unstable (appendix D)
    teacher_temperature_start: float = 0.04  # appendix D
    teacher_temperature_fraction: float = 30 / 300  # 30 epochs of 300
    momentum: float = 0.996  # of the teacher at the first step; section 3.1. Small batches: 0.9995 at 256
    centre_momentum: float = 0.9  # appendix D
    num_prototypes: int = 65536  # appendix C
    projector_hidden_dim: int = 2048  # appendix C
    projector_dim: int = 256  # bottleneck before the prototypes; appendix C
    head_batch_norm: bool = False  # section 5.1: none for ViT
    freeze_last_layer_fraction: float = 1 / 300  # the first epoch
    num_local_views: int = 8  # section 3.1
    global_scale: tuple[float, float] = (0.4, 1.0)  # area share; with no local views (0.14, 1)
    local_scale: tuple[float, float] = (0.05, 0.4)  # area share
    local_size: float = 96 / 224  # side of a local view, as a share of the image's
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # probability in global view 1, 2, local views; BYOL's

    used_with = {
        "teacher_temperature_start": above("teacher_temperature_fraction"),
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


RECIPES = {
    # ViT-S/16, 300 epochs: published command (facebookresearch/dino, README.md, "Boosting DINO performance") on 16 GPUs
    # with 64 images each; but the last layer's rows stay of unit length
    "photo": DINORecipe(
        epochs=300,
        batch_size=1024,
        optimiser="adamw",
        base_lr=5e-4,
        final_lr=1e-6,
        warmup_fraction=10 / 300,
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip_gradient=3.0,
        clip_per_parameter=True,
    ),
    "convnet": DINORecipe(  # ResNet-50, published command (README.md), there with 512 images on 8 GPUs
        epochs=100,
        batch_size=1024,
        optimiser="sgd",
        base_lr=0.03,
        final_lr=1e-6,
        warmup_fraction=10 / 100,
        weight_decay=1e-4,
        clip_gradient=3.0,
        clip_per_parameter=True,
        teacher_temperature=0.04,
        freeze_last_layer_fraction=1 / 100,
        global_scale=(0.14, 1.0),
        local_scale=(0.05, 0.14),
    ),
    "small": DINORecipe(  # 32 px: after the CIFAR-10 benchmark of lightly (ResNet-18, kNN 84.0 after 200 epochs)
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # 0.06 at a batch of 128
        warmup_fraction=10 / 200,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        clip_gradient=3.0,
        clip_per_parameter=True,
        teacher_temperature=0.04,
        momentum=0.99,
        num_prototypes=2048,
        head_batch_norm=True,
        freeze_last_layer_fraction=1 / 200,
        num_local_views=0,
        global_scale=(0.14, 1.0),
        blur=(0.0, 0.0, 0.0),
    ),
    "small_vit": DINORecipe(  # 32 px, patches of 4: ours, as our small iBOT
        epochs=200,
        batch_size=256,
        optimiser="adamw",
        base_lr=1e-3,
        final_lr=1e-6,
        warmup_fraction=10 / 200,
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip_gradient=3.0,
        clip_per_parameter=True,
        teacher_temperature=0.04,
        teacher_temperature_fraction=0.0,
        momentum=0.99,
        num_prototypes=1024,
        projector_hidden_dim=512,
        projector_dim=128,
        freeze_last_layer_fraction=1 / 200,
        num_local_views=4,
        local_size=0.5,
        blur=(0.0, 0.0, 0.0),
    ),
}


def views(recipe: DINORecipe, image: ImageSpec, patch_size: int = 1) -> MakeMultiCrop:
    """BYOL's colours: global view 1 always blurred, 2 seldom blurred and sometimes solarised; then the local views."""

    def augmentation(scale: tuple[float, float], size: int, blur: float, solarise: float) -> Augmentation:
        return Augmentation(
            image,
            size=size,
            scale=scale,
            flip=0.5,
            jitter=(0.4, 0.4, 0.2, 0.1),
            jitter_probability=0.8,
            grey=0.2,
            blur=blur,
            blur_sigma=(0.1, 2.0),
            solarise=solarise,
            interpolation="bicubic",
        )

    local_size = local_view_size(image.size, recipe.local_size, patch_size)
    check_local_views("dino", recipe, image.size, local_size)
    local = augmentation(recipe.local_scale, local_size, recipe.blur[2], 0.0)
    return MakeMultiCrop(
        global_views=[
            augmentation(recipe.global_scale, image.size, recipe.blur[0], 0.0),
            augmentation(recipe.global_scale, image.size, recipe.blur[1], 0.2),
        ],
        local_views=[local] * recipe.num_local_views,
    )


class DINO(Method):
    """See the module's docstring. B images, V views, D features, E embedding, K prototypes."""

    recipe: DINORecipe
    centre: Tensor

    def __init__(self, recipe: DINORecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        require_local_size(backbone, setup.image, recipe.num_local_views, recipe.local_size)
        self.backbone = backbone
        self.head = DINOHead(
            backbone.num_features,
            recipe.num_prototypes,
            hidden_dim=recipe.projector_hidden_dim,
            bottleneck_dim=recipe.projector_dim,
            norm="batch" if recipe.head_batch_norm else None,
        )
        self.teacher = MomentumTeacher(self.student)
        self.register_buffer("centre", torch.zeros(1, recipe.num_prototypes))
        self._teacher_means: list[Tensor] = []  # of this step; they move the centre after it

    @property
    def student(self) -> nn.Sequential:
        """The trained network that the teacher follows."""
        return nn.Sequential(self.backbone, self.head)

    def step(self, batch: MultiCrop, progress: Progress) -> StepOutput:
        crops = [*batch.global_views, *batch.local_views]
        features = features_of_crops(self.backbone, crops)  # (VB, D)
        embeddings = self.head.embedding(features)  # (VB, E)
        student_scores = self.head.scores(embeddings)  # (VB, K)
        teacher_scores = self.teacher(torch.cat(batch.global_views))  # (2B, K)
        temperature = self.teacher_temperature(progress)
        loss = dino(
            student_scores.chunk(len(crops)),
            teacher_scores.chunk(2),
            centre=self.centre,
            student_temperature=self.recipe.student_temperature,
            teacher_temperature=temperature,
        )
        self._teacher_means.append(teacher_scores.mean(dim=0, keepdim=True))
        # Entropy log K: a uniform teacher; 0: a certain one. Either for long is a collapse. 64 rows tell.
        entropy = _entropy(torch.softmax((teacher_scores[:64] - self.centre) / temperature, dim=1))
        view1, view2 = embeddings.detach()[: 2 * len(batch.index)].chunk(2)
        return StepOutput(
            loss,
            {"dino": loss.detach(), "teacher_entropy": entropy, "teacher_temperature": temperature},
            view1,
            view2,
        )

    def after_step(self, progress: Progress) -> None:
        mean = gather_rows(torch.cat(self._teacher_means)).mean(dim=0, keepdim=True)
        self.centre.lerp_(mean, 1 - self.recipe.centre_momentum)
        self._teacher_means.clear()
        self.teacher.update(self.student, cosine_to_one(self.recipe.momentum, progress))

    def others(self) -> Mapping[str, Trained]:
        return {"teacher": Trained(self.teacher.module[0])}  # type: ignore[index]

    def teacher_temperature(self, progress: Progress) -> float:
        recipe = self.recipe
        return rising_temperature(
            recipe.teacher_temperature_start,
            recipe.teacher_temperature,
            recipe.teacher_temperature_fraction,
            progress,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The last layer starts to learn after the first epoch."""
        return with_own_group(self, self.head.last_layer, frozen_fraction=self.recipe.freeze_last_layer_fraction)


def _entropy(probabilities: Tensor) -> Tensor:
    """Mean over rows, in nats."""
    return torch.special.entr(probabilities).sum(dim=1).mean()


METHOD = DINO
