"""Claims about transfer: arms are what they say, shams keep sizes and lose meaning, and the experiments run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from attar.claims import CLAIMS, reproduce, transfer
from attar.claims.ablation import Ablation
from attar.claims.base import ClaimResult
from attar.claims.transfer import Claim, Layers, Shuffled, _halves
from attar.claims.verdict import judge, ranking
from attar.data.load import load_images
from attar.methods import CATALOGUE
from attar.methods.base import resolve_recipe
from attar.models.clusters import ClusterSettings, find_clusters
from attar.models.teachers import load_teacher

TINY = transfer.Size(
    images=120,
    test_images=60,
    image_size=8,
    deep="resnet14x0.5",
    small="resnet8x0.5",
    epochs=1,
    batch_size=32,
    seeds=1,
    values=20,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", transfer.CLAIMS)
def test_arms_differ_are_accepted_and_are_what_is_expected_of(name):
    claim = transfer.CLAIMS[name]
    assert CLAIMS[name] == "attar.claims.transfer"
    named = {arm for e in claim.expectations for arm in (*e.better, *e.worse)}
    if isinstance(claim, Layers):
        return
    assert named <= {*claim.arms, "untrained", *(f"untrained {arm}" for arm in claim.arms)}
    if isinstance(claim, Claim):
        assert len({dataclasses.replace(arm, what="") for arm in claim.arms.values()}) == len(claim.arms)
    for arm in claim.arms.values():
        method = arm.method if isinstance(claim, Ablation) else arm.pretext
        if method in CATALOGUE:
            resolve_recipe(method, arm.recipe, dict(arm.settings))


def test_shuffled_labels_have_the_same_sizes_and_no_meaning():
    pixels = np.random.default_rng(0).integers(0, 60, (40, 8, 8, 3), np.uint8)
    pixels[20:] += 190
    images = load_images(pixels, image_size=8)
    teacher = load_teacher("pixels", image_size=8, channels=3)
    where = {"folder": None, "device": torch.device("cpu")}
    clusters = find_clusters(teacher, images, ClusterSettings(num_clusters=2), **where)
    true, dealt = clusters.assign(images, **where), Shuffled(clusters).assign(images, **where)
    assert sorted(true.sizes) == sorted(dealt.sizes) == [20, 20]
    assert len(set(true.cluster[:20])) == 1 and 4 < (dealt.cluster[:20] == true.cluster[0]).sum() < 16
    assert Shuffled(clusters).digest != clusters.digest


def test_halves_share_no_class():
    images = load_images(np.zeros((12, 8, 8, 3), np.uint8), image_size=8)
    first, second = _halves(dataclasses.replace(images, labels=np.arange(12) % 4))
    assert set(first.labels) == {0, 2} and set(second.labels) == {1, 3}
    assert not set(first.index) & set(second.index)


def test_little_is_a_range_that_can_be_left():
    claim = transfer.CLAIMS["number_of_clusters"]
    near, far = (0.50, 0.51, 0.50), (0.40, 0.41, 0.40)
    for many, verdict in ((near, "holds"), (far, "does not hold")):
        arms = {"few": near, "usual": near, "many": many}
        values = {arm: {"knn": list(v), "linear": list(v)} for arm, v in arms.items()}
        result = ClaimResult(name="", statement="", data="", conditions={}, arms={}, values=values)
        assert judge(claim.expectations, result, digits=False).startswith(f"Verdict: {verdict} at this size.")
    assert ranking(result, "linear").startswith(" Ranking, linear: few 50.3, usual 50.3, many 40.3")


@pytest.mark.slow
def test_a_transfer_claim_end_to_end_and_again_without_training(tmp_path, monkeypatch):
    monkeypatch.setitem(transfer.SIZES, "cpu", TINY)
    result = reproduce("cluster_transfer", out=tmp_path / "out", device="cpu")
    assert set(result.values) == {"untrained", *transfer.CLAIMS["cluster_transfer"].arms}
    assert all(len(row["linear"]) == 1 for row in result.values.values())
    assert "transfer over random labels" in result.verdict and "digits" in result.verdict
    saved = json.loads((tmp_path / "out" / "claim.json").read_text())
    recipes = [(tmp_path / "out" / "seed0" / arm / "recipe.yaml").read_text() for arm in ("transfer", "random_labels")]
    assert recipes[0] != recipes[1]
    monkeypatch.setattr("attar.train.loop.fit", lambda *_, **__: pytest.fail("trained again"))
    assert reproduce("cluster_transfer", out=tmp_path / "out", device="cpu").values == saved["values"]


@pytest.mark.slow
def test_other_images_and_layers(tmp_path, monkeypatch):
    monkeypatch.setitem(transfer.SIZES, "cpu", TINY)
    others = transfer.CLAIMS["clusters_of_others"]
    assert isinstance(others, Claim)
    result = others(data="digits", test=None, size="cpu", out=tmp_path / "o", seeds=1, device="cpu")
    assert set(result.values) == {"untrained", "own", "other", "random_labels"}
    numbers = reproduce("number_of_clusters", out=tmp_path / "n", device="cpu")
    made = [
        json.loads((tmp_path / "n" / "seed0" / arm / "clusters" / "clusters.json").read_text())
        for arm in numbers.arms
        if arm != "untrained"
    ]
    assert [about["settings"]["num_clusters"] for about in made] == [2, 2, 8]
    layers = reproduce("best_layer", out=tmp_path / "l", device="cpu")
    assert list(layers.values) == [
        f"{u}{n}" for n in ("stem", "stage1", "stage2", "stage3") for u in ("", "untrained ")
    ]
    assert "stage2 over stage3" in layers.verdict and "layers" in layers.table()
