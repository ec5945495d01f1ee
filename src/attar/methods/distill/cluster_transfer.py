"""Cluster transfer: cluster a teacher's features, then train a student from scratch to name the cluster of an image.

Noroozi et al. 2018, arXiv:1805.00385. Recipe "clusterfit": Yan et al. 2020, arXiv:1912.03330.

    1. f_i = teacher(x_i) of the central view of every image, normalised to unit length
    2. k-means:  y_i = argmin_k |f_i - c_k|^2, the pseudo-label of image i
    3. loss = mean_i CE( head(backbone(view of x_i)), y_i )

The student shares nothing with the teacher but the labels, so any teacher will do: another architecture, another
pretext task, or HOG, which has no weights at all.

State: the pseudo-labels, keyed by stable image index, made before the first step and saved with the checkpoint; they
do not change afterwards, and a resumed run does not cluster again.

Differs: neither paper says what becomes of tiny clusters. Here a cluster with fewer than `min_cluster_size` images is
dissolved into the nearest others, so each class can be learnt. Noroozi's student is AlexNet; the optimiser's values
are ClusterFit's (ResNet-50) in both recipes. That features are normalised before k-means is our choice, because
teachers differ in scale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone
from attar.views.augmentation import Augmentation, CentreView
from attar.views.batches import OneView
from attar.views.makers import MakeOneView

logger = logging.getLogger("attar")


@dataclass(frozen=True, kw_only=True)
class ClusterTransferRecipe(Recipe):
    """Cluster transfer's own settings."""

    num_clusters: int  # Noroozi 2000 for 1.3 M images; ClusterFit 16000
    kmeans_iterations: int = 50  # ClusterFit
    min_cluster_size: int = 5  # smaller clusters are dissolved; ours
    pca_dim: int | None = None  # reduce the features first; None: as they are
    normalise: bool = True  # unit length before k-means
    crop_scale: tuple[float, float] = (0.08, 1.0)  # ClusterFit
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.2)  # ClusterFit, always applied


CLUSTERFIT = ClusterTransferRecipe(
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
    "paper": replace(CLUSTERFIT, num_clusters=2000, jitter=None),
    "clusterfit": CLUSTERFIT,
    "small": replace(  # 32 px: ten clusters for each of ten classes
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
    recipe: ClusterTransferRecipe
    pseudo_labels: Tensor

    def __init__(self, recipe: ClusterTransferRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        if setup.teacher is None:
            raise RecipeError("cluster_transfer: it distils and needs a teacher; give one in setup.teacher.")
        _check_number(recipe, len(setup.images))
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, recipe.num_clusters)
        self.register_buffer("pseudo_labels", torch.full((setup.images.num_ids,), -1))
        # A closure, not the setup itself: a copy of this method must not copy the images, nor cluster again.
        self._assign: Callable[[torch.device], Tensor] = cache(lambda device: _pseudo_labels(recipe, setup, device))
        self._is_assigned = False

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        if not self._is_assigned:
            self._assign_once()
        features = self.backbone(batch.images)  # (B, D)
        logits = self.head(features).float()
        labels = self.pseudo_labels[batch.index]
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "cluster_accuracy": accuracy}, features.detach())

    def _assign_once(self) -> None:
        """Cluster, unless a checkpoint has brought the labels."""
        if (self.pseudo_labels < 0).all():
            labels = self._assign(self.pseudo_labels.device)
            self.pseudo_labels.copy_(gather_rows(labels[None])[0])  # the first process' clusters are everybody's
        self._is_assigned = True


def _check_number(recipe: ClusterTransferRecipe, num_images: int) -> None:
    if not 2 <= recipe.num_clusters <= num_images // max(recipe.min_cluster_size, 1):
        raise RecipeError(
            f"cluster_transfer: num_clusters={recipe.num_clusters} does not suit {num_images} images; it must be at "
            f"least 2, and leave {recipe.min_cluster_size} images a cluster (min_cluster_size). "
            f"Try -s num_clusters={max(num_images // 50, 2)}."
        )


def _pseudo_labels(recipe: ClusterTransferRecipe, setup: Setup, device: torch.device) -> Tensor:
    """The cluster of every image at its stable index, -1 where there is no image."""
    table = teacher_table(setup, device)
    clusters = cluster(
        table,
        recipe.num_clusters,
        iterations=recipe.kmeans_iterations,
        min_size=recipe.min_cluster_size,
        pca_dim=recipe.pca_dim,
        normalise=recipe.normalise,
        seed=setup.seed,
    )
    labels = torch.full((setup.images.num_ids,), -1)
    labels[torch.from_numpy(setup.images.index)] = torch.from_numpy(clusters)
    return labels.to(device)


@torch.no_grad()
def teacher_table(setup: Setup, device: torch.device) -> np.ndarray:
    """The teacher's output for the central view of every image, (N, E), row i of position i."""
    assert setup.teacher is not None
    view = CentreView(setup.image)
    rows = []
    for positions in np.array_split(np.arange(len(setup.images)), max(len(setup.images) // 256, 1)):
        batch = setup.images.batch(positions).to(device)
        with torch.autocast(device.type, enabled=False):
            rows.append(setup.teacher(view(batch), batch.index, setup.image).cpu().numpy())
    return np.concatenate(rows)


def cluster(
    features: np.ndarray,
    num_clusters: int,
    *,
    iterations: int,
    min_size: int,
    pca_dim: int | None,
    normalise: bool,
    seed: int,
) -> np.ndarray:
    """Number of the cluster of each row, int64 (N,) in 0 .. num_clusters - 1; the sizes are logged.

    Empty clusters are split off full ones while k-means runs; clusters smaller than min_size are dissolved after it.
    """
    import faiss

    if pca_dim is not None:
        features = _principal_components(features, pca_dim)
    features = np.ascontiguousarray(features, dtype=np.float32)
    if normalise:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    kmeans = faiss.Kmeans(features.shape[1], num_clusters, niter=iterations, seed=seed, min_points_per_centroid=1)
    kmeans.train(features)
    nearest = kmeans.index.search(features, 1)[1][:, 0]
    sizes = np.bincount(nearest, minlength=num_clusters)
    kept = np.flatnonzero(sizes >= min(min_size, sizes.max()))
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(np.asarray(kmeans.centroids)[kept])
    assigned = kept[index.search(features, 1)[1][:, 0]]
    final = np.sort(np.bincount(assigned, minlength=num_clusters)[kept])
    logger.info(
        "cluster_transfer: %d clusters of %d asked for (%d had fewer than %d images); sizes: smallest %d, "
        "median %d, largest %d.",
        len(kept), num_clusters, num_clusters - len(kept), min_size, final[0], np.median(final), final[-1],
    )  # fmt: skip
    return assigned.astype(np.int64)


def _principal_components(features: np.ndarray, dim: int) -> np.ndarray:
    """Projection on the directions of largest variance, not whitened."""
    if not 1 <= dim <= features.shape[1]:
        raise RecipeError(
            f"cluster_transfer: pca_dim={dim} does not suit features of width {features.shape[1]}; "
            f"it must be between 1 and {features.shape[1]}."
        )
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)  # variances rise
    return centred @ directions[:, ::-1][:, :dim]


METHOD = ClusterTransfer
