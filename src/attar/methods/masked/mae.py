"""MAE: hide three quarters of the patches; encode the rest, and rebuild the hidden pixels with a small decoder.
The encoder never sees a hidden patch, which makes it fast, and the decoder is thrown away.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377.

    seen, hidden = a random quarter of the patches, the others; drawn anew for every image and epoch
    z = backbone(seen patches, with their positions);  y = decoder(z, a mask token at each hidden position)
    loss = mean over images and hidden patches n of  mean_d (y_nd - t_nd)^2,   t = n's pixels, normalised by their own
    mean and standard deviation

There is no state besides the weights. The decoder is thrown away; mask tokens never enter the backbone.

Differs: the backbone keeps its own, learned positions, without weight decay (the paper's are fixed sines and cosines,
as the decoder's are here). The decoder computes its prediction at hidden places only; the paper's predicts everywhere
and ignores the rest.

Cost: by multiplications, a third (ViT-L) to a half (ViT-B) of one forward and backward of a view, because the backbone
sees a quarter of the patches; memory likewise.
Choose it when the backbone is a vision transformer that will be fine-tuned, with labels to do so, and you want cheap
pretraining without colour augmentation. Its frozen features are weak: do not judge it by kNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attar.data.images import ImageSpec
from attar.losses import masked_mse, normalise_patches
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, without_decay
from attar.models.backbones import Backbone
from attar.models.decoder import PatchDecoder
from attar.models.tokens import Tokens, check_tokens, embed, indices_of, patch_size, patchify, pool, run_blocks, take
from attar.views.augmentation import Augmentation
from attar.views.batches import MaskedView
from attar.views.masks import MakeMaskedView, grid_of


@dataclass(frozen=True, kw_only=True)
class MAERecipe(Recipe):
    """MAE's own settings."""

    mask_ratio: float = 0.75  # figure 5
    normalise_pixels: bool = True  # targets normalised patch by patch; table 1d
    decoder_dim: int = 512  # table 1b
    decoder_depth: int = 8  # table 1a
    decoder_heads: int = 16  # published code
    crop_scale: tuple[float, float] = (0.2, 1.0)  # area share; published code


RECIPES = {
    "photo": MAERecipe(  # table 8
        epochs=800,
        batch_size=4096,
        optimiser="adamw",
        base_lr=1.5e-4,
        warmup_fraction=40 / 800,
        weight_decay=0.05,
        adam_betas=(0.9, 0.95),
    ),
    "small": MAERecipe(  # 32 px, patches of 4: ours; the rate suits networks of a few million weights
        epochs=400,
        batch_size=512,
        optimiser="adamw",
        base_lr=1e-3,
        warmup_fraction=20 / 400,
        weight_decay=0.05,
        adam_betas=(0.9, 0.95),
        decoder_dim=96,
        decoder_depth=2,
        decoder_heads=4,
    ),
}


def views(recipe: MAERecipe, image: ImageSpec, patch_size: int = 16) -> MakeMaskedView:
    """Crops and mirror images only, and a random mask."""
    crop = Augmentation(
        image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0, interpolation="bicubic"
    )
    return MakeMaskedView(crop, grid=grid_of(image.size, patch_size, "mae"), ratio=recipe.mask_ratio)


class MAE(Method):
    """See the module's docstring. B images, N patches of p x p pixels, n seen and m hidden ones."""

    recipe: MAERecipe
    needs_tokens = "any"

    def __init__(self, recipe: MAERecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_tokens(backbone, "mae", self.needs_tokens)
        self.backbone = backbone
        self.patch_size = patch_size(backbone)
        self.decoder = PatchDecoder(
            backbone.num_features,
            self.patch_size**2 * setup.image.channels,
            width=recipe.decoder_dim,
            depth=recipe.decoder_depth,
            heads=recipe.decoder_heads,
            grid=grid_of(setup.image.size, self.patch_size, "mae"),
        )

    def step(self, batch: MaskedView, progress: Progress) -> StepOutput:
        seen, _ = indices_of(~batch.mask)  # (B, n); every image has as many
        hidden, _ = indices_of(batch.mask)  # (B, m)
        prefix, patches = embed(self.backbone, batch.images)
        encoded = run_blocks(self.backbone, Tokens(prefix, take(patches, seen)))
        prediction = self.decoder(encoded, seen, hidden)  # (B, m, p * p * C)
        target = take(patchify(batch.images, self.patch_size), hidden)
        if self.recipe.normalise_pixels:
            target = normalise_patches(target)
        loss = masked_mse(prediction, target, torch.ones_like(hidden, dtype=torch.bool))
        return StepOutput(loss, {"pixels": loss.detach()}, pool(self.backbone, encoded).detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on the positions, which would pull them to 0."""
        return without_decay(self, "pos_embed")


METHOD = MAE
