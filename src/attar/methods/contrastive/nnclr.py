"""NNCLR: the positive of a view is not the other view but that one's nearest neighbour among earlier embeddings, so
that an image meets others of its kind. The negatives are the neighbours' other counterparts in the batch.

Dwibedi et al. 2021, arXiv:2104.14548.

    z = n(projector(backbone(x))),  p = n(predictor(projector(backbone(x)))),   n(v) = v / |v|
    nn(z) = the row of the support queue Q nearest to z, a constant
    L(a, b) = mean_i  -log( exp(a_i b_i / t) / sum_k exp(a_i b_k / t) ),   k over the batch
    loss = 1/2 L(nn(z1), p2) + 1/2 L(nn(z2), p1)

State: after the optimiser's step the embeddings z1 of this step, of all processes, enter Q and push out the oldest, so
no image of this step finds itself. Q starts with random unit vectors. Each view is a forward pass of its own.

The gradient flows through the predictions only, those of the other images too: each p_k is also the negative of every
other neighbour, and is gathered over processes with its gradient.

Differs: views are SimCLR's, as in lightly; a re-implementation (clane9/vissl), from which the other numbers are, says
that the paper names BYOL's, without details. The benchmark that the small recipe is taken from has NT-Xent over
neighbours and predictions together; here it is the paper's loss.

Cost: two forward and backward passes, and a product of the batch with the queue for each view (seldom more than a
hundredth of the step). Memory: the queue, 96 MiB at 98304 embeddings of 256 numbers. No teacher.

Choose it when augmentations say too little about what belongs together (in the paper it lost 2.1 % of its accuracy
with crops alone) and there are at least some thousand images; with a queue longer than the data, the nearest
neighbour is often the image itself, and less is gained over SimCLR.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.losses import gather_rows, info_nce
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.queue import FeatureQueue
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews

logger = logging.getLogger("attar")


@dataclass(frozen=True, kw_only=True)
class NNCLRRecipe(Recipe):
    """NNCLR's own settings. Those for ImageNet: clane9/vissl, pretrain/nnclr."""

    temperature: float  # ImageNet 0.1, CIFAR-10 0.5
    queue_length: int = 98304  # CIFAR-10: 4096
    projector_layers: int = 3  # widths 2048, 2048, 256; CIFAR-10: 2
    projector_hidden_dim: int = 2048
    projector_dim: int = 256
    predictor_hidden_dim: int = 4096
    colour_strength: float  # s of SimCLR's jitter 0.8 s, 0.8 s, 0.8 s, 0.2 s; ImageNet 1, CIFAR-10 0.5: see above
    blur: float  # probability; ImageNet 0.5, CIFAR-10 none: see above

    used_with = {"projector_hidden_dim": above("projector_layers", 1)}


RECIPES = {
    # The paper as a re-implementation has it (clane9/vissl, pretrain/nnclr), but for the views, which are SimCLR's.
    "photo": NNCLRRecipe(
        epochs=1000,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.3,
        warmup_fraction=10 / 1000,
        weight_decay=1e-6,
        temperature=0.1,
        colour_strength=1.0,
        blur=0.5,
    ),
    "small": NNCLRRecipe(  # 32 px: after the CIFAR-10 benchmark of lightly (ResNet-18, kNN 83.4 after 200 epochs)
        epochs=200,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.12,  # 0.06 at a batch of 128
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        temperature=0.5,
        queue_length=4096,
        projector_layers=2,
        colour_strength=0.5,
        blur=0.0,
    ),
}


def views(recipe: NNCLRRecipe, image: ImageSpec) -> MakeTwoViews:
    """SimCLR's; the same augmentation twice."""
    s = recipe.colour_strength
    return MakeTwoViews(
        Augmentation(
            image,
            scale=(0.08, 1.0),
            flip=0.5,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
            interpolation="bicubic",
        )
    )


class NNCLR(Method):
    """See the module's docstring. B images, E embedding, Q queue."""

    batch_coupled = True
    recipe: NNCLRRecipe
    projector: MLP

    def __init__(self, recipe: NNCLRRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        width = recipe.projector_dim
        hidden = [recipe.projector_hidden_dim] * (recipe.projector_layers - 1)
        # Batch norm after every layer, the last one too, so none needs a bias.
        self.projector = MLP(
            [backbone.num_features, *hidden, width], norm="batch", final_norm="batch", bias=False, final_bias=False
        )
        self.predictor = MLP([width, recipe.predictor_hidden_dim, width], norm="batch", bias=False)
        self.queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self._new_rows: list[Tensor] = []  # of this step; they enter the queue after it
        if recipe.queue_length > len(setup.images):
            logger.warning(
                "nnclr: the queue of %d embeddings is longer than the data (%d images), so the nearest neighbour of an "
                "image is often its own earlier embedding; consider -s queue_length=%d.",
                recipe.queue_length,
                len(setup.images),
                max(len(setup.images) // 2, 1),
            )

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        z1, z2 = (self.projector(self.backbone(view)) for view in (batch.view1, batch.view2))  # (B, E)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        neighbour1, neighbour2 = self.nearest(z1), self.nearest(z2)
        one_two = info_nce(neighbour1, p2, temperature=self.recipe.temperature)
        two_one = info_nce(neighbour2, p1, temperature=self.recipe.temperature)
        self._new_rows.append(F.normalize(z1.detach().float(), dim=1))
        metrics = {
            "view_1_to_2": one_two.detach(),
            "view_2_to_1": two_one.detach(),
            "neighbour_cosine": F.cosine_similarity(z1.detach().float(), neighbour1).mean(),
        }
        return StepOutput((one_two + two_one) / 2, metrics, z1.detach(), z2.detach())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """For each row the row of the queue with the largest cosine; (B, E), without gradient."""
        with torch.autocast(z.device.type, enabled=False):
            return self.queue.rows[(z.float() @ self.queue.rows.T).argmax(dim=1)]

    def after_step(self, progress: Progress) -> None:
        self.queue.push(gather_rows(torch.cat(self._new_rows)))
        self._new_rows.clear()


METHOD = NNCLR
