"""The doctor finds what was planted, and nothing in a healthy folder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from attar.data.doctor import doctor
from attar.data.duplicates import gradient_hash, joined_groups, near_pairs, thumbnail
from attar.errors import DataError


def kinds(findings):
    return {p.kind for p in findings.problems}


def test_healthy_folder(make, tmp_path):
    findings = doctor(make.folder(tmp_path / "f", 8, classes=("a", "b")), progress=False)
    assert findings.problems == [] and findings.num_files == findings.num_usable == 8
    assert findings.sides == {k: [48, 32] for k in ("smallest", "median", "largest")}
    assert findings.formats == {"PNG": 8} and findings.classes == {"a": 4, "b": 4}
    assert "No problems found." in findings.lines()


def test_zoo(make, tmp_path):
    good, broken = make.zoo(tmp_path / "zoo")
    findings = doctor(tmp_path / "zoo", progress=False)
    assert findings.num_usable == len(good) and findings.ignored == {".txt": 1}
    cut, rest = findings.problem("truncated").items, findings.problem("unreadable").items
    named = {line.split(" (")[0] for line in cut}
    assert named == {name for name, reason in broken.items() if reason == "truncated"}
    assert {line.split(" (")[0] for line in rest} == set(broken) - named
    assert findings.problem("mixed_bit_depth").number == 4  # deep.png, deep.tif, deep_colour.png, float.tif
    assert findings.problem("mixed_colour") is not None
    assert findings.problem("constant").items == ["float.tif", "one_pixel.png"]
    assert findings.problem("tiny").items == ["float.tif", "one_pixel.png"]
    assert json.loads(json.dumps(findings.to_json()))["num_usable"] == len(good)
    assert any("truncated: cut." in line for line in findings.lines())


def test_planted_problems(make, tmp_path):
    folder = make.folder(tmp_path / "f", 8, classes=("a", "b"))
    (folder / "b" / "copy.png").write_bytes((folder / "a" / "0.png").read_bytes())
    make.picture(1).save(folder / "a" / "again.jpg", quality=90)  # b/1.png, recompressed
    make.picture(3, width=96, height=64).save(folder / "b" / "larger.png")  # b/3.png, enlarged
    make.picture(20, width=300, height=40).save(folder / "a" / "long.png")
    Image.new("RGB", (40, 40), "blue").save(folder / "a" / "blue.png")
    findings = doctor(folder, progress=False)
    assert findings.problem("exact_duplicates").items == [["a/0.png", "b/copy.png"]]
    assert findings.problem("label_conflicts").items == [["a/0.png", "b/copy.png"]]
    assert findings.problem("near_duplicates").items == [["a/again.jpg", "b/1.png"], ["b/3.png", "b/larger.png"]]
    assert findings.problem("extreme_aspect").items == ["a/long.png"]
    assert findings.problem("constant").items == ["a/blue.png"]


def test_leakage(make, tmp_path):
    make.folder(tmp_path / "train", 6)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "same.png").write_bytes((tmp_path / "train" / "2.png").read_bytes())
    make.picture(4).save(tmp_path / "test" / "nearly.jpg", quality=70)
    make.picture(50).save(tmp_path / "test" / "new.png")
    findings = doctor(tmp_path / "test", tmp_path / "train", progress=False)
    assert findings.problem("leaked").items == [["same.png", "2.png"]]
    assert findings.problem("nearly_leaked").items == [["nearly.jpg", "4.png"]]
    assert kinds(findings) == {"leaked", "nearly_leaked"}


def test_grey_stored_as_colour_and_dark_sixteen_bits(make, tmp_path):
    for i in range(3):
        (tmp_path / "f").mkdir(exist_ok=True)
        make.picture(i).convert("L").convert("RGB").save(tmp_path / "f" / f"{i}.png")
    findings = doctor(tmp_path / "f", progress=False)
    assert kinds(findings) == {"grey_as_colour"} and findings.suggestion.settings["channels"] == 1
    (tmp_path / "g").mkdir()
    twelve_bits = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(tmp_path / "g" / "0.png")
    problem = doctor(tmp_path / "g", progress=False).problem("unused_range")
    assert "to 40" in problem.text and "keep 16 grey levels" in problem.advice


def test_suggestion_fits_the_images(make, tmp_path):
    findings = doctor("digits", progress=False)
    settings = findings.suggestion.settings
    assert settings["image_size"] == 32 and settings["channels"] == 1 and settings["stem"] == "small"
    assert settings["batch_size"] == 128 and findings.problem("tiny") is None
    folder = make.folder(tmp_path / "my photos", 20)
    suggestion = doctor(folder, image_size=96, progress=False).suggestion
    assert suggestion.settings["image_size"] == 96 and suggestion.settings["batch_size"] <= 20
    assert suggestion.command.startswith(f"attar pretrain '{folder}' --method simclr --backbone resnet18")
    assert any("few to learn from" in w for w in suggestion.why)


@pytest.mark.parametrize("number", [2, 20, 60, 200])
def test_the_suggested_batch_is_no_larger_than_training_takes_by_itself(make, tmp_path, number):
    from attar.methods.base import resolve_recipe
    from attar.planning import _fitting_batch

    world = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    taken = _fitting_batch(resolve_recipe("simclr", "small"), number, world, None)["batch_size"]
    settings = doctor(make.folder(tmp_path / "f", number), progress=False).suggestion.settings
    assert settings["batch_size"] == min(taken, 16), "of 200 images smaller, for more steps"


def test_of_many_small_images_no_batch_is_suggested_that_a_cpu_would_not_take():
    pixels = np.random.default_rng(0).integers(0, 256, (4500, 8, 8, 1), np.uint8)
    assert doctor(pixels, progress=False).suggestion.settings["batch_size"] == 256


def test_suggested_command_is_one_that_exists(make, tmp_path):
    from typer.testing import CliRunner

    from attar.cli import app

    command = doctor(make.folder(tmp_path / "f", 4), progress=False).suggestion.command
    given = {word for word in command.split() if word.startswith("--")}
    shown = CliRunner().invoke(app, ["pretrain", "--help"], env={"COLUMNS": "200"}).output
    assert given and all(option in shown for option in given)


def test_nothing_usable_is_still_a_report(tmp_path):
    (tmp_path / "a.png").touch()
    findings = doctor(tmp_path, progress=False)
    assert findings.num_usable == 0 and findings.suggestion is None and kinds(findings) == {"unreadable"}
    with pytest.raises(DataError, match="no such file or folder"):
        doctor(tmp_path / "nowhere")


def greys(make, number):
    return [np.asarray(make.picture(i, 64, 64).convert("L")) for i in range(number)]


def test_hash_ignores_brightness_and_contrast(make):
    grey = greys(make, 1)[0]
    changed = gradient_hash((grey // 2 + 40).astype(np.uint8)), gradient_hash(np.fliplr(grey).copy())
    same, mirrored = (bin(gradient_hash(grey) ^ h).count("1") for h in changed)
    assert same <= 1 and mirrored > 20


def test_near_pairs_equal_a_loop_over_all_pairs(make):
    rng = np.random.default_rng(0)
    pictures = greys(make, 12)
    noisy = [
        np.clip(p + rng.normal(0, s, p.shape), 0, 255).astype(np.uint8)
        for p, s in zip(pictures[:6], (1, 2, 4, 60, 3, 1))
    ]
    everything = [*pictures, *noisy]
    hashes = np.array([gradient_hash(p) for p in everything], np.uint64)
    thumbnails = np.stack([thumbnail(p) for p in everything])
    expected = []
    for i in range(len(everything)):
        for j in range(i + 1, len(everything)):
            a, b = (t.astype(float) - t.mean() for t in (thumbnails[i], thumbnails[j]))
            r = (a * b).mean() / (a.std() * b.std())
            noise = min(a.std(), b.std()) * np.sqrt(max(1 - r * r, 0))
            if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= 6 and r > 0.98 and noise < 2:
                expected.append([i, j])
    assert near_pairs(hashes, thumbnails).tolist() == expected
    assert len(expected) >= 4 and [3, 15] not in expected


def test_hashes_may_differ_in_six_bits(make):
    small = thumbnail(greys(make, 1)[0])
    hashes = np.array([0, 0b111111, 0b1111111000000], np.uint64)  # 6 bits from the first; 7 from it, 13 between them
    assert near_pairs(hashes, np.stack([small] * 3)).tolist() == [[0, 1]]


def test_flat_pictures_are_never_alike():
    flat = np.full((3, 1024), 90, np.uint8)
    assert near_pairs(np.zeros(3, np.uint64), flat).shape == (0, 2)


def test_groups_join_chains():
    groups = joined_groups(np.array([[4, 7], [7, 9], [1, 2]]), 10)
    assert [g.tolist() for g in groups] == [[4, 7, 9], [1, 2]]
    assert joined_groups(np.zeros((0, 2), np.int64), 5) == []
