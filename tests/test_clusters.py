"""`attar cluster`: a folder that teaches and a table that is trained from; clusters of one data set name another."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from attar import stages
from attar.cli import main
from attar.errors import RecipeError, RunError
from attar.models.backbones import build_backbone

QUIET = dict(progress=False, device="cpu")


@pytest.fixture
def photos(tmp_path):
    """A folder of dark and bright pictures, two sizes of the same; a cache of its own."""

    def make(name, num=24):
        folder, random = tmp_path / name, np.random.default_rng(len(name))
        for i in range(num):
            bright = "bright" if i % 2 else "dark"
            (folder / bright).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 50, (20, 16, 3), dtype=np.uint8) + np.uint8(200 * (i % 2))
            Image.fromarray(pixels).save(folder / bright / f"{i}.png")
        return folder

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))


def test_clusters_of_one_folder_name_another_and_teach_a_network(photos, tmp_path):
    first, second = photos("first"), photos("second", 16)
    numbers = stages.cluster(
        "pixels", first, out=tmp_path / "a", num_clusters=2, image_size=16, labels="folder", **QUIET
    )
    assert (numbers["num_clusters"], numbers["smallest"], numbers["largest"]) == (2, 12, 12)
    table = pyarrow.parquet.read_table(tmp_path / "a" / "labels.parquet").to_pydict()
    assert list(table) == ["index", "path", "cluster", "distance"]
    assert len({("bright" in path, k) for path, k in zip(table["path"], table["cluster"])}) == 2
    gallery = np.load(tmp_path / "a" / "gallery.npz")
    assert gallery["thumbnails"].shape == (16, 48, 48, 3) and (gallery["share"] == 1).all()

    stages.cluster(tmp_path / "a", second, out=tmp_path / "b", **QUIET)
    other = pyarrow.parquet.read_table(tmp_path / "b" / "labels.parquet").to_pydict()
    name_of = {k: "bright" in path for path, k in zip(table["path"], table["cluster"])}
    assert all(name_of[k] == ("bright" in path) for path, k in zip(other["path"], other["cluster"]))

    training = dict(backbone="resnet8x0.5", epochs=1, batch_size=8, **QUIET)
    run = stages.distill(second, teacher=tmp_path / "a", method="cluster_transfer", out=tmp_path / "run", **training)
    assert run.recipe["settings"]["num_clusters"] == 2
    assert json.loads((run.path / "clusters" / "labels.json").read_text())["num_clusters"] == 2
    resumed = stages.distill(
        second, teacher=tmp_path / "a", method="cluster_transfer", out=tmp_path / "run", resume=True, **training
    )
    assert resumed.fit is None
    of_table = stages.pretrain(
        tmp_path / "b" / "labels.parquet", labels="cluster", method="supervised", out=tmp_path / "table", **training
    )
    assert of_table.recipe["data"]["num_images"] == 16


def test_a_network_as_teacher_clusters_the_training_images_itself(photos, tmp_path):
    training = dict(backbone="resnet8x0.5", epochs=1, batch_size=8, image_size=16, **QUIET)
    settings = {"num_clusters": 2, "balance": True}
    run = stages.distill(
        photos("first"), teacher="hog", method="cluster_transfer", out=tmp_path / "run", settings=settings, **training
    )
    made = json.loads((run.path / "clusters" / "clusters.json").read_text())
    assert made["settings"]["num_clusters"] == 2 and made["numbers"]["num_images"] == 24
    assert (run.path / "clusters" / "gallery.npz").is_file()


def test_clusters_that_the_images_do_not_fall_into_are_told_and_one_alone_teaches_nothing(
    photos, tmp_path, monkeypatch, capsys, caplog
):
    stages.cluster("pixels", photos("first"), out=tmp_path / "a", num_clusters=3, image_size=16, **QUIET)
    second = photos("second")
    arguments = ["cluster", str(tmp_path / "a"), str(second / "dark"), "--out", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", ["attar", *arguments])
    with pytest.raises(SystemExit):
        main()
    without = json.loads((tmp_path / "b" / "labels.json").read_text())["without_images"]
    assert without and f"; {without} have none of these images; sizes" in capsys.readouterr().out
    training = dict(teacher=tmp_path / "a", method="cluster_transfer", backbone="resnet8x0.5", epochs=1, batch_size=8)
    monkeypatch.setattr("attar.models.clusters.nearest", lambda table, ids, *_: (0 * ids, np.ones(len(ids))))
    with pytest.raises(RecipeError, match="all 24 images of .*second fall into one cluster of "):
        stages.distill(second, out=tmp_path / "run", **training, **QUIET)
    assert "clusters have none of these images" in caplog.text and not (tmp_path / "run").exists()


def test_refusals(photos, tmp_path):
    first = photos("first")
    with pytest.raises(RunError, match="lies inside the images of"):
        stages.cluster("pixels", first, out=first, num_clusters=2, image_size=16, **QUIET)
    assert sorted(path.name for path in first.iterdir()) == ["bright", "dark"]
    stages.cluster("pixels", first, out=tmp_path / "a", num_clusters=2, image_size=16, **QUIET)
    with pytest.raises(RunError, match="already holds clusters"):
        stages.cluster("pixels", first, out=tmp_path / "a", num_clusters=3, image_size=16, **QUIET)
    with pytest.raises(RecipeError, match="num_clusters, layer: it would be ignored"):
        stages.cluster(tmp_path / "a", first, out=tmp_path / "b", num_clusters=3, layer="pixels", **QUIET)
    with pytest.raises(RecipeError, match="num_clusters=30 does not suit 24 images"):
        stages.cluster("pixels", first, out=tmp_path / "b", num_clusters=30, image_size=16, **QUIET)
    assert not (tmp_path / "b").exists()


def test_hog_and_pixels_see_images_at_their_own_size(photos, tmp_path):
    folder = photos("first")  # of 20 x 16 pixels
    stages.cluster("pixels", folder, out=tmp_path / "a", num_clusters=2, **QUIET)
    assert json.loads((tmp_path / "a" / "backbone.json").read_text())["image"]["size"] == 20
    blocks = {size: build_backbone("hog", image_size=size).num_features for size in (20, 224)}
    assert stages.embed("hog", folder, out=tmp_path / "e.npz", **QUIET) == (24, blocks[20]) and blocks[20] < blocks[224]
