"""Claims about distilling with labels: arms are what they say, and the experiment runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from attar.claims import CLAIMS, labelled_distillation, reproduce
from attar.claims.labelled_distillation import CLAIMS as LABELLED
from attar.methods.base import resolve_recipe
from attar.models.backbones import build_backbone, check_name

TINY = labelled_distillation.Size(
    images=160,
    test_images=80,
    image_size=8,
    teacher="resnet8x0.5",
    student="resnet8x0.25",
    other="wrn_16_1",
    teacher_epochs=1,
    epochs=1,
    head_epochs=1,
    batch_size=16,
    seeds=1,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", LABELLED)
def test_arms_differ_are_accepted_and_are_what_is_expected_of(name):
    claim = LABELLED[name]
    assert CLAIMS[name] == "attar.claims.labelled_distillation" and claim.name == name
    assert {arm for e in claim.expectations for arm in (*e.better, *e.worse)} <= set(claim.arms)
    plain = [str(replace(arm, what="")) for arm in claim.arms.values()]
    assert len(set(plain)) == len(plain)
    for arm in claim.arms.values():
        resolve_recipe(arm.method, "small", dict(arm.settings))


def test_the_control_of_equal_compute_sees_as_many_views():
    arms = LABELLED["sskd"].arms
    assert arms["kd_longer"].times * arms["kd_longer"].views == arms["sskd"].times * arms["sskd"].views == 4
    assert LABELLED["sskd_tasks"].arms["jigsaw"].task == "jigsaw" and arms["kd"].task == ""


def test_the_networks_of_every_size_exist():
    for size in labelled_distillation.SIZES.values():
        for network in (size.teacher, size.student, size.other):
            check_name(network)
        built = build_backbone(size.teacher, channels=3, image_size=size.image_size, stem=size.teacher_stem)
        if size.published:  # full resolution, as the small images of the published rows want it
            stages = built.eval().stages(torch.rand(1, 3, size.image_size, size.image_size))
            assert size.image_size in {x.shape[2] for x in stages.values()}


@pytest.mark.slow
def test_the_experiment_runs_once_and_its_table_says_what_it_cost(tmp_path, monkeypatch):
    monkeypatch.setitem(labelled_distillation.SIZES, "cpu", TINY)
    monkeypatch.setitem(
        labelled_distillation.CLAIMS, "sskd_wrong_labels", replace(LABELLED["sskd_wrong_labels"], ranked=True)
    )
    asked = dict(size="cpu", out=tmp_path / "claim", device="cpu")
    result = reproduce("sskd_wrong_labels", **asked)
    assert set(result.values) == {"teacher", "kd", "sskd", "kd_wrong", "sskd_wrong"}
    assert set(result.values["sskd"]) == {"classifier", "ece", "agreement with the teacher"}
    assert "SSKD, half of the labels wrong; 4 views an image" in result.text()
    assert "undecided" in result.verdict and "1 of the three seeds" in result.verdict
    runs = tmp_path / "claim" / "seed0"
    saved = {run.name: (run / "recipe.yaml").read_text() for run in runs.iterdir()}
    assert "symmetric:0.5" in saved["kd_wrong"] and "symmetric" not in saved["kd"]
    done = {run: (run / "fit.json").stat().st_mtime_ns for run in runs.iterdir()}
    assert reproduce("sskd_wrong_labels", **asked).values == result.values
    assert {run: (run / "fit.json").stat().st_mtime_ns for run in runs.iterdir()} == done
    assert json.loads((tmp_path / "claim" / "claim.json").read_text())["values"]["teacher"]


@pytest.mark.slow
def test_a_published_pair_stands_beside_its_figures(tmp_path, monkeypatch):
    pair = labelled_distillation.SIZES["wrn_40_2-shufflenetv1_small"]
    assert (pair.teacher, pair.student, pair.epochs, pair.student_settings) == (
        *("wrn_40_2", "shufflenetv1_small", 240),
        {"base_lr": 0.04},
    )
    tiny = replace(TINY, published=pair.published, student_settings={"base_lr": 0.02})
    monkeypatch.setitem(labelled_distillation.SIZES, "tiny", tiny)
    result = reproduce("kd", size="tiny", out=tmp_path / "claim", device="cpu")
    assert result.values["kd"]["published"] == [0.7483] and "published" not in result.values["smoothed"]
    assert "| 74.8 |" in result.table()
    runs = tmp_path / "claim" / "seed0"
    assert all("base_lr: 0.02" in (run / "recipe.yaml").read_text() for run in runs.iterdir())
