"""iBOT: DINO, and for every hidden patch of a crop the student must say what its momentum teacher, who sees it, says.
The teacher is thus a tokenizer of patches that is learned along, not one that was trained before.

Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv:2111.07832.

    g = head(token) scores over K prototypes; one head for the class token and for patch tokens
    cls   = DINO's loss between class tokens of different views; the student's global views are masked
    patch = mean over global views of the mean over their masked patches of  - sum_k P_k log Q_k,
            P from the teacher's token of the same patch of the same, whole view;  Q from the student's
    loss = cls + patch

Half of the global views are masked, block-wise, by a share between 10 % and 50 %; a learned mask token takes the
place of a patch's embedding at the input.

State, after the optimiser's step: one centre for class tokens, one for patches, each c <- 0.9 c + 0.1 * mean of this
step's raw teacher scores over both global views (all patches) and all processes; teacher <- m teacher + (1 - m)
student, m from `momentum` to 1 by a cosine. The teacher's temperature rises from epoch to epoch at the start.
RUN is the student; the teacher, whose figures are published, is kept in RUN/teacher.

Weight decay spares biases and norms, not positions and mask token, as the published code does.

Differs: paper and published command share the head, the code's default has one last layer for each; we share it. The
student has no drop-path, and the last layer's rows are of unit length, as in our DINO. The mean of the teacher's patch
scores is taken before the last layer, which is linear: the same number, without scores for every patch.

Cost: of a step with L local views (96 px of 224): about 4 + L / 5 forward and 2 + L / 5 backward passes of a view;
memory for two networks and M x K scores, M the number of masked patches of the batch.
Choose it when the backbone is a vision transformer and both image-level and patch-level features matter. On a small
data set or budget, DINO is simpler and nearly as good at image level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import dino, gather_rows, masked_distillation
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, Trained, above, with_own_group
from attar.methods.momentum import cosine_to_one
from attar.methods.multi_crop import check_local_views
from attar.methods.temperature import rising_temperature
from attar.models.backbones import Backbone
from attar.models.heads import DINOHead
from attar.models.momentum import MomentumTeacher
from attar.models.tokens import check_tokens, tokens_of
from attar.views.augmentation import Augmentation
from attar.views.batches import MaskedMultiCrop
from attar.views.masks import MakeMaskedMultiCrop, grid_of


@dataclass(frozen=True, kw_only=True)
class IBOTRecipe(Recipe):
    """iBOT's own settings. Defaults are those of ViT-S/16 on ImageNet."""

    student_temperature: float = 0.1  # section 3.3
    teacher_temperature: float = 0.07  # after its warm-up, for both kinds of token; published command
    teacher_temperature_start: float = 0.04
    teacher_temperature_fraction: float = 30 / 800  # 30 epochs
    momentum: float = 0.996  # of the teacher at the first step
    centre_momentum: float = 0.9
    num_prototypes: int = 8192  # of the shared head; section 3.3
    projector_hidden_dim: int = 2048
    projector_dim: int = 256  # bottleneck before the prototypes
    freeze_last_layer_fraction: float = 1 / 800  # the first epoch
    mask_probability: float = 0.5  # of a global view to be masked; --pred_ratio 0 0.3 of the published command
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # 0.3 +- 0.2; section 3.3
    num_local_views: int = 10  # section 3.3
    global_scale: tuple[float, float] = (0.25, 1.0)  # area share; published command
    local_scale: tuple[float, float] = (0.05, 0.25)
    local_size: float = 96 / 224  # side of a local view, as a share of the image's
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # probability in global view 1, 2, local views

    used_with = {
        "teacher_temperature_start": above("teacher_temperature_fraction"),
        "mask_ratio": above("mask_probability"),
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


RECIPES = {
    "photo": IBOTRecipe(  # ViT-S/16, 800 epochs: published command (bytedance/ibot, README.md)
        epochs=800,
        batch_size=1024,
        optimiser="adamw",
        base_lr=5e-4,
        final_lr=1e-6,
        warmup_fraction=10 / 800,
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip_gradient=3.0,
        clip_per_parameter=True,
    ),
    "small": IBOTRecipe(  # 32 px, patches of 4: ours
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


def views(recipe: IBOTRecipe, image: ImageSpec, patch_size: int = 16) -> MakeMaskedMultiCrop:
    """DINO's crops and colours, and block-wise masks over the global views."""

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

    grid = grid_of(image.size, patch_size, "ibot")
    local_size = max(round(grid * recipe.local_size), 1) * patch_size
    check_local_views("ibot", recipe, image.size, local_size)
    local = augmentation(recipe.local_scale, local_size, recipe.blur[2], 0.0)
    return MakeMaskedMultiCrop(
        global_views=[
            augmentation(recipe.global_scale, image.size, recipe.blur[0], 0.0),
            augmentation(recipe.global_scale, image.size, recipe.blur[1], 0.2),
        ],
        local_views=[local] * recipe.num_local_views,
        grid=grid,
        probability=recipe.mask_probability,
        ratio=recipe.mask_ratio,
        smallest=(grid // 3) ** 2,  # published code
    )


class IBOT(Method):
    """See the module's docstring. B images, N patches, M masked ones of the batch, D features, K prototypes."""

    recipe: IBOTRecipe
    needs_tokens = "class"
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, recipe: IBOTRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_tokens(backbone, "ibot", self.needs_tokens)
        self.backbone = backbone
        self.head = DINOHead(
            backbone.num_features,
            recipe.num_prototypes,
            hidden_dim=recipe.projector_hidden_dim,
            bottleneck_dim=recipe.projector_dim,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.num_features))
        self.teacher = MomentumTeacher(self.student)
        self.register_buffer("centre", torch.zeros(1, recipe.num_prototypes))
        self.register_buffer("patch_centre", torch.zeros(1, recipe.num_prototypes))
        self._teacher_means: list[Tensor] = []  # of this step, (1, 2K); they move the centres after it

    @property
    def student(self) -> nn.Sequential:
        """The trained network that the teacher follows."""
        return nn.Sequential(self.backbone, self.head)

    def step(self, batch: MaskedMultiCrop, progress: Progress) -> StepOutput:
        views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)  # (2B, C, H, W), (2B, N)
        seen = tokens_of(self.backbone, views, masked=masks, mask_token=self.mask_token)
        features = [seen.cls] + ([self.backbone(torch.cat(batch.local_views))] if batch.local_views else [])
        student_scores = self.head(torch.cat(features))  # (VB, K)
        student_patch_scores = self.head(seen.patches[masks])  # (M, K)
        teacher_scores, teacher_patch_scores = self._ask_teacher(views, masks)
        temperature = self.teacher_temperature(progress)
        temperatures = {"student_temperature": self.recipe.student_temperature, "teacher_temperature": temperature}
        num_views = 2 + len(batch.local_views)
        cls = dino(student_scores.chunk(num_views), teacher_scores.chunk(2), centre=self.centre, **temperatures)
        patch = masked_distillation(
            student_patch_scores, teacher_patch_scores, masks, centre=self.patch_centre, **temperatures
        )
        target = torch.softmax((teacher_scores[:64] - self.centre) / temperature, dim=1)
        metrics = {
            "cls": cls.detach(),
            "patch": patch.detach(),
            "teacher_entropy": torch.special.entr(target).sum(dim=1).mean(),  # log K or 0 for long is a collapse
            "teacher_temperature": temperature,
            "masked": masks.float().mean(),
        }
        return StepOutput(cls + patch, metrics, *seen.cls.detach().chunk(2))

    @torch.no_grad()
    def _ask_teacher(self, views: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the class tokens (2B, K) and of the masked patches (M, K) of the whole views."""
        backbone, head = cast(Iterable[Any], self.teacher.module)
        tokens = tokens_of(backbone, views)
        scores = head(tokens.cls)
        z = head.embedding(tokens.patches)  # (2B, N, E)
        patch_mean = head.scores(z.mean(dim=(0, 1))[None])  # the mean of all patches' scores
        self._teacher_means.append(torch.cat([scores.mean(dim=0, keepdim=True), patch_mean], dim=1))
        return scores, head.scores(z[masks])

    def after_step(self, progress: Progress) -> None:
        centre, patch_centre = gather_rows(torch.cat(self._teacher_means)).mean(dim=0, keepdim=True).chunk(2, dim=1)
        self.centre.lerp_(centre, 1 - self.recipe.centre_momentum)
        self.patch_centre.lerp_(patch_centre, 1 - self.recipe.centre_momentum)
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


METHOD = IBOT
