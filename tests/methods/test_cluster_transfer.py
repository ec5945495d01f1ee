"""Cluster transfer: labels by stable index, clusters that were there, tiny clusters, resume without clustering."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from attar.errors import RecipeError
from attar.methods.distill import cluster_transfer
from attar.methods.distill.cluster_transfer import cluster

SETTINGS = dict(iterations=20, min_size=1, pca_dim=None, normalise=False, seed=0)


def blobs(sizes: list[int], dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(0)
    return (10 * np.eye(len(sizes), dim)[truth] + random.normal(0, 0.1, (len(truth), dim))).astype(np.float32), truth


@pytest.mark.parametrize("change", [{}, {"pca_dim": 3}, {"normalise": True}])
def test_separated_blobs_are_found(change):
    features, truth = blobs([30, 20, 25])
    found = cluster(features, 3, **{**SETTINGS, **change})
    assert found.dtype == np.int64
    assert len({(a, b) for a, b in zip(truth, found)}) == 3


def test_the_seed_decides():
    features = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    assert (cluster(features, 7, **SETTINGS) == cluster(features, 7, **SETTINGS)).all()
    assert (cluster(features, 7, **SETTINGS) != cluster(features, 7, **{**SETTINGS, "seed": 1})).any()


def test_tiny_clusters_are_dissolved_and_reported(caplog):
    features, _ = blobs([40, 50, 2])
    with caplog.at_level(logging.INFO, logger="attar"):
        found = cluster(features, 3, **{**SETTINGS, "min_size": 5})
    assert sorted(np.bincount(found)[np.bincount(found) > 0])[0] >= 40
    assert "2 clusters of 3 asked for (1 had fewer than 5 images); sizes: smallest 4" in caplog.text


def test_more_clusters_than_different_images_leaves_none_in_the_air():
    """Empty clusters happen here for sure; every row still gets a cluster that has rows."""
    features = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    found = cluster(features, 5, **SETTINGS)
    assert len(found) == 15 and len(set(found)) <= 5


def test_labels_are_keyed_by_stable_index(bench):
    bench = bench("cluster_transfer")
    bench.backward(0)
    labels = bench.method.pseudo_labels
    assert len(labels) == bench.images.num_ids == 36
    assert (labels[bench.images.index] >= 0).all() and (labels >= 0).sum() == 12
    assert labels.max() < 3


def test_an_image_is_asked_for_the_cluster_of_its_own_index(bench):
    bench = bench("cluster_transfer")
    bench.backward(0)
    batch = bench.batch(0)
    batch.images, batch.index = batch.images.flip(0), batch.index.flip(0)
    bench.method.pseudo_labels[batch.index] = torch.tensor([2, 2, 0, 1, 0, 1])
    bench.method.eval()
    output = bench.method.step(batch, bench.progress(1))
    logits = bench.method.head(bench.method.backbone(batch.images))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 2, 0, 1, 0, 1]))
    torch.testing.assert_close(output.loss, expected)


def test_a_resumed_run_does_not_cluster_again(bench, monkeypatch):
    first = bench("cluster_transfer")
    first.train(range(1))
    resumed = bench("cluster_transfer")
    resumed.method.load_state_dict(first.method.state_dict())
    monkeypatch.setattr(cluster_transfer, "_pseudo_labels", lambda *a: pytest.fail("clustered again"))
    resumed.train(range(1, 2))
    assert torch.equal(resumed.method.pseudo_labels, first.method.pseudo_labels)


def test_too_many_clusters_are_refused_with_a_number_that_fits(bench):
    with pytest.raises(RecipeError, match=r"num_clusters=13 does not suit 12 images.*Try -s num_clusters=2"):
        bench("cluster_transfer", num_clusters=13)
    with pytest.raises(RecipeError, match="pca_dim=9 does not suit features of width 6"):
        cluster(blobs([5, 5])[0], 2, **{**SETTINGS, "pca_dim": 9})
