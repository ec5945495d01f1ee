"""CPC: from the rows of patches it has seen, a context predicts the embeddings of patches further below.
A prediction must tell the true patch from all patches of all images of the batch.

van den Oord et al. 2018, arXiv:1807.03748, section 3.2 (version 1, images).

    z_ij = backbone(patch in row i, column j of a grid whose patches overlap by half), each patch alone
    c_ij = context network of z, which at row i sees rows 1 .. i only
    loss = mean over k, and over i, j and images, of  -log( exp(z_{i+k,j} . W_k c_ij) / sum_n exp(z_n . W_k c_ij) )

k counts rows downwards from `num_skipped_rows` + 1: the next row shares half its pixels with what was seen, so it is
not asked for. n runs over the patches of all images, of all processes, with gradient. The products are plain: no
normalisation, no temperature, W_k without bias.

The context network is a PixelCNN: residual blocks of 1x1, 1x3 and 2x1 convolutions, the last with a row of zeros put
on top, so nothing from below enters.

The paper uses no batch norm: by their statistics, patches would tell each other what is to be predicted. So here the
backbone's batch norms keep the statistics they came with (0 and 1 in a new network, then they are mere scales and
shifts), in training as in evaluation. Deep backbones without any norm train badly; those with layer norm are fine.

There is no state besides the weights.

Differs: the paper takes the third of four residual stages of ResNet-v2-101 and pools it; here the backbone's output.
It does not give the context network; this is that of the second version's appendix (arXiv:1905.09272). Nor does it say
which five rows of seven are predicted; with one skipped all five exist. Its probe pools the patches' features, our
evaluation shows the whole image to the backbone. Adam's epochs are not given.

Cost: 49 patches of a quarter of the side have 3.1 times the pixels of the image; the context network is small. The
logits grow with the square of the number of patches and are computed in blocks.
Choose it when where things are in the picture matters and colour augmentation would destroy what you look for; for
classification SimCLR or MoCo reach more with less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import bilinear_nce
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.views.augmentation import Augmentation
from attar.views.batches import PatchGrid
from attar.views.makers import MakePatchGrid, grid_patch_side


@dataclass(frozen=True, kw_only=True)
class CPCRecipe(Recipe):
    """CPC's own settings. Defaults are section 3.2's."""

    num_rows: int = 7  # G: the grid is G x G; section 3.2: patches of 64 x 64 from 256 x 256
    num_predicted_rows: int = 5  # section 3.2: up to five rows
    num_skipped_rows: int = 1  # between what was seen and what is predicted; see the text above
    context_blocks: int = 5  # second version, appendix
    context_hidden_dim: int = 256  # second version, appendix
    crop_scale: tuple[float, float] = ((256 / 300) ** 2, (256 / 300) ** 2)  # section 3.2: 256 x 256 from 300 x 300
    grey: float = 1.0  # probability; section 3.2: always
    patch_crop: float = 60 / 64  # section 3.2: 60 x 60 of 64 x 64, padded back


RECIPES = {
    "photo": CPCRecipe(  # section 3.2; epochs ours (the paper gives none)
        epochs=200,
        batch_size=512,  # 32 GPUs with 16 each
        optimiser="adamw",  # without decay, that is Adam
        base_lr=2e-4,
        lr_scaling="none",
        schedule="constant",
    ),
    "small": CPCRecipe(  # 32 to 64 px: ours; 5 x 5 patches (10 x 10 of 32 x 32) as rschwarz15/CPCV2-PyTorch on CIFAR-10
        epochs=200,
        batch_size=128,
        optimiser="adamw",
        base_lr=1e-3,
        lr_scaling="none",
        num_rows=5,
        num_predicted_rows=3,
        grey=0.5,  # a small picture's colours are much of what it holds
    ),
}


def views(recipe: CPCRecipe, image: ImageSpec) -> MakePatchGrid:
    """A crop of fixed size, mirrored, grey; then patches, each moved a little."""
    return MakePatchGrid(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            ratio=(1.0, 1.0),
            flip=0.5,
            jitter=None,
            grey=recipe.grey,
            blur=0.0,
        ),
        num_rows=recipe.num_rows,
        kept=recipe.patch_crop,
    )


class CPC(Method):
    """See the module's docstring. B images, G rows and columns of patches, D features."""

    batch_coupled = True
    recipe: CPCRecipe

    def __init__(self, recipe: CPCRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        _check_rows(recipe)
        backbone.require_size(grid_patch_side(setup.image.size, recipe.num_rows), setting="num_rows")
        self.backbone = backbone
        width = backbone.num_features
        self.context = ContextNetwork(width, recipe.context_hidden_dim, recipe.context_blocks)
        self.predict = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(recipe.num_predicted_rows))

    def train(self, mode: bool = True) -> CPC:
        """The backbone's batch norms stay in eval mode: no patch knows another."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def step(self, batch: PatchGrid, progress: Progress) -> StepOutput:
        B, G = batch.patches.shape[:2]
        z = self.backbone(batch.patches.flatten(0, 2))  # (BGG, D)
        c = self.context(z.view(B, G, G, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, G, G, D)
        place = torch.arange(len(z), device=z.device).view(B, G, G)
        terms = {}
        for k, predict in enumerate(self.predict, start=self.recipe.num_skipped_rows + 1):
            predictions = predict(c[:, : G - k]).flatten(0, 2)  # (B (G - k) G, D)
            terms[f"rows_ahead_{k}"] = bilinear_nce(predictions, z, place[:, k:].flatten())
        loss = torch.stack(list(terms.values())).mean()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, z.detach())


class ContextNetwork(nn.Module):
    """(B, D, G, G) -> the same shape; each output depends on its own row, on both sides, and on the rows above."""

    def __init__(self, width: int, hidden_dim: int, num_blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden_dim, 1),
                nn.ReLU(),
                nn.Conv2d(hidden_dim, hidden_dim, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),  # a row on top, for the next kernel
                nn.Conv2d(hidden_dim, hidden_dim, (2, 1)),
                nn.ReLU(),
                nn.Conv2d(hidden_dim, width, 1),
            )
            for _ in range(num_blocks)
        )

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = z + block(z)
        return F.relu(z)


def _check_rows(recipe: CPCRecipe) -> None:
    furthest = recipe.num_skipped_rows + recipe.num_predicted_rows
    if not (recipe.num_skipped_rows >= 0 and recipe.num_predicted_rows >= 1 and furthest < recipe.num_rows):
        raise RecipeError(
            f"cpc: num_skipped_rows={recipe.num_skipped_rows} and num_predicted_rows={recipe.num_predicted_rows} reach "
            f"{furthest} rows ahead; a grid of num_rows={recipe.num_rows} has at most {recipe.num_rows - 1}."
        )


METHOD = CPC
