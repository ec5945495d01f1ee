"""Clusters: known blobs are found, tiny and empty ones are handled and counted, new images find their centroid."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD, Images, ImageSpec
from attar.data.load import load_images
from attar.errors import AttarError, BackboneError, CheckpointError, RecipeError
from attar.models import clusters as module
from attar.models.backbones import build_backbone
from attar.models.clusters import ClusterSettings, Named, cluster, features_of, find_clusters, load_clusters, nearest
from attar.models.teachers import FrozenTeacher

CPU = torch.device("cpu")
PLAIN = ClusterSettings(num_clusters=3, kmeans_iterations=20, min_cluster_size=1, normalise=False)


def blobs(sizes: list[int], dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(seed)
    return (10 * np.eye(len(sizes), dim)[truth] + random.normal(0, 0.1, (len(truth), dim))).astype(np.float32), truth


def clustered(features: np.ndarray, settings: ClusterSettings):
    ids = np.arange(len(features))
    projection, centroids, numbers = cluster(features, ids, settings)
    return nearest(features, ids, projection, centroids)[0], projection, centroids, numbers


@pytest.mark.parametrize("change", [{}, {"pca_dim": 3}, {"normalise": True}, {"images_per_cluster": 12}])
def test_separated_blobs_are_found_and_new_points_join_them(change):
    features, truth = blobs([30, 20, 25])
    found, projection, centroids, numbers = clustered(features, replace(PLAIN, **change))
    pairs = {(a, b) for a, b in zip(truth.tolist(), found.tolist())}
    assert len(pairs) == 3
    assert numbers["num_sampled"] == (36 if "images_per_cluster" in change else 75)
    others, their_truth = blobs([4, 9, 2], seed=5)
    named, distance = nearest(others, np.arange(15), projection, centroids)
    assert {(a, b) for a, b in zip(their_truth.tolist(), named.tolist())} == pairs
    assert (distance < (0.1 if change.get("normalise") else 1)).all()


def test_rows_of_ids_without_an_image_are_never_read():
    features, truth = blobs([30, 20, 25])
    table = np.full((150, 6), np.nan, np.float32)
    table[1::2] = features
    ids = np.arange(75) * 2 + 1
    projection, centroids, _ = cluster(table, ids, PLAIN)
    found = nearest(table, ids, projection, centroids)[0]
    assert len({(a, b) for a, b in zip(truth.tolist(), found.tolist())}) == 3


def test_blocks_change_nothing(monkeypatch):
    features = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    settings = replace(PLAIN, num_clusters=7, pca_dim=3)
    whole, projection, _, _ = clustered(features, settings)
    monkeypatch.setattr(module, "BLOCK_VALUES", 20)
    parts, again, _, _ = clustered(features, settings)
    assert (whole == parts).all()
    np.testing.assert_allclose(np.abs(projection.directions), np.abs(again.directions), atol=1e-5)


def test_principal_components_are_those_of_an_svd():
    features = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32) * [5, 1, 3, 0.5, 2] + 7
    projection = module.Projection.of(features.astype(np.float32), replace(PLAIN, pca_dim=2))
    expected = np.linalg.svd(features - features.mean(0))[2][:2]
    np.testing.assert_allclose(np.abs(projection.directions.T), np.abs(expected), atol=1e-4)


def test_the_seed_decides():
    features = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    settings = replace(PLAIN, num_clusters=7)
    first, same, other = (clustered(features, replace(settings, seed=seed))[0] for seed in (0, 0, 1))
    assert (first == same).all() and (first != other).any()


def test_tiny_clusters_are_dissolved_and_counted():
    features, _ = blobs([40, 50, 2])
    found, _, centroids, numbers = clustered(features, replace(PLAIN, min_cluster_size=5))
    assert len(centroids) == 2 and sorted(np.bincount(found))[0] >= 40
    assert (numbers["dissolved"], numbers["images_of_dissolved"], numbers["empty"]) == (1, 2, 0)


def test_more_clusters_than_different_images():
    """Empty clusters happen here for sure; every row still gets a cluster that has rows."""
    features = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    found, _, centroids, numbers = clustered(features, replace(PLAIN, num_clusters=5))
    assert set(found) == set(range(len(centroids))) and len(centroids) <= 5
    assert numbers["empty"] == 5 - len(centroids) - numbers["dissolved"]


def test_numbers_of_sizes():
    named = Named(np.array([0, 0, 0, 0, 2, 2, 2, 2]), np.ones(8, np.float32), 3)
    numbers = named.numbers()
    assert (numbers["without_images"], numbers["smallest"], numbers["largest"]) == (1, 0, 4)
    assert numbers["effective"] == 2.0


def test_refusals():
    features, _ = blobs([5, 5])
    for wrong, text in (
        ({"num_clusters": 11}, "num_clusters=11 does not suit 10 images"),
        ({"num_clusters": 2, "pca_dim": 9}, "pca_dim=9 does not suit features of width 6"),
        ({"num_clusters": 2, "grid": 2}, "grid=2 would be ignored"),
    ):
        with pytest.raises(RecipeError, match=text):
            cluster(features, np.arange(10), replace(PLAIN, **wrong))
    with pytest.raises(AttarError, match="not all finite"):
        cluster(features * np.float32(np.inf), np.arange(10), replace(PLAIN, num_clusters=2))


def pictures(num: int = 24, seed: int = 0) -> Images:
    """Black and white images, told apart by any network."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 40, (num, 16, 16, 3), dtype=np.uint8)
    pixels[num // 2 :] += 200
    return load_images(pixels, image_size=16)


def teacher(name: str = "resnet8x0.5", digest: str = "t0") -> FrozenTeacher:
    torch.manual_seed(0)
    image = ImageSpec(size=16, channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return FrozenTeacher(build_backbone(name, image_size=16), image, digest=digest, name="runs/pretext")


SETTINGS = ClusterSettings(num_clusters=2, min_cluster_size=1)


@pytest.mark.parametrize(
    ("name", "layer", "grid", "width"),
    [
        ("resnet8x0.5", "features", 1, 32),
        ("resnet8x0.5", "stage2", 2, 64),
        ("hog", "cells", 2, 36),
        ("pixels", "features", 1, 768),
    ],
)
def test_any_layer_of_any_network(tmp_path, name, layer, grid, width):
    settings = replace(SETTINGS, layer=layer, grid=grid)
    with features_of(teacher(name), settings, pictures(), folder=tmp_path, device=CPU, shown=False) as table:
        assert table.shape == (24, width) and isinstance(table, np.memmap)
        assert np.isfinite(table).all()
    with pytest.raises(BackboneError, match="unknown layer 'stage9'"):
        find_clusters(teacher(name), pictures(), replace(SETTINGS, layer="stage9"), folder=None, device=CPU)
    if layer != "features":
        with pytest.raises(RecipeError, match=f"grid=30 is finer than {layer}, a map of .* places; give . or less"):
            find_clusters(teacher(name), pictures(), replace(settings, grid=30), folder=None, device=CPU)


def test_features_and_clusters_are_found_again_by_digest(tmp_path, monkeypatch, caplog):
    images = pictures()
    with caplog.at_level(logging.INFO, logger="attar"):
        first = find_clusters(teacher(), images, SETTINGS, folder=tmp_path, device=CPU)
    assert "2 clusters of 2 asked for: 0 were empty" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(module, "kmeans", lambda *_: pytest.fail("clustered again"))
        patch.setattr(module._Layer, "__call__", lambda *_: pytest.fail("asked the network again"))
        again = find_clusters(teacher(), images, SETTINGS, folder=tmp_path, device=CPU)
        named = again.assign(images, folder=tmp_path, device=CPU)
    assert again.digest == first.digest and (again.centroids == first.centroids).all()
    assert len(set(named.cluster[:12])) == len(set(named.cluster[12:])) == 1 and named.cluster[0] != named.cluster[-1]
    assert find_clusters(teacher(digest="t1"), images, SETTINGS, folder=tmp_path, device=CPU).digest != first.digest
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "kmeans", lambda rows, settings: asked.append(len(rows)) or first.centroids)
        smaller = teacher()
        smaller.image = replace(smaller.image, size=8)
        find_clusters(smaller, images, SETTINGS, folder=tmp_path, device=CPU)  # the same weights at another size
        find_clusters(teacher(), replace(images, canvas_size=8), SETTINGS, folder=tmp_path, device=CPU)
    assert len(asked) == 2
    nowhere = tmp_path / "nowhere"
    find_clusters(teacher(digest=""), images, SETTINGS, folder=nowhere, device=CPU)
    assert not nowhere.exists(), "a network without a digest must not be found again"


def test_settings_that_are_no_numbers_and_features_that_are_not_finite_are_refused():
    for wrong in ({"grid": 0}, {"kmeans_iterations": 0}, {"images_per_cluster": -3}, {"normalise": "yes"}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}=.* is not accepted"):
            replace(SETTINGS, **wrong).check(24)
    with pytest.raises(RecipeError, match="does not suit 8 images.*Lower that one"):
        ClusterSettings(num_clusters=2).check(8)
    features, _ = blobs([12, 12])
    features[3, 0] = np.inf
    projection = module.Projection(None, None, normalise=False)
    with pytest.raises(AttarError, match="features of 1 of 24 images are not finite .first: image 3"):
        module.nearest(features, np.arange(24), projection, np.zeros((2, features.shape[1]), np.float32))


@pytest.mark.parametrize("name", ["resnet8x0.5", "hog"])
def test_a_saved_folder_names_the_clusters_of_other_images(tmp_path, name):
    made = find_clusters(
        teacher(name), pictures(), replace(SETTINGS, pca_dim=4, layer="features"), folder=None, device=CPU
    )
    made.save(tmp_path / "c")
    loaded = load_clusters(tmp_path / "c")
    assert (loaded.digest, loaded.settings, loaded.numbers) == (made.digest, made.settings, made.numbers)
    others = pictures(10, seed=3)
    expected, found = (c.assign(others, folder=None, device=CPU) for c in (made, loaded))
    assert (expected.cluster == found.cluster).all() and len(set(found.cluster)) == 2
    (tmp_path / "c" / "clusters.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not what was saved"):
        load_clusters(tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds no clusters"):
        load_clusters(tmp_path)
    (tmp_path / "c" / "clusters.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="is not a description of clusters"):
        load_clusters(tmp_path / "c")
