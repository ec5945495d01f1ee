"""The leaderboard trains what is missing, keeps what is done, and says which methods beat their untrained backbone."""

import json

import pytest

from attar.errors import RecipeError, RunError
from attar.leaderboard import SIZES, Entry, Leaderboard, Size, leaderboard

TINY = Size(images=200, test_images=80, image_size=8, backbone="resnet8x0.5", vit="none", epochs=1, batch_size=64)


def entry(name, kind="siamese", knn=0.5, seed=0, **more):
    values = {"knn": (knn, knn - 0.02, knn + 0.02), "linear": (knn, knn - 0.02, knn + 0.02)}
    return Entry(name, kind, "resnet8", seed, values, 10.0, 100.0, 60.0, 10**9, **more)


def board(tmp_path, *entries):
    return Leaderboard("quick", "images", tmp_path, list(entries))


def test_a_method_is_better_than_untrained_where_the_intervals_do_not_touch(tmp_path):
    random = entry("random initialisation", "control", 0.40)
    clear, near = entry("simclr", knn=0.45), entry("byol", knn=0.43)
    found = board(tmp_path, random, clear, near)
    assert found.better([clear]) == "kNN, linear" and found.better([near]) == "no" and found.better([random]) == ""
    assert found.better([clear, entry("simclr", knn=0.41, seed=1)]) == "no"  # every seed must be above
    assert board(tmp_path, clear).better([clear]) == "?"


def test_the_table_gives_spread_over_seeds_and_names_failures(tmp_path):
    failed = Entry("moco", "contrastive", "resnet8", 0, failure="out of memory")
    found = board(
        tmp_path, entry("byol"), entry("byol", knn=0.6, seed=1), entry("pixels", "control"), failed, entry("x", knn=0.9)
    )
    lines = found.table().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["x", "byol", "moco", "*pixels*"]
    assert "55.0 ± 7.1" in lines[3] and "failed: out of memory" in lines[4]


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown size 'huge'"):
        leaderboard(size="huge")
    with pytest.raises(RecipeError, match="seed needs a teacher or labels"):
        leaderboard(methods=["seed"])
    with pytest.raises(RecipeError, match="--seeds 0"):
        leaderboard(seeds=0)


@pytest.mark.slow
def test_a_small_one_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "quick", TINY)
    out = tmp_path / "board"
    first = leaderboard("digits", methods=["rotation"], size="quick", out=out, device="cpu")
    names = {e.name for e in first.entries}
    assert names == {"rotation", "pixels", "hog", "random initialisation"}
    method = next(e for e in first.entries if e.name == "rotation")
    assert method.failure is None and set(method.values) == {"knn", "linear", "low_label 1 %", "low_label 10 %"}
    assert method.peak_memory > 10**8 and method.images_per_second > 0
    assert (out / "leaderboard.png").stat().st_size > 5000 and "rotation" in (out / "leaderboard.md").read_text()
    weights = (out / "rotation" / "seed0" / "backbone.json").stat().st_mtime_ns
    again = leaderboard("digits", methods=["rotation", "simclr"], size="quick", out=out, device="cpu")
    assert {e.name for e in again.entries} == names | {"simclr"}
    assert (out / "rotation" / "seed0" / "backbone.json").stat().st_mtime_ns == weights
    assert json.loads((out / "leaderboard.json").read_text()) == json.loads(json.dumps(again.to_json()))
    with pytest.raises(RunError, match="epochs: 1 -> 2"):
        leaderboard("digits", methods=["rotation"], size="quick", epochs=2, out=out, device="cpu")
