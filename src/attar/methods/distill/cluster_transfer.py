"""Cluster transfer: cluster a network's features, then train another one from scratch to name the cluster of an image.

Noroozi et al. 2018, arXiv:1805.00385. Recipe "clusterfit": Yan et al. 2020, arXiv:1912.03330.

    1. f_i = a layer of the teacher for the central view of x_i, of every image
    2. k-means:  y_i = argmin_k |f_i - c_k|, the pseudo-label of image i
    3. loss = mean_i w_i CE( head(backbone(view of x_i)), y_i )

w_i = 1, or with `balance` N / (K n_k) for an image of a cluster of n_k: every cluster weighs the same, which is in
expectation DeepCluster's (arXiv:1807.05520) uniform sampling over clusters, without showing images twice.
The student shares nothing with the teacher but the labels, so any teacher will do: another architecture, another
pretext task, or HOG, which has no weights at all. Where the teacher is a folder made by `attar cluster`, its centroids
are taken as they are: clusters of one data set then label another.

State: the pseudo-labels, keyed by stable image index, and the clusters' weights. They are made with the method, saved
with the checkpoint, and never change.

Differs: neither paper says what becomes of tiny clusters. Here a cluster with fewer than `min_cluster_size` images is
dissolved into the nearest others, so each class can be learnt. Noroozi's student is AlexNet; the optimiser's values
are ClusterFit's (ResNet-50) in both recipes. That features are normalised before k-means is our choice, because
teachers differ in scale. Weights instead of sampling keep one loop for all methods.

Cost: one pass of the teacher over the images and a k-means (docs/clusters.md counts them for 1.3 million images);
then a step is one forward and backward pass of one view of the student.
Choose it when the teacher is a pretext network or another architecture whose features are good and whose answers
cannot be imitated directly, or when the small network must run on what only clusters can carry over: another data set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.models.clusters import ClusterSettings, Named, find_clusters
from attar.models.teachers import FrozenTeacher
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class ClusterTransferRecipe(Recipe):
    """Cluster transfer's own settings."""

    num_clusters: int  # Noroozi 2000 for 1.3 M images; ClusterFit 16000
    layer: str = "features"  # or a map of the teacher by name, such as stage3
    grid: int = 1  # that map is averaged over grid x grid cells
    kmeans_iterations: int = 50  # ClusterFit
    images_per_cluster: int = 256  # k-means sees at most so many in all, times the clusters; faiss' own number
    min_cluster_size: int = 5  # smaller clusters are dissolved; ours
    pca_dim: int | None = None  # reduce the features first; None: as they are
    normalise: bool = True  # unit length before k-means
    balance: bool = False  # every cluster weighs the same in the loss; DeepCluster samples so
    crop_scale: tuple[float, float] = (0.08, 1.0)  # ClusterFit
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.2)  # ClusterFit, always applied


CLUSTERFIT = ClusterTransferRecipe(  # facebookresearch/vissl, configs/config/pretrain/clusterfit/
    epochs=105,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.1,
    schedule="step",
    lr_drops=(30 / 105, 60 / 105, 90 / 105, 100 / 105),
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    num_clusters=16000,
)
RECIPES = {
    "paper": replace(CLUSTERFIT, num_clusters=2000, jitter=None),  # clusters: Noroozi et al. 2018; else ClusterFit's
    "clusterfit": CLUSTERFIT,
    "small": replace(  # 32 px: ours; ten clusters for each of ten classes
        CLUSTERFIT,
        num_clusters=100,
        schedule="cosine",
        lr_drops=(),
        weight_decay=5e-4,
        crop_scale=(0.2, 1.0),
        jitter=None,
    ),
}


def views(recipe: ClusterTransferRecipe, image: ImageSpec) -> MakeOneView:
    """Crop, flip and, in ClusterFit, colour."""
    return MakeOneView(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=recipe.jitter,
            jitter_probability=1.0,
            grey=0.0,
            blur=0.0,
        )
    )


class ClusterTransfer(Method):
    """See the module's docstring. B images, D features, K clusters."""

    needs_teacher = True
    needs_clusters = True
    recipe: ClusterTransferRecipe
    pseudo_labels: Tensor
    weights: Tensor

    def __init__(self, recipe: ClusterTransferRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        named = _named(recipe, backbone, setup)
        if (named.sizes > 0).sum() < 2:
            raise RecipeError(
                f"cluster_transfer: all {len(named.cluster)} images of {setup.images.name} fall into one cluster of "
                f"{named.num_clusters}, so there is nothing to tell apart; take other images, another layer, or "
                "clusters made of these images."
            )
        self.head = nn.Linear(backbone.num_features, named.num_clusters)
        labels = torch.full((setup.images.num_ids,), -1)  # -1: no such image
        labels[torch.from_numpy(setup.images.index)] = torch.from_numpy(named.cluster)
        self.register_buffer("pseudo_labels", labels)
        self.register_buffer("weights", cluster_weights(torch.from_numpy(named.sizes), balance=recipe.balance))

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        features = self.backbone(batch.images)  # (B, D)
        logits = self.head(features).float()
        labels = self.pseudo_labels[batch.index]
        loss = (self.weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "cluster_accuracy": accuracy}, features.detach())


def cluster_weights(sizes: Tensor, *, balance: bool) -> Tensor:
    """What an image of each cluster weighs, (K,): 1, or the inverse of the cluster's size with mean 1 over images.

    Clusters without images (of another data set) do not count.
    """
    if not balance:
        return torch.ones(len(sizes))
    return sizes.sum() / ((sizes > 0).sum() * sizes.clamp(min=1)).float()


def _named(recipe: ClusterTransferRecipe, backbone: Backbone, setup: Setup) -> Named:
    """The clusters of the training images: by the teacher's own, or by clusters made of them now."""
    clusters = setup.clusters
    if clusters is None:
        teacher = setup.require_teacher("cluster_transfer", backbone)
        assert isinstance(teacher, FrozenTeacher)
        settings = ClusterSettings.of(recipe, seed=setup.seed)
        clusters = find_clusters(teacher, setup.images, settings, folder=setup.cache, device=setup.device)
    return clusters.assign(setup.images, folder=setup.cache, device=setup.device)


METHOD = ClusterTransfer
