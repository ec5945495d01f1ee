"""SimMIM: hide large squares of an image and regress their raw pixels with one linear layer. Hidden
patches stay in the sequence as a learned token, so any network of patches can be trained.

Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling", arXiv:2111.09886.

    hidden patches' embeddings are replaced by one learned mask token (their positions stay), all tokens go through the
    backbone, and  y = linear(patch token)  are the pixels of the patch
    loss = mean over images and hidden patches n of  mean_d |y_nd - x_nd|,   x = the normalised pixels of the view

There is no state besides the weights. Masks are drawn in squares of several patches, 60 % of them.

The class token of a transformer would not be trained, so the backbone must pool its patch tokens (vit_tiny_p4_gap).

Differs: the paper's transformers have relative positions and its class token; ours is timm's, with learned absolute
positions. Weight decay leaves out mask token, class token, registers and positions, as the published code does.

Cost: one forward and backward of a view; nothing else worth naming.
Choose it when MAE is your first thought and you want it simpler, or the masks coarser; fine-tune the result. Frozen
features are weak, as MAE's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attar.data.images import ImageSpec
from attar.losses import masked_l1
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, without_decay
from attar.models.backbones import Backbone
from attar.models.tokens import check_tokens, patch_size, patchify, pool, tokens_of
from attar.views.augmentation import Augmentation
from attar.views.batches import MaskedView
from attar.views.masks import MakeMaskedView, grid_of


@dataclass(frozen=True, kw_only=True)
class SimMIMRecipe(Recipe):
    """SimMIM's own settings."""

    mask_ratio: float = 0.6  # section 4.1.2
    mask_cell: float = 32 / 224  # side of the squares, as a share of the image's; section 4.1.2: 32 px
    crop_scale: tuple[float, float] = (0.67, 1.0)  # area share; section 4.1.1


RECIPES = {
    "photo": SimMIMRecipe(  # published configuration (microsoft/SimMIM, configs/vit_base__800ep/)
        epochs=800,
        batch_size=2048,
        optimiser="adamw",
        base_lr=5e-5,  # 1e-4 at a batch of 512, the reference of that code: 4e-4 at 2048
        schedule="step",
        lr_drops=(700 / 800,),
        warmup_fraction=10 / 800,
        weight_decay=0.05,
        adam_betas=(0.9, 0.999),
        clip_gradient=5.0,
    ),
    "small": SimMIMRecipe(  # 32 px, patches of 4: ours; cells of a quarter of the side, where the paper has a seventh
        epochs=400,
        batch_size=512,
        optimiser="adamw",
        base_lr=5e-4,
        warmup_fraction=20 / 400,
        weight_decay=0.05,
        clip_gradient=5.0,
        mask_cell=8 / 32,
    ),
}


def views(recipe: SimMIMRecipe, image: ImageSpec, patch_size: int = 16) -> MakeMaskedView:
    """Crops and mirror images only, and a mask of large squares."""
    crop = Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0)
    grid = grid_of(image.size, patch_size, "simmim")
    return MakeMaskedView(crop, grid=grid, ratio=recipe.mask_ratio, cell=_cell(recipe.mask_cell, grid))


def _cell(share: float, grid: int) -> int:
    """Patches a side of a square: the largest number that divides the grid and is no more than the share of it."""
    wanted = max(round(share * grid), 1)
    return max(cell for cell in range(1, wanted + 1) if grid % cell == 0)


class SimMIM(Method):
    """See the module's docstring. B images, N patches, D features."""

    recipe: SimMIMRecipe
    needs_tokens = "mean"

    def __init__(self, recipe: SimMIMRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_tokens(backbone, "simmim", self.needs_tokens)
        self.backbone = backbone
        self.patch_size = patch_size(backbone)
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.num_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(backbone.num_features, self.patch_size**2 * setup.image.channels)

    def step(self, batch: MaskedView, progress: Progress) -> StepOutput:
        tokens = tokens_of(self.backbone, batch.images, masked=batch.mask, mask_token=self.mask_token)
        prediction = self.head(tokens.patches)  # (B, N, p * p * C)
        loss = masked_l1(prediction, patchify(batch.images, self.patch_size), batch.mask)
        return StepOutput(loss, {"pixels": loss.detach()}, pool(self.backbone, tokens).detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on learned tokens and positions."""
        return without_decay(self, "mask_token", "pos_embed", "cls_token", "reg_token")


METHOD = SimMIM
