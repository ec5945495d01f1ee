"""I-JEPA: from one large block of patches, predict a momentum teacher's features of four other blocks.
What is predicted are features, not pixels, so detail that cannot be known costs nothing.

Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv:2301.08243.

    context = a block of 85 - 100 % of the image less the targets;  targets = four blocks of 15 - 20 %
    z = backbone(patches of the context);  h = LayerNorm(teacher(whole image)), without scale, shift and gradient
    y_t = predictor(z, a mask token at each position of target t)
    loss = mean over images, targets and their patches of  mean_d smooth_L1(y_d - h_d)

State, after the optimiser's step: teacher <- m teacher + (1 - m) backbone, m rises linearly from `momentum` to 1.
RUN is the student; the teacher, which the paper evaluates, is kept in RUN/teacher.

No mirroring, no colours: only crops. There is no class token, so the backbone must pool its patch tokens
(vit_tiny_p4_gap).

Differs: block sizes are drawn for every image, and no mask is cut to the smallest of the batch; padding is left out of
attention and loss instead (see `context_and_targets`). Smooth L1 as published, the paper has the squared distance. The
backbone keeps its own, learned positions, without weight decay (the paper's are fixed sines and cosines). Warm-up
starts near 0, not at 2e-4.

Cost: one and a half forward and half a backward pass of a view, and the predictor on four sets of tokens; memory for
two networks.
Choose it when colour and mirroring carry meaning in your images, so that augmentations would destroy it, and the
backbone is a vision transformer. It needs long training before the features are worth probing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.losses import masked_smooth_l1
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, Trained, without_decay
from attar.models.backbones import Backbone
from attar.models.decoder import PatchDecoder
from attar.models.momentum import MomentumTeacher
from attar.models.tokens import Tokens, check_tokens, embed, indices_of, patch_size, pool, run_blocks, take, tokens_of
from attar.views.augmentation import Augmentation
from attar.views.batches import ContextAndTargets
from attar.views.masks import MakeContextAndTargets, grid_of


@dataclass(frozen=True, kw_only=True)
class IJEPARecipe(Recipe):
    """I-JEPA's own settings. Defaults are those of ViT-H/14 on ImageNet."""

    momentum: float = 0.996  # of the teacher at the first step; published configuration
    predictor_dim: int = 384  # published configuration
    predictor_depth: int = 12  # 6 for ViT-B
    predictor_heads: int = 16  # as the encoder's: ViT-H 16, ViT-B 12; published code
    num_targets: int = 4  # section 3
    target_scale: tuple[float, float] = (0.15, 0.2)  # area share; section 3
    target_aspect: tuple[float, float] = (0.75, 1.5)  # height / width; section 3
    context_scale: tuple[float, float] = (0.85, 1.0)  # section 3
    min_context: int = 10  # patches; published configuration
    crop_scale: tuple[float, float] = (0.3, 1.0)  # area share; published configuration


RECIPES = {
    "photo": IJEPARecipe(  # published configuration (facebookresearch/ijepa, configs/in1k_vith14_ep300.yaml)
        epochs=300,
        batch_size=2048,
        optimiser="adamw",
        base_lr=1e-3 / 8,  # 1e-3 at a batch of 2048
        final_lr=1e-6,
        warmup_fraction=40 / 300,
        weight_decay=0.04,
        weight_decay_end=0.4,
    ),
    "small": IJEPARecipe(  # 32 px, patches of 4: ours
        epochs=400,
        batch_size=256,
        optimiser="adamw",
        base_lr=1e-3,
        final_lr=1e-6,
        warmup_fraction=20 / 400,
        weight_decay=0.04,
        weight_decay_end=0.2,
        predictor_dim=96,
        predictor_depth=3,
        predictor_heads=4,
    ),
}


def views(recipe: IJEPARecipe, image: ImageSpec, patch_size: int = 16) -> MakeContextAndTargets:
    """Crops only, and the blocks."""
    crop = Augmentation(image, scale=recipe.crop_scale, flip=0.0, jitter=None, grey=0.0, blur=0.0)
    return MakeContextAndTargets(
        crop,
        grid=grid_of(image.size, patch_size, "i_jepa"),
        num_targets=recipe.num_targets,
        target_scale=recipe.target_scale,
        target_aspect=recipe.target_aspect,
        context_scale=recipe.context_scale,
        min_context=recipe.min_context,
    )


class IJEPA(Method):
    """See the module's docstring. B images, N patches, D features, T targets, n patches of context, m of a target."""

    recipe: IJEPARecipe
    needs_tokens = "mean"

    def __init__(self, recipe: IJEPARecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_tokens(backbone, "i_jepa", self.needs_tokens)
        self.backbone = backbone
        self.predictor = PatchDecoder(
            backbone.num_features,
            backbone.num_features,
            width=recipe.predictor_dim,
            depth=recipe.predictor_depth,
            heads=recipe.predictor_heads,
            grid=grid_of(setup.image.size, patch_size(backbone), "i_jepa"),
        )
        self.teacher = MomentumTeacher(backbone)

    def step(self, batch: ContextAndTargets, progress: Progress) -> StepOutput:
        num_targets = batch.targets.shape[1]
        context, context_valid = indices_of(batch.context)  # (B, n)
        places, valid = indices_of(batch.targets.flatten(0, 1))  # (BT, m)
        target, features = self._ask_teacher(batch.images)  # (B, N, D), (B, D)

        prefix, patches = embed(self.backbone, batch.images)
        z = run_blocks(self.backbone, Tokens(prefix, take(patches, context)), valid=context_valid)

        def for_each_target(x: Tensor) -> Tensor:
            return x.repeat_interleave(num_targets, dim=0)  # row b * T + t

        prediction = self.predictor(
            Tokens(for_each_target(z.prefix), for_each_target(z.patches)),
            for_each_target(context),
            places,
            seen_valid=for_each_target(context_valid),
            wanted_valid=valid,
        )  # (BT, m, D)
        loss = masked_smooth_l1(prediction, take(for_each_target(target), places), valid)
        return StepOutput(loss, {"features": loss.detach(), "context": context_valid.sum(1).float().mean()}, features)

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Targets at all patches (B, N, D), normalised one by one, and the pooled features (B, D)."""
        tokens = tokens_of(self.teacher.module, images)  # type: ignore[arg-type]
        return F.layer_norm(tokens.patches.float(), tokens.patches.shape[-1:]), pool(self.teacher.module, tokens)  # type: ignore[arg-type]

    def after_step(self, progress: Progress) -> None:
        start = self.recipe.momentum
        self.teacher.update(self.backbone, start + (1 - start) * progress.fraction)

    def others(self) -> Mapping[str, Trained]:
        return {"teacher": Trained(self.teacher.module)}  # type: ignore[arg-type]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on the positions, which would pull them to 0."""
        return without_decay(self, "pos_embed")


METHOD = IJEPA
