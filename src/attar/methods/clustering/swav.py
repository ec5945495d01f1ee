"""SwAV: every crop must predict to which prototypes another crop of its image was assigned.
The assignments are made over the batch so that all prototypes are used equally often, which forbids a collapse.

Caron et al. 2020, arXiv:2006.09882. Recipe "seer": Goyal et al. 2021, arXiv:2103.01988, the same algorithm on RegNetY
(timm: regnety_2560 and smaller) and a billion images that nobody chose, each seen once.

    z = projector(backbone(x)) of unit length,  s = C z scores,  C (K, E) prototypes of unit length
    Q = sinkhorn(s) for each of the two global crops, without gradient
    loss = 1/2 sum over global crops a, 1/(V - 1) sum over other crops v, mean_b  - sum_k Q_a log softmax(s_v / t)_k

Sinkhorn's sums run over the images of all processes. With a small batch they also run over a queue of earlier
embeddings, one queue for each global crop, whose scores come from the current prototypes; the queue starts to fill at
`queue_start_fraction` of training and is used when it is full.

State: the rows of C are brought back to unit length after each update, before the next forward pass. C gets no update
in the first part of training (`freeze_prototypes_fraction`). After the optimiser's step the z of this step's global
crops, of all processes, enter the queues.

Differs: warm-up rises from 0, where the published code starts at 0.3 of 4.8 (SEER at 0.15 of 9.6). Local views have
sides in multiples of 16 pixels. As in the published code, not in the usual LARS, biases and norms are decayed and
adapted too; and the queues are used only when full (the paper does not say). Batch norm statistics are shared by all
processes, in the published code by groups of eight. SEER's memory savers (activation checkpoints, sharding) are no
part of the method. The benchmark that "small" is after has Adam and freezes no prototypes.

Cost: a step computes 2 + 6 x 0.18 = 3.1 views' worth of pixels (SEER 2 + 4 x 0.36 = 3.4); Sinkhorn and the prototypes
add little. Memory holds the activations of all crops, K x E prototypes and 2 Q x E of queue.
Choose it when images are many and a batch of some hundred is possible: multi-crop learns much per epoch, and nothing
is kept per image. With few images or a small batch and no queue, equal use of the prototypes is a false constraint.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import gather_rows, own_share, sinkhorn, swapped_prediction
from attar.losses.inputs import full_precision
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above, with_own_group
from attar.methods.multi_crop import check_local_views, features_of_crops, local_view_size, require_local_size
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.queue import FeatureQueue
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop
from attar.views.makers import MakeMultiCrop

logger = logging.getLogger("attar")

MOST_PROTOTYPES = 4  # for an image of batch and queue: as many as recipe "small" has, the benchmark's; SEER has 1.8


@dataclass(frozen=True, kw_only=True)
class SwAVRecipe(Recipe):
    """SwAV's own settings. Defaults are those of ResNet-50 on ImageNet."""

    temperature: float = 0.1  # section 4.1 and appendix A.1
    num_prototypes: int = 3000  # appendix A.1; SEER 16000
    sinkhorn_epsilon: float = 0.05  # appendix A.1
    sinkhorn_iterations: int = 3  # section 3.1; SEER 10
    freeze_prototypes_fraction: float  # the first epoch
    queue_length: int = 0  # embeddings of each global crop, over all processes; appendix A.2: 3840 for a batch of 256
    queue_start_fraction: float = 15 / 200  # epoch 15 of 200; appendix A.2
    projector_hidden_dim: int = 2048  # appendix A.1; SEER 8192
    projector_layers: int = 2  # appendix A.1; SEER 3
    projector_dim: int = 128  # appendix A.1; SEER 256
    head_batch_norm: bool = True  # SEER: none
    num_local_views: int = 6  # section 4.1: 2 x 224 + 6 x 96; SEER 2 x 160 + 4 x 96
    global_scale: tuple[float, float] = (0.14, 1.0)  # area share; appendix A.1
    local_scale: tuple[float, float] = (0.05, 0.14)  # area share; appendix A.1
    local_size: float = 96 / 224  # side of a local view, as a share of the image's
    colour_strength: float = 1.0  # s: jitter 0.8 s, 0.8 s, 0.8 s, 0.2 s, as SimCLR
    blur: float = 0.5  # probability

    used_with = {
        "queue_start_fraction": above("queue_length"),
        "projector_hidden_dim": above("projector_layers", 1),
        "head_batch_norm": above("projector_layers", 1),
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


RECIPES = {
    "photo": SwAVRecipe(  # published command (facebookresearch/swav, scripts/swav_800ep_pretrain.sh), 75.3 linear
        epochs=800,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.3,  # 4.8 at 4096
        final_lr=0.0048,
        warmup_fraction=10 / 800,
        weight_decay=1e-6,
        decay_bias_and_norm=True,
        freeze_prototypes_fraction=1 / 800,
    ),
    "photo_256": SwAVRecipe(  # scripts/swav_200ep_bs256_pretrain.sh, a batch that fits one machine: 72.7 linear
        epochs=200,
        batch_size=256,
        optimiser="lars",
        base_lr=0.6,
        final_lr=0.0006,
        weight_decay=1e-6,
        decay_bias_and_norm=True,
        freeze_prototypes_fraction=1 / 200,
        queue_length=3840,
    ),
    # Goyal et al. 2021, section 3. Crops, prototypes, iterations, decay and the head without batch norm are also in the
    # published config of its successor, RegNet-10B, where epsilon is found, too; the warm-up is in the name of its
    # published weights (which has 64 nodes with 16 images on a GPU, 8192 with eight each); batch size and rates from
    # memory. Its global views have 160 pixels, the local ones 96: give --image-size 160.
    "seer": SwAVRecipe(
        epochs=1,
        batch_size=8704,
        optimiser="lars",
        base_lr=9.6 * 256 / 8704,
        final_lr=0.0096,
        warmup_fraction=8 / 122,  # 8 of 122 thousand updates
        weight_decay=1e-5,
        decay_bias_and_norm=True,
        num_prototypes=16000,
        sinkhorn_iterations=10,
        sinkhorn_epsilon=0.03,
        freeze_prototypes_fraction=313 / 122000,  # SwAV's number of updates
        projector_hidden_dim=8192,
        projector_layers=3,
        projector_dim=256,
        head_batch_norm=False,
        num_local_views=4,
        local_size=96 / 160,
    ),
    "small": SwAVRecipe(  # 32 px: after the CIFAR-10 benchmark of lightly (ResNet-18, kNN 81.2 after 200 epochs)
        epochs=200,
        batch_size=128,
        optimiser="adamw",
        base_lr=2e-3,  # 1e-3 at a batch of 128
        weight_decay=1e-6,
        decay_bias_and_norm=True,
        num_prototypes=512,  # the benchmark's, more than the batch; a queue of 384 makes up for it
        freeze_prototypes_fraction=1 / 200,
        projector_hidden_dim=512,
        num_local_views=0,
        colour_strength=0.5,
        blur=0.0,  # left out at 32 px, as usual: a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
    ),
}


def views(recipe: SwAVRecipe, image: ImageSpec, patch_size: int = 1) -> MakeMultiCrop:
    """Crops of two sizes and ranges, and SimCLR's colours on all of them."""

    def augmentation(scale: tuple[float, float], size: int) -> Augmentation:
        s = recipe.colour_strength
        return Augmentation(
            image,
            size=size,
            scale=scale,
            flip=0.5,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
        )

    local_size = local_view_size(image.size, recipe.local_size, patch_size)
    check_local_views("swav", recipe, image.size, local_size)
    return MakeMultiCrop(
        global_views=[augmentation(recipe.global_scale, image.size)] * 2,
        local_views=[augmentation(recipe.local_scale, local_size)] * recipe.num_local_views,
    )


class SwAV(Method):
    """See the module's docstring. B images, V views, D features, E embedding, K prototypes, Q queue."""

    batch_coupled = True
    recipe: SwAVRecipe
    projector: MLP

    def __init__(self, recipe: SwAVRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        require_local_size(backbone, setup.image, recipe.num_local_views, recipe.local_size)
        self.backbone = backbone
        hidden = [recipe.projector_hidden_dim] * (recipe.projector_layers - 1)
        norm = "batch" if recipe.head_batch_norm else None
        self.projector = MLP([backbone.num_features, *hidden, recipe.projector_dim], norm=norm)
        self.prototypes = nn.Linear(recipe.projector_dim, recipe.num_prototypes, bias=False)
        num_queues = 2 if recipe.queue_length > 0 else 0
        self.queues = nn.ModuleList(
            FeatureQueue(recipe.queue_length, recipe.projector_dim, setup.seed + i) for i in range(num_queues)
        )
        self._new_embeddings: list[Tensor] = []  # (2, B, E) of this step; they enter the queues after it
        num_assigned = recipe.batch_size + recipe.queue_length
        if num_assigned * MOST_PROTOTYPES < recipe.num_prototypes:
            logger.warning(
                "swav: %d prototypes share a batch of %d and a queue of %d, more than %d for an image, and equal use "
                "is a false constraint; consider at most -s num_prototypes=%d, or at least -s queue_length=%d.",
                recipe.num_prototypes,
                recipe.batch_size,
                recipe.queue_length,
                MOST_PROTOTYPES,
                num_assigned * MOST_PROTOTYPES,
                -(-recipe.num_prototypes // MOST_PROTOTYPES) - recipe.batch_size,
            )

    def step(self, batch: MultiCrop, progress: Progress) -> StepOutput:
        self._normalise_prototypes()
        crops = [*batch.global_views, *batch.local_views]
        features = features_of_crops(self.backbone, crops)  # (VB, D)
        z = F.normalize(self.projector(features).float(), dim=1)  # (VB, E)
        scores = _scores(z, self.prototypes.weight).chunk(len(crops))  # V of (B, K)
        global_z = z.detach().chunk(len(crops))[:2]
        assignments = [self._assign(i, scores[i].detach(), progress) for i in range(2)]
        loss = swapped_prediction(scores, assignments, temperature=self.recipe.temperature)
        if self.queues and progress.step >= self._queue_start(progress):
            self._new_embeddings.append(torch.stack(global_z))
        # How many prototypes are some image's first choice; few for long is a collapse.
        used = torch.zeros_like(assignments[0][0]).index_fill_(0, assignments[0].argmax(dim=1), 1.0).sum()
        metrics = {"swapped_prediction": loss.detach(), "prototypes_used": used}
        return StepOutput(loss, metrics, *global_z)

    def after_step(self, progress: Progress) -> None:
        if self._new_embeddings:
            rows = gather_rows(torch.cat(self._new_embeddings, dim=1).transpose(0, 1))  # (B, 2, E)
            for queue, new in zip(self.queues, rows.unbind(1), strict=True):
                queue.push(new)  # type: ignore[operator]
            self._new_embeddings.clear()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The prototypes start to learn after the first epoch."""
        return with_own_group(self, self.prototypes, frozen_fraction=self.recipe.freeze_prototypes_fraction)

    @torch.no_grad()
    def _assign(self, crop: int, scores: Tensor, progress: Progress) -> Tensor:
        """Q of this process' images (B, K), balanced over the images of all processes and the full queue."""
        rows, num_own = scores, len(scores)
        pushed = (progress.step - self._queue_start(progress)) * self.recipe.batch_size
        if self.queues and pushed >= self.recipe.queue_length:
            earlier = own_share(self.queues[crop].rows)  # type: ignore[arg-type]
            rows = torch.cat([rows, _scores(earlier, self.prototypes.weight)])
        epsilon, iterations = self.recipe.sinkhorn_epsilon, self.recipe.sinkhorn_iterations
        return sinkhorn(rows, epsilon=epsilon, iterations=iterations)[:num_own]

    def _queue_start(self, progress: Progress) -> int:
        """The first step whose embeddings enter the queue."""
        return math.ceil(self.recipe.queue_start_fraction * progress.total_steps)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        weight = self.prototypes.weight
        weight.copy_(F.normalize(weight, dim=1))


@full_precision
def _scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines (B, K); Sinkhorn divides them by 0.05, for which 8 bits are too few."""
    return z @ prototypes.T


METHOD = SwAV
