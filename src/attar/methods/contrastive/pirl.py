"""PIRL: an image and its nine jigsaw pieces in any order must have the same embedding. Pretext tasks ask for the order
and so make features that know it; here features become blind to it, as most uses of them want.

Misra and van der Maaten 2019, arXiv:1912.01991.

    f(v) = W v + b of an image's features v,   g: each patch's features to E, the nine joined, and to E once more
    M the memory bank, one unit row per training image
    loss = lambda D(g(patches), M_i) + (1 - lambda) D(f(image), M_i)
    D    = NCE or softmax of recognising the own row among others, see inst_disc

The first term makes patches and image agree, through the bank; the second holds the bank's row, an average of what
the image was, and the image together.

State: the bank, moved after the optimiser's step with the embeddings of the images only,
M_i <- n(m M_i + (1 - m) n(f)); Z of NCE, estimated on the first batch's patches and kept for both terms. Saved.

Differs: in the paper h divides by the own and the drawn scores of a step; the published code (VISSL), and we, divide
by InstDisc's fixed Z. The code also posterises and the like (its "random photometric"), which is left out here. One
draw of negatives serves the batch, see inst_disc. "small" is ours: the softmax over all images, for the reasons given
there, and patches of 3/8 of the image's side, since 64/224 of 32 px is too small for most networks.

Cost: an image and nine patches of 64 px: 1.7 times one view; B * K similarities a term; a bank of N * E numbers.

Choose it when images hold many parts and no single crop shows them all; otherwise InstDisc or MoCo v2 give more for
less. It asks for a network that takes patches: a ViT whose patch divides 64, or any convnet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.images import ImageSpec
from attar.losses import gather_rows
from attar.methods.base import Method, Progress, Setup, StepOutput, above
from attar.methods.memory import MemoryRecipe, discriminate, new_banks
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import ImageAndPatches
from attar.views.makers import MakeImageAndPatches

NUM_PATCHES = 9


@dataclass(frozen=True, kw_only=True)
class PIRLRecipe(MemoryRecipe):
    """PIRL's own settings, besides the bank's (section 2.3: temperature 0.07, momentum 0.5; 3: 32000 negatives)."""

    patch_weight: float = 0.5  # lambda, section 2.3
    patch_scale: float = 64 / 224  # side of a patch as a share of the image's, appendix A.1: 64 px
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of the image; published code
    patch_crop_scale: tuple[float, float] = (0.6, 1.0)  # of the crop that is cut; appendix A.1
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.2)  # published code, always applied

    used_with = {
        "patch_scale": above("patch_weight"),
        "patch_crop_scale": above("patch_weight"),
    }


RECIPES = {
    "photo": PIRLRecipe(  # published code (facebookresearch/vissl, configs/config/pretrain/pirl/), 64.3 linear
        epochs=800,
        batch_size=1024,
        optimiser="sgd",
        base_lr=0.03,  # section 3: 0.12 at a batch of 1024
        final_lr=1.2e-4,
        weight_decay=1e-4,
        objective="nce",
        num_negatives=32000,
        temperature=0.07,
    ),
    "small": PIRLRecipe(  # 32 px: ours; batch, rate, decay and softmax as inst_disc's
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.06,  # 0.03 at a batch of 128, as inst_disc
        weight_decay=5e-4,
        objective="softmax",
        num_negatives=None,
        temperature=0.1,
        patch_scale=3 / 8,
        crop_scale=(0.2, 1.0),
    ),
}


def views(recipe: PIRLRecipe, image: ImageSpec) -> MakeImageAndPatches:
    """The image's view, and nine patches; colours and flip are drawn anew for each."""
    whole, patch = (
        Augmentation(
            image,
            size=size,
            scale=scale,
            flip=0.5,
            jitter=recipe.jitter,
            jitter_probability=1.0,
            grey=0.2,
            blur=0.0,
        )
        for size, scale in (
            (image.size, recipe.crop_scale),
            (patch_side(recipe, image), recipe.patch_crop_scale),
        )
    )
    return MakeImageAndPatches(whole, patch)


def patch_side(recipe: PIRLRecipe, image: ImageSpec) -> int:
    """Side of a patch in pixels, 8 at least."""
    return max(round(recipe.patch_scale * image.size), 8)


class PIRL(Method):
    """See the module's docstring. B images, P = 9 patches, E embedding."""

    recipe: PIRLRecipe
    projector: MLP

    def __init__(self, recipe: PIRLRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        backbone.require_size(patch_side(recipe, setup.image), setting="patch_scale")
        self.backbone = backbone
        width = recipe.projector_dim
        self.projector = MLP([backbone.num_features, width])  # f
        self.patch_projector = MLP([backbone.num_features, width])  # g, of each patch
        self.patches_projector = MLP([NUM_PATCHES * width, width])  # g, of the nine joined
        (self.bank,) = new_banks(recipe, setup, "pirl")
        self._seen: list[tuple[Tensor, Tensor]] = []  # ids and embeddings of this step; they enter the bank after it

    def step(self, batch: ImageAndPatches, progress: Progress) -> StepOutput:
        f = self.projector(self.backbone(batch.images))  # (B, E)
        g = self.patch_projector(self.backbone(batch.patches.flatten(0, 1)))  # (B P, E)
        g = self.patches_projector(g.view(len(f), -1))  # (B, P E) -> (B, E)
        patches = discriminate(self.bank, g, batch.index, self.recipe, progress.step)
        images = discriminate(self.bank, f, batch.index, self.recipe, progress.step)
        weight = self.recipe.patch_weight
        self._seen.append((batch.index, f.detach()))
        metrics = {"patches": patches.detach(), "images": images.detach()}
        return StepOutput(weight * patches + (1 - weight) * images, metrics, f.detach(), g.detach())

    def after_step(self, progress: Progress) -> None:
        index, f = (gather_rows(torch.cat(parts)) for parts in zip(*self._seen))
        self.bank.update(index, f)
        self._seen.clear()


METHOD = PIRL
