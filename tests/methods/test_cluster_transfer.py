"""Cluster transfer: labels by stable index, weights of clusters, the checkpoint's labels, clusters of other images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.methods.base import load, resolve_recipe
from attar.methods.distill.cluster_transfer import cluster_weights
from attar.models.clusters import ClusterSettings, find_clusters

CPU = torch.device("cpu")


def test_the_recipe_has_the_papers_numbers():
    paper, clusterfit = (resolve_recipe("cluster_transfer", name) for name in ("paper", "clusterfit"))
    assert (paper.num_clusters, clusterfit.num_clusters) == (2000, 16000)
    assert (clusterfit.kmeans_iterations, clusterfit.epochs, clusterfit.weight_decay) == (50, 105, 1e-4)
    assert clusterfit.jitter == (0.4, 0.4, 0.4, 0.2)


def test_labels_are_keyed_by_stable_index(bench):
    bench = bench("cluster_transfer")
    labels = bench.method.pseudo_labels
    assert len(labels) == bench.images.num_ids == 36
    assert (labels[bench.images.index] >= 0).all() and (labels >= 0).sum() == 12
    assert labels.max() < bench.method.head.out_features <= 3


def test_an_image_is_asked_for_the_cluster_of_its_own_index(bench):
    bench = bench("cluster_transfer")
    batch = bench.batch(0)
    batch.images, batch.index = batch.images.flip(0), batch.index.flip(0)
    labels = torch.tensor([2, 2, 0, 1, 0, 1]) % bench.method.head.out_features
    bench.method.pseudo_labels[batch.index] = labels
    bench.method.eval()
    output = bench.method.step(batch, bench.progress(1))
    logits = bench.method.head(bench.method.backbone(batch.images))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, labels))


def test_balanced_every_cluster_weighs_the_same():
    sizes = torch.tensor([1, 0, 3, 8])
    weights = cluster_weights(sizes, balance=True)
    share = weights * sizes / sizes.sum()
    torch.testing.assert_close(share, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]))
    assert cluster_weights(sizes, balance=False).tolist() == [1, 1, 1, 1]


def test_balanced_the_loss_is_that_of_sampling_each_cluster_alike(bench):
    """Mean over all images = mean over clusters of the mean over their images."""
    bench = bench("cluster_transfer", balance=True)
    batch = bench.batch(0, num=12)
    bench.method.eval()
    output = bench.method.step(batch, bench.progress(0))
    labels = bench.method.pseudo_labels[batch.index]
    each = F.cross_entropy(bench.method.head(bench.method.backbone(batch.images)), labels, reduction="none")
    torch.testing.assert_close(output.loss, torch.stack([each[labels == k].mean() for k in labels.unique()]).mean())


def test_the_labels_come_back_with_the_checkpoint(bench):
    first, other = bench("cluster_transfer"), bench("cluster_transfer")
    first.method.pseudo_labels.clamp_(max=0)
    other.method.load_state_dict(first.method.state_dict())
    assert torch.equal(other.method.pseudo_labels, first.method.pseudo_labels)


def test_clusters_of_other_images_are_taken_as_they_are(bench):
    built = bench("cluster_transfer")
    settings = ClusterSettings(num_clusters=4, min_cluster_size=1)
    clusters = find_clusters(built.setup.teacher, built.images.subset(np.arange(8)), settings, folder=None, device=CPU)
    setup = dataclasses.replace(built.setup, clusters=clusters)
    method = load("cluster_transfer").METHOD(built.method.recipe, built.method.backbone, setup)
    named = clusters.assign(built.images, folder=None, device=CPU)
    assert method.head.out_features == clusters.num_clusters == 4
    assert method.pseudo_labels[torch.from_numpy(built.images.index)].tolist() == named.cluster.tolist()


def test_images_that_all_fall_into_one_cluster_are_refused(bench):
    built = bench("cluster_transfer")
    settings = ClusterSettings(num_clusters=4, min_cluster_size=1)
    clusters = find_clusters(built.setup.teacher, built.images, settings, folder=None, device=CPU)
    clusters.centroids[1:] = 100  # far from all images
    setup = dataclasses.replace(built.setup, clusters=clusters)
    with pytest.raises(RecipeError, match="all 12 images of .* fall into one cluster of 4"):
        load("cluster_transfer").METHOD(built.method.recipe, built.method.backbone, setup)


def test_refusals(bench):
    with pytest.raises(RecipeError, match=r"num_clusters=13 does not suit 12 images.*Try num_clusters=2"):
        bench("cluster_transfer", num_clusters=13)
    with pytest.raises(RecipeError, match="pca_dim=99 does not suit features of width 32"):
        bench("cluster_transfer", pca_dim=99)
    built = bench("cluster_transfer")
    with pytest.raises(RecipeError, match="needs a teacher"):
        load("cluster_transfer").METHOD(
            built.method.recipe, built.method.backbone, dataclasses.replace(built.setup, teacher=None)
        )
