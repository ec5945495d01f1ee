"""DINOv2: iBOT's two terms with a head for each, balanced teacher targets, and a term that spreads the features.
The parts are known; together, and at scale, they give features that are good without fine-tuning.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193.

    g = head(class token), g' = patch_head(patch token): scores over K prototypes; nothing shared between the heads
    P = Sinkhorn-Knopp(teacher scores / t_t) over all class tokens, or all masked patches, of the step
    cls   = mean over pairs of a global view and another view of  - sum_k P_k log softmax(g_s / t_s)_k
    patch = mean over global views of the mean over masked patches of the same, teacher and student at the same patch
    koleo = sum over both global views of  mean_i - log |x_i - nearest other x|,  x = unit class tokens of the view
    loss = cls + patch + 0.1 koleo

Half of the global views are masked as in iBOT. `centring="softmax"` takes DINO's centre and softmax instead of
Sinkhorn-Knopp.

State, after the optimiser's step: teacher <- m teacher + (1 - m) student, m from `momentum` to 1 by a cosine; with
`centring="softmax"` also a centre for each head, as in iBOT. The teacher's temperature rises at the start.
RUN is the student; the teacher, whose figures are published, is kept in RUN/teacher.

Learning rates fall from the last block to the first by `layer_decay`, and the patch embedding has a fifth of its rate.
Weight decay spares biases and norms, not positions and tokens, as the published code does.

Differs: the published default file shares the head and centres by softmax, the paper and its large models do neither:
we follow the paper. Each global view is masked with probability 1/2 by a uniform share, where the code spreads the
shares evenly over a batch. KoLeo's neighbours are sought over all processes. With a softmax the code's patch centre is
the mean over masked patches, ours over all. The code clips the gradients of backbone and heads each
by itself, here one norm is over all; its teacher's temperature rises by the step, here by the epoch, as DINO's. No
drop-path; layer scale only if the backbone has it; the schedules of the high-resolution phase are left out.

Cost: as iBOT; with K = 65536 the scores of the masked patches are most of the memory: M x K numbers, several times.
Choose it when data are plenty (a million images and more) and one frozen backbone must serve image-level and
patch-level tasks. A backbone with registers (`vit_small_p16_reg4`; Darcet et al. 2024, arXiv:2309.16588) has a few
tokens more, without a position and compared by no loss, to keep what it would else write over patches of background.
Sinkhorn-Knopp and KoLeo compare the images of a batch: give it 256 or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import dino, gather_rows, koleo, masked_distillation, sinkhorn
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, Trained, above, one_of
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
class DINOv2Recipe(Recipe):
    """DINOv2's own settings. Defaults are those of the published default file (ViT-L/16 on ImageNet, 100 epochs)."""

    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"  # section 4
    sinkhorn_iterations: int = 3  # section 4
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07  # after its warm-up
    teacher_temperature_start: float = 0.04
    teacher_temperature_fraction: float = 30 / 100  # 30 epochs
    momentum: float = 0.992  # of the teacher at the first step
    centre_momentum: float = 0.9  # with centring="softmax"
    num_prototypes: int = 65536  # of each head
    projector_hidden_dim: int = 2048
    projector_dim: int = 256  # bottleneck before the prototypes
    freeze_last_layer_fraction: float = 1 / 100  # the first epoch
    layer_decay: float = 0.9  # of the learning rate, block by block from the last to the first
    patch_embed_lr: float = 0.2  # share of its rate
    mask_probability: float = 0.5  # of a global view to be masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    num_local_views: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)  # area share
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_size: float = 96 / 224  # side of a local view, as a share of the image's
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # probability in global view 1, 2, local views

    used_with = {
        "sinkhorn_iterations": one_of("centring", "sinkhorn"),
        "centre_momentum": one_of("centring", "softmax"),
        "teacher_temperature_start": above("teacher_temperature_fraction"),
        "mask_ratio": above("mask_probability"),
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


RECIPES = {
    # published default file (facebookresearch/dinov2, dinov2/configs/ssl_default_config.yaml); heads and targets are
    # the paper's, see above
    "photo": DINOv2Recipe(
        epochs=100,
        batch_size=1024,
        optimiser="adamw",
        base_lr=0.004 / 32,  # 0.004 at a batch of 1024, by the square root of the batch
        lr_scaling="sqrt",
        final_lr=1e-6,
        warmup_fraction=10 / 100,
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip_gradient=3.0,
    ),
    "large": DINOv2Recipe(  # ViT-L/14 on ImageNet-22k: dinov2/configs/train/vitl14.yaml; an epoch there is 1250 steps
        epochs=500,
        batch_size=3072,
        optimiser="adamw",
        base_lr=2e-4 / 32,
        lr_scaling="sqrt",
        final_lr=1e-6,
        warmup_fraction=80 / 500,
        weight_decay=0.04,
        weight_decay_end=0.2,
        clip_gradient=3.0,
        teacher_temperature_fraction=30 / 500,
        momentum=0.994,
        num_prototypes=131072,
        projector_dim=384,
        freeze_last_layer_fraction=1 / 500,
        layer_decay=1.0,
    ),
    "small": DINOv2Recipe(  # 32 px, patches of 4: ours
        epochs=200,
        batch_size=256,
        optimiser="adamw",
        base_lr=1e-3 / 16,  # 1e-3 at a batch of 256
        lr_scaling="sqrt",
        final_lr=1e-6,
        warmup_fraction=10 / 200,
        weight_decay=0.04,
        weight_decay_end=0.2,
        clip_gradient=3.0,
        teacher_temperature=0.05,
        teacher_temperature_fraction=0.1,
        momentum=0.99,
        num_prototypes=1024,
        projector_hidden_dim=512,
        projector_dim=128,
        freeze_last_layer_fraction=1 / 200,
        layer_decay=1.0,
        num_local_views=4,
        local_size=0.5,
        blur=(0.0, 0.0, 0.0),
    ),
}


def views(recipe: DINOv2Recipe, image: ImageSpec, patch_size: int = 16) -> MakeMaskedMultiCrop:
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

    grid = grid_of(image.size, patch_size, "dinov2")
    local_size = max(round(grid * recipe.local_size), 1) * patch_size
    check_local_views("dinov2", recipe, image.size, local_size)
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
    )


class DINOv2(Method):
    """See the module's docstring. B images, N patches, M masked ones of the batch, D features, K prototypes."""

    recipe: DINOv2Recipe
    needs_tokens = "class"
    batch_coupled = True
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, recipe: DINOv2Recipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_tokens(backbone, "dinov2", self.needs_tokens)
        self.backbone = backbone
        self.head, self.patch_head = (
            DINOHead(
                backbone.num_features,
                recipe.num_prototypes,
                hidden_dim=recipe.projector_hidden_dim,
                bottleneck_dim=recipe.projector_dim,
            )
            for _ in range(2)
        )
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.num_features))
        self.teacher = MomentumTeacher(self.student)
        self.register_buffer("centre", torch.zeros(1, recipe.num_prototypes))
        self.register_buffer("patch_centre", torch.zeros(1, recipe.num_prototypes))
        self._teacher_means: list[Tensor] = []  # of this step, (1, 2K); they move the centres after it

    @property
    def student(self) -> nn.Sequential:
        """The trained network that the teacher follows."""
        return nn.Sequential(self.backbone, self.head, self.patch_head)

    def step(self, batch: MaskedMultiCrop, progress: Progress) -> StepOutput:
        views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)  # (2B, C, H, W), (2B, N)
        seen = tokens_of(self.backbone, views, masked=masks, mask_token=self.mask_token)
        features = [seen.cls] + ([self.backbone(torch.cat(batch.local_views))] if batch.local_views else [])
        student_scores = self.head(torch.cat(features))  # (VB, K)
        student_patch_scores = self.patch_head(seen.patches[masks])  # (M, K)
        targets, patch_targets = self._ask_teacher(views, masks, self.teacher_temperature(progress))
        # softmax(log P - 0) at temperature 1 is P: the losses take the targets as if they were scores.
        as_they_are: dict[str, Any] = {"centre": torch.zeros_like(self.centre), "teacher_temperature": 1.0}
        as_they_are["student_temperature"] = self.recipe.student_temperature
        num_views = 2 + len(batch.local_views)
        cls = dino(student_scores.chunk(num_views), targets.log().chunk(2), **as_they_are)
        patch = masked_distillation(student_patch_scores, patch_targets.log(), masks, **as_they_are)
        view1, view2 = seen.cls.chunk(2)
        spread = koleo(view1) + koleo(view2)
        metrics = {
            "cls": cls.detach(),
            "patch": patch.detach(),
            "koleo": spread.detach(),
            "teacher_entropy": torch.special.entr(targets[:64]).sum(dim=1).mean(),
            "masked": masks.float().mean(),
        }
        loss = cls + patch + self.recipe.koleo_weight * spread
        return StepOutput(loss, metrics, view1.detach(), view2.detach())

    @torch.no_grad()
    def _ask_teacher(self, views: Tensor, masks: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Target probabilities of the class tokens (2B, K) and of the masked patches (M, K) of the whole views."""
        backbone, head, patch_head = cast(Iterable[Any], self.teacher.module)
        tokens = tokens_of(backbone, views)
        scores = head(tokens.cls)
        if self.recipe.centring == "sinkhorn":
            patch_scores = patch_head(tokens.patches[masks])
            balanced = {"epsilon": temperature, "iterations": self.recipe.sinkhorn_iterations}
            return sinkhorn(scores, **balanced), sinkhorn(patch_scores, **balanced)  # type: ignore[arg-type]
        z = patch_head.embedding(tokens.patches)  # (2B, N, E)
        patch_mean = patch_head.scores(z.mean(dim=(0, 1))[None])  # the mean of all patches' scores
        self._teacher_means.append(torch.cat([scores.mean(dim=0, keepdim=True), patch_mean], dim=1))
        patch_scores = patch_head.scores(z[masks])
        return (
            torch.softmax((scores - self.centre) / temperature, dim=1),
            torch.softmax((patch_scores - self.patch_centre) / temperature, dim=1),
        )

    def after_step(self, progress: Progress) -> None:
        if self._teacher_means:
            means = gather_rows(torch.cat(self._teacher_means)).mean(dim=0, keepdim=True).chunk(2, dim=1)
            for centre, mean in zip((self.centre, self.patch_centre), means):
                centre.lerp_(mean, 1 - self.recipe.centre_momentum)
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
        """One group for each learning rate; the last layers start to learn after the first epoch."""
        groups: dict[tuple[float, float], list[Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:  # the teacher's
                continue
            frozen = self.recipe.freeze_last_layer_fraction if ".last_layer." in f".{name}" else 0.0
            groups.setdefault((self._lr_scale(name), frozen), []).append((name, parameter))
        return [
            {"params": parameters, "lr_scale": scale, "frozen_fraction": frozen}
            for (scale, frozen), parameters in groups.items()
        ]

    def _lr_scale(self, name: str) -> float:
        """layer_decay to the number of blocks above: the input counts as one below the first block."""
        num_blocks = len(self.backbone.network.blocks)  # type: ignore[arg-type]
        block = re.match(r"backbone\.network\.blocks\.(\d+)\.", name)
        of_input = any(part in name for part in ("pos_embed", "patch_embed", "mask_token", "cls_token", "reg_token"))
        layer = 0 if of_input else int(block[1]) + 1 if block else num_blocks + 1
        scale = self.recipe.layer_decay ** (num_blocks + 1 - layer)
        return scale * self.recipe.patch_embed_lr if "patch_embed" in name else scale


METHOD = DINOv2
