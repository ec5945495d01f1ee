"""MoCo: a query must find its key, made by a slowly moving teacher, among a queue of earlier keys. The queue gives
many negatives to a small batch, and the slow teacher keeps keys of different age alike.

v1 He et al. 2020, arXiv:1911.05722. v2 Chen et al. 2020, arXiv:2003.04297: a hidden layer in the projector, blur and
weaker hue in the views, temperature 0.2, cosine schedule; the algorithm is the same.

    q = f(x1),  k = f_m(x2),  both normalised; f = backbone and projector, f_m their moving average
    loss = mean_i  -log( exp(q_i k_i / t) / (exp(q_i k_i / t) + sum_{n in queue} exp(q_i n / t)) )

State, all moved after the optimiser's step: f_m <- m f_m + (1 - m) f over parameters, m constant; then the keys of
this step, of all processes, enter the queue, so they are never negatives of their own step. The batch statistics
of f_m are those of its own forward passes.

Differs: nothing in the numbers. The published code moves f_m at the start of a step, before it makes the keys. That
is the same sequence of weights: f does not change in between, and before the first step f_m equals f.

Batch norm lets a query recognise its key by shared statistics (section 3.3), so the two must come from different
sets of images. The paper shuffles the keys over 8 GPUs. Here statistics are taken over groups of `bn_group_size`
images of the batch of all processes: a query's group is a run of consecutive images, its key's group every n-th image.
The order of the images is random already, so this is a shuffle. The groups, and so the loss, are the same on one GPU
or many, where a group may spread over several.

Cost: one forward and backward pass an image, and a forward pass of the teacher; a second copy of the network, and a
queue of Q x E numbers in fp32.

Choose it when the batch is small: its negatives come from the queue, not from the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import gather_rows, info_nce
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.models.backbones import Backbone
from attar.models.batch_norm import check_groups, in_groups
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import TwoViews
from attar.views.makers import MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class MoCoRecipe(Recipe):
    """MoCo's own settings. Defaults are those of both versions on ImageNet."""

    temperature: float  # v1 section 3.3: 0.07; v2: 0.2; CIFAR demo: 0.1
    queue_length: int = 65536  # v1 section 4.1; CIFAR demo: 4096
    momentum: float = 0.999  # v1 section 4.1, constant; CIFAR demo: 0.99
    projector_layers: int  # v1: 1 (a linear map); v2: 2
    projector_hidden_dim: int | None = None  # of v2; None: the width of the features, 2048 for ResNet-50
    projector_dim: int = 128  # v1 section 3.3
    bn_group_size: int = 32  # images per GPU in the paper: 256 over 8
    crop_scale: tuple[float, float] = (0.2, 1.0)  # published code
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # v1: hue 0.4 too
    jitter_probability: float = 0.8  # v1: 1
    grey_before_jitter: bool = False  # v1 True: the order of its published code
    blur: float  # probability; v1 0, v2 0.5

    used_with = {"projector_hidden_dim": above("projector_layers", 1)}


RECIPES = {
    "v2": MoCoRecipe(  # published command for v2 (facebookresearch/moco, README.md), ResNet-50: 67.7 linear
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.03,
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        temperature=0.2,
        projector_layers=2,
        blur=0.5,
    ),
    "v1": MoCoRecipe(  # published command for v1 (facebookresearch/moco, README.md), ResNet-50: 60.6 linear
        epochs=200,
        batch_size=256,
        optimiser="sgd",
        base_lr=0.03,
        schedule="step",
        lr_drops=(120 / 200, 160 / 200),
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        temperature=0.07,
        projector_layers=1,
        jitter=(0.4, 0.4, 0.4, 0.4),
        jitter_probability=1.0,
        grey_before_jitter=True,
        blur=0.0,
    ),
    "small": MoCoRecipe(  # the authors' CIFAR-10 demo (colab/moco_cifar10_demo.ipynb): ResNet-18, 200 epochs, kNN 82.6
        epochs=200,
        batch_size=512,
        optimiser="sgd",
        base_lr=0.03,  # 0.06 at a batch of 512
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        temperature=0.1,
        queue_length=4096,
        momentum=0.99,
        projector_layers=1,
        bn_group_size=64,  # 8 groups of 512
        crop_scale=(0.08, 1.0),
        blur=0.0,
    ),
}


def views(recipe: MoCoRecipe, image: ImageSpec) -> MakeTwoViews:
    """The same augmentation twice."""
    return MakeTwoViews(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=recipe.jitter,
            jitter_probability=recipe.jitter_probability,
            grey=0.2,
            grey_before_jitter=recipe.grey_before_jitter,
            blur=recipe.blur,
            blur_sigma=(0.1, 2.0),
        )
    )


class MoCo(Method):
    """See the module's docstring. B images, E embedding, Q queue."""

    batch_coupled = True
    recipe: MoCoRecipe
    projector: MLP

    def __init__(self, recipe: MoCoRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        check_groups("moco", backbone, recipe.given)
        self.backbone = backbone
        hidden = [recipe.projector_hidden_dim or backbone.num_features] * (recipe.projector_layers - 1)
        self.projector = MLP([backbone.num_features, *hidden, recipe.projector_dim], norm=None)
        self.teacher = MomentumTeacher(self.encoder)
        self.queue = FeatureQueue(recipe.queue_length, recipe.projector_dim, setup.seed)
        self._new_keys: list[Tensor] = []  # of this step; they enter the queue after it
        warn_of_long_queue("moco", recipe.queue_length, len(setup.images))

    @property
    def encoder(self) -> nn.Sequential:
        """f: the trained network that the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: TwoViews, progress: Progress) -> StepOutput:
        size = self.recipe.bn_group_size
        q = in_groups(self.encoder, batch.view1, size, interleaved=False)
        with torch.no_grad():
            k = in_groups(self.teacher, batch.view2, size, interleaved=True)
        loss = info_nce(q, k, temperature=self.recipe.temperature, negatives=self.queue.rows)
        self._new_keys.append(F.normalize(k.float(), dim=1))
        return StepOutput(loss, {"info_nce": loss.detach()}, q.detach(), k)

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self.encoder, self.recipe.momentum)
        self.queue.push(gather_rows(torch.cat(self._new_keys)))
        self._new_keys.clear()


METHOD = MoCo
