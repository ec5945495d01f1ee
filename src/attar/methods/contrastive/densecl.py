"""DenseCL: MoCo v2 for places as well as for images. Each cell of a query's feature map must find, among a queue, the
cell of the key's map that looks most like it, so that features stay different from place to place.

Wang et al. 2021, arXiv:2011.09157.

    h, H = backbone(x): features and the map they are pooled from, N cells of D numbers
    q = n(projector(h)),  q_s = n(dense_projector(H_s)) of cell s;  k, k_s the same of the other view by the teacher
    c(s) = argmax_s' cos(H_s of the query, H_s' of the key)      which cell shows the same thing
    loss = (1 - lambda) InfoNCE(q, k, queue) + lambda mean_s InfoNCE(q_s, k_c(s), dense queue)

State, all moved after the optimiser's step: the teacher of backbone and both projectors, by m, over parameters; then
the keys k of this step enter the queue, and n(mean_s of dense_projector(H_s)), one vector an image, the dense queue.
Keys of all processes enter. Groups of the batch norm are those of moco.

Differs: the paper keeps lambda at 0 in the first steps; the published configuration leaves out the hook for it
(densecl_warmup_hook.py: 1000 steps; its author in issue 16: 10,000), and so do we. The correspondence is taken in the
backbone's map, as in the code, not between the projected cells. Where the batch times the cells times the queue would
not fit, the loss is computed in blocks.

Cost: as MoCo (one view with gradient, one without) and B * N * Q similarities: with 7 x 7 cells and 65536 keys about
a hundredth of a ResNet-50's step. Two queues of Q * E numbers, a second copy of the weights.

Choose it when the features will be used place by place (detection, segmentation, defects in a picture); for whole
images MoCo v2 does as well. It needs a convnet, and a map of a few cells: images of 32 px want a small stem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows, info_nce
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.batch_norm import check_groups, in_groups
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class DenseCLRecipe(Recipe):
    """DenseCL's own settings. Defaults are those for ImageNet, which are MoCo v2's: published configuration."""

    dense_weight: float = 0.5  # lambda
    temperature: float = 0.2  # both terms
    queue_length: int = 65536  # both queues
    momentum: float = 0.999
    projector_hidden_dim: int | None = None  # of both; None: the width of the features, 2048 for ResNet-50
    projector_dim: int = 128  # both
    bn_group_size: int = 32  # images per GPU in the paper: 256 over 8
    crop_scale: tuple[float, float] = (0.2, 1.0)
    blur: float = 0.5  # probability


RECIPES = {
    # published configuration (WXinlong/DenseCL, configs/selfsup/densecl/densecl_imagenet_200ep.py)
    "photo": DenseCLRecipe(
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.03,  # published command
        weight_decay=1e-4,
        decay_bias_and_norm=True,
    ),
    "small": DenseCLRecipe(  # 32 px: ours, with the numbers of MoCo's CIFAR-10 demo
        epochs=200,
        batch_size=512,
        optimiser="sgd",
        base_lr=0.03,  # 0.06 at a batch of 512
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        temperature=0.1,
        queue_length=4096,
        momentum=0.99,
        bn_group_size=64,
        blur=0.0,
    ),
}


def views(recipe: DenseCLRecipe, image: ImageSpec) -> MakeTwoViews:
    """MoCo v2's augmentation, twice."""
    return MakeTwoViews(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=(0.4, 0.4, 0.4, 0.1),
            jitter_probability=0.8,
            grey=0.2,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
        )
    )


class DenseEncoder(nn.Module):
    """images -> embedding (B, E), embeddings of the cells (B, N, E), the cells themselves (B, N, D)."""

    def __init__(self, backbone: Backbone, projector: MLP, dense_projector: MLP):
        super().__init__()
        self.backbone, self.projector, self.dense_projector = backbone, projector, dense_projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, feature_map = self.backbone.features_and_map(images)
        cells = feature_map.flatten(2).transpose(1, 2)  # (B, N, D); a Linear on cells is a 1x1 convolution on the map
        return self.projector(features), self.dense_projector(cells), cells


class DenseCL(Method):
    """See the module's docstring. B images, D features, E embedding, N cells, Q queue."""

    batch_coupled = True
    recipe: DenseCLRecipe
    projector: MLP

    def __init__(self, recipe: DenseCLRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        cell_width = _cell_width(backbone)
        check_groups("densecl", backbone, recipe.given)
        self.backbone = backbone
        hidden, width = recipe.projector_hidden_dim or backbone.num_features, recipe.projector_dim
        self.projector = MLP([backbone.num_features, hidden, width], norm=None)
        self.dense_projector = MLP([cell_width, hidden, width], norm=None)
        self.teacher = MomentumTeacher(self.encoder)
        self.queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self.dense_queue = FeatureQueue(recipe.queue_length, width, setup.seed + 1)
        self._new_keys: list[tuple[Tensor, Tensor]] = []  # of this step; they enter the queues after it
        warn_of_long_queue("densecl", recipe.queue_length, len(setup.images))

    @property
    def encoder(self) -> DenseEncoder:
        """The trained network that the teacher follows."""
        return DenseEncoder(self.backbone, self.projector, self.dense_projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        size = self.recipe.bn_group_size
        q, q_cells, cells = in_groups(self.encoder, batch.view1, size, interleaved=False)
        with torch.no_grad():
            k, k_cells, key_cells = in_groups(self.teacher, batch.view2, size, interleaved=True)
        match = nearest_cells(cells, key_cells)  # (B, N)
        matched = k_cells.gather(1, match[..., None].expand_as(k_cells))
        temperature, weight = self.recipe.temperature, self.recipe.dense_weight
        of_images = info_nce(q, k, temperature=temperature, negatives=self.queue.rows)
        of_cells = info_nce(
            q_cells.flatten(0, 1), matched.flatten(0, 1), temperature=temperature, negatives=self.dense_queue.rows
        )
        self._new_keys.append((F.normalize(k.float(), dim=1), F.normalize(k_cells.float().mean(dim=1), dim=1)))
        metrics = {"images": of_images.detach(), "cells": of_cells.detach()}
        return StepOutput((1 - weight) * of_images + weight * of_cells, metrics, q.detach(), k)

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self.encoder, self.recipe.momentum)
        keys, dense_keys = (gather_rows(torch.cat(parts)) for parts in zip(*self._new_keys))
        self.queue.push(keys)
        self.dense_queue.push(dense_keys)
        self._new_keys.clear()


@torch.no_grad()
def nearest_cells(cells: Tensor, key_cells: Tensor) -> Tensor:
    """For each cell of a query the number of the key's cell with the largest cosine. (B, N, D) twice -> (B, N)."""
    similarity = F.normalize(cells.float(), dim=2) @ F.normalize(key_cells.float(), dim=2).transpose(1, 2)
    return similarity.argmax(dim=2)


def _cell_width(backbone: Backbone) -> int:
    """Channels of the map; refuses networks without one, and maps of a single cell, where there is no place to tell."""
    shape = backbone.map_shape()
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise RecipeError(
            f"densecl: {backbone.spec.name} makes {shape} of an image of {backbone.spec.image_size} px; it needs a "
            "convnet with a map (D, H, W) of at least 2 x 2 cells. Use larger images, --stem small, or e.g. resnet20."
        )
    return shape[0]


METHOD = DenseCL
