"""DeepCluster v2: each epoch the embeddings of the one before are clustered by k-means, and every crop must then name
the cluster of its image. The classifier is made of the centroids themselves, so none is learnt anew after clustering.

Caron et al. 2018, arXiv:1807.05520 (v1). Version 2, as here: Caron et al. 2020, arXiv:2006.09882 (SwAV), section 4.1
and appendix.

    z = projector(backbone(x)) of unit length;  M_j[i] the last z of global crop j (1, 2) of image i
    before each epoch, for each head h: spherical k-means of M_j, j taking turns over the heads, gives unit
        centroids C_h (K, E) and the cluster y_h[i] of every image
    loss = mean over heads and crops, mean_b  -log softmax(C_h z / t)_{y_h[i]}

State: M, C_h and y_h, all part of the checkpoint. Before the first epoch M is filled by a pass over the images with
the network as it is; after each step the z of the step's global crops, of all processes, replace their rows of M.
C_h and y_h move before the first step of an epoch and get no gradient. Images are known by their stable index.

Spherical k-means: centroids start at random rows; `kmeans_iterations` times every row joins the centroid of largest
cosine, and a centroid becomes the mean of its rows at unit length, or stays where it is if it has none; rows then join
once more. Every process computes it; the first one's result counts for all.

Differs: nothing known in the algorithm. Warm-up rises from 0, where the published code starts at 0.3 of 4.8; local
views have sides in multiples of 16 pixels; batch norm statistics are shared by all processes, in the published code
by groups of eight.

Cost: a step is SwAV's without Sinkhorn. An epoch adds one k-means per head (10 N K E multiplications each), the start
a forward pass over all images. M takes 2 N E numbers (1.3 GB for ImageNet) in memory and in every checkpoint.
Choose it when the images are few enough to keep a row for each and are seen many times; a run of few epochs clusters
seldom. SwAV needs no memory and no epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows, own_share, prototype_cross_entropy
from attar.losses.inputs import full_precision
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.methods.multi_crop import check_local_views, features_of_crops, local_view_size, require_local_size
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop
from attar.views.draws import Draws
from attar.views.makers import MakeMultiCrop


@dataclass(frozen=True, kw_only=True)
class DeepClusterRecipe(Recipe):
    """DeepCluster v2's own settings. Defaults are those of ResNet-50 on ImageNet."""

    temperature: float = 0.1  # published code
    num_clusters: int = 3000  # K of each head; published command
    num_heads: int = 3  # clusterings; published command
    kmeans_iterations: int = 10  # published code
    projector_hidden_dim: int = 2048  # as SwAV
    projector_dim: int = 128  # as SwAV
    num_local_views: int = 6  # 2 x 224 + 6 x 96, as SwAV
    global_scale: tuple[float, float] = (0.14, 1.0)  # area share, as SwAV
    local_scale: tuple[float, float] = (0.05, 0.14)  # area share, as SwAV
    local_size: float = 96 / 224  # side of a local view, as a share of the image's
    colour_strength: float = 1.0  # s: jitter 0.8 s, 0.8 s, 0.8 s, 0.2 s, as SimCLR
    blur: float = 0.5  # probability

    used_with = {
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


RECIPES = {
    # published command (facebookresearch/swav, scripts/deepclusterv2_800ep_pretrain.sh), 75.2 linear
    "photo": DeepClusterRecipe(
        epochs=800,
        batch_size=4096,
        optimiser="lars",
        base_lr=0.3,  # 4.8 at 4096
        final_lr=0.0048,
        warmup_fraction=10 / 800,
        weight_decay=1e-6,
        decay_bias_and_norm=True,
    ),
    "small": DeepClusterRecipe(  # 32 px: our choice, after our small SwAV; one cluster for some tens of images
        epochs=200,
        batch_size=128,
        optimiser="adamw",
        base_lr=2e-3,  # 1e-3 at a batch of 128
        weight_decay=1e-6,
        decay_bias_and_norm=True,
        num_clusters=100,
        projector_hidden_dim=512,
        num_local_views=0,
        colour_strength=0.5,
        blur=0.0,  # left out at 32 px, as usual: a kernel of 3 (.28 .44 .28 at sigma 1.05) costs fine detail
    ),
}


def views(recipe: DeepClusterRecipe, image: ImageSpec, patch_size: int = 1) -> MakeMultiCrop:
    """SwAV's: crops of two sizes and ranges, and SimCLR's colours on all of them."""

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
    check_local_views("deep_cluster", recipe, image.size, local_size)
    return MakeMultiCrop(
        global_views=[augmentation(recipe.global_scale, image.size)] * 2,
        local_views=[augmentation(recipe.local_scale, local_size)] * recipe.num_local_views,
    )


class DeepCluster(Method):
    """See the module's docstring. B images, V views, D features, E embedding, K clusters, H heads, N images."""

    recipe: DeepClusterRecipe
    projector: MLP
    memory: Tensor
    prototypes: Tensor
    clusters: Tensor
    clustered_epoch: Tensor
    ids: Tensor

    def __init__(self, recipe: DeepClusterRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        _check_number(recipe, len(setup.images))
        require_local_size(backbone, setup.image, recipe.num_local_views, recipe.local_size)
        self.backbone = backbone
        width, num_ids = recipe.projector_dim, setup.images.num_ids
        self.projector = MLP([backbone.num_features, recipe.projector_hidden_dim, width], norm="batch")
        self.register_buffer("memory", torch.zeros(2, num_ids, width))
        self.register_buffer("prototypes", torch.zeros(recipe.num_heads, recipe.num_clusters, width))
        self.register_buffer("clusters", torch.full((recipe.num_heads, num_ids), -100))  # -100: no such image
        self.register_buffer("clustered_epoch", torch.tensor(-1))
        self.register_buffer("ids", torch.from_numpy(setup.images.index.copy()), persistent=False)
        self.seed = setup.seed
        self._epoch = -1  # the same as clustered_epoch, known without asking the device
        self._new_rows: list[tuple[Tensor, Tensor]] = []  # ids (B,) and z (B, 2, E) of this step
        # A closure, not the setup itself: a copy of this method must not copy the images.
        self._first_pass: Callable[[torch.device], Iterator[MultiCrop]] = lambda device: _first_pass(
            recipe, setup, device
        )

    @property
    def encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: MultiCrop, progress: Progress) -> StepOutput:
        if progress.epoch != self._epoch:
            self._begin_epoch(progress.epoch)
        crops = [*batch.global_views, *batch.local_views]
        z = self.projector(features_of_crops(self.backbone, crops))  # (VB, E)
        labels = self.clusters[:, batch.index].repeat(1, len(crops))  # (H, VB)
        loss = prototype_cross_entropy(z, self.prototypes, labels, temperature=self.recipe.temperature)
        z1, z2 = F.normalize(z.detach().float(), dim=1).chunk(len(crops))[:2]
        self._new_rows.append((batch.index, torch.stack([z1, z2], dim=1)))
        own = (z1 @ self.prototypes[0].T).argmax(dim=1) == self.clusters[0, batch.index]
        metrics = {"cross_entropy": loss.detach(), "cluster_accuracy": own.float().mean()}
        return StepOutput(loss, metrics, z1, z2)

    def after_step(self, progress: Progress) -> None:
        for index, rows in self._new_rows:
            self._remember(index, rows)
        self._new_rows.clear()

    def _remember(self, index: Tensor, rows: Tensor) -> None:
        """The last embeddings of these images, of all processes. index (B,), rows (B, 2, E)."""
        self.memory[:, gather_rows(index)] = gather_rows(rows).transpose(0, 1)

    def _begin_epoch(self, epoch: int) -> None:
        """Cluster what the last epoch has left in memory, unless a checkpoint has brought this epoch's clusters."""
        if int(self.clustered_epoch) != epoch:
            if int(self.clustered_epoch) < 0:
                self._fill_memory()
            self._cluster(epoch)
        self._epoch = epoch

    @torch.no_grad()
    def _fill_memory(self) -> None:
        """With a copy of the network, so that the pass moves no batch statistics."""
        encoder = copy.deepcopy(self.encoder)
        for batch in self._first_pass(self.memory.device):
            rows = [F.normalize(encoder(view).float(), dim=1) for view in batch.global_views]
            self._remember(batch.index, torch.stack(rows, dim=1))

    @torch.no_grad()
    def _cluster(self, epoch: int) -> None:
        for head in range(self.recipe.num_heads):
            rows = self.memory[head % 2, self.ids]  # (N, E)
            order = np.random.default_rng([self.seed, epoch, head]).permutation(len(rows))
            start = rows[torch.from_numpy(order[: self.recipe.num_clusters]).to(rows.device)]
            centroids, nearest = spherical_kmeans(rows, start, iterations=self.recipe.kmeans_iterations)
            self.prototypes[head] = gather_rows(centroids[None])[0]  # the first process' clusters are everybody's
            self.clusters[head, self.ids] = gather_rows(nearest[None])[0]
        self.clustered_epoch.fill_(epoch)


def _check_number(recipe: DeepClusterRecipe, num_images: int) -> None:
    if not 2 <= recipe.num_clusters <= num_images:
        raise RecipeError(
            f"deep_cluster: num_clusters={recipe.num_clusters} does not suit {num_images} images; it must be at least "
            f"2 and at most one for each image. Try -s num_clusters={max(num_images // 50, 2)}."
        )


def _first_pass(recipe: DeepClusterRecipe, setup: Setup, device: torch.device) -> Iterator[MultiCrop]:
    """The global crops of all images in order, each process its share of every batch. The last batch overlaps the one
    before, so that all are of one size."""
    make_views = views(replace(recipe, num_local_views=0), setup.image)
    num_images, size = len(setup.images), min(recipe.batch_size, len(setup.images))
    for start in range(0, num_images, size):
        first = min(start, num_images - size)
        positions = own_share(torch.arange(first, first + size)).numpy()
        canvases = setup.images.batch(positions).to(device)
        yield make_views(canvases, Draws(setup.seed, canvases.index, epoch=-1))  # -1: before the first epoch


@full_precision
def spherical_kmeans(rows: Tensor, centroids: Tensor, *, iterations: int) -> tuple[Tensor, Tensor]:
    """k-means by cosine.

    Args:
        rows: (N, E) of unit length. centroids: (K, E), where to start.

    Returns:
        Centroids (K, E) of unit length, and the number of the nearest one for each row (N,).
    """
    for _ in range(iterations):
        nearest = _nearest(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        means = F.normalize(sums, dim=1)
        filled = torch.zeros(len(centroids), dtype=torch.bool, device=rows.device).index_fill_(0, nearest, True)
        centroids = torch.where(filled[:, None], means, centroids)
    return centroids, _nearest(rows, centroids)


_MOST_SCORES = 2**24  # held at a time: 64 MiB in float32


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Number of the centroid of largest cosine for each row."""
    block = max(_MOST_SCORES // len(centroids), 1)
    return torch.cat([(part @ centroids.T).argmax(dim=1) for part in rows.split(block)])


METHOD = DeepCluster
