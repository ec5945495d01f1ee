from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
import torch
from torch import nn

from attar.errors import DataError, RecipeError
from attar.evaluation.evaluation import _Measured, evaluate, prepare
from attar.evaluation.intervals import resamples
from attar.evaluation.knn import Knn
from attar.evaluation.subject import Outcome, Subject, Task
from attar.models.backbones import build_backbone

QUIET = dict(device="cpu", progress=False, num_resamples=200)


@pytest.fixture
def network():
    torch.manual_seed(3)
    return build_backbone("resnet8", channels=3, image_size=16)


@pytest.fixture
def evaluation(striped, spec, network):
    return evaluate(network, spec, striped(60), striped(40, seed=1, first_id=500, name="other"), **QUIET)


def test_rows_follow_the_schema(evaluation):
    saved = json.loads(json.dumps(evaluation.to_json()))
    assert set(saved) == {"rows", "verdict"}
    for row in saved["rows"]:
        assert set(row) == {"protocol", "metric", "value", "low", "high", "settings", "subject"}
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["settings"]["num_test"] == 40
        assert row["settings"]["num_train"] == 60
        drawn = "; at least that of t, 5 networks" if row["subject"] == "random_init" else ""
        assert row["settings"]["interval"] == f"bootstrap, 200 resamples{drawn}"
    found = {(r["protocol"], r["metric"], r["subject"]) for r in saved["rows"]}
    assert found == {
        (p, m, s)
        for p in ("knn", "linear")
        for m in ("top1", "roc_auc", "balanced_accuracy")
        for s in ("model", "random_init", "pixels", "hog")
    }


def test_shape_only_classes_are_told_by_hog_not_by_pixels(evaluation):
    assert evaluation.value("linear", subject="hog") > 0.95
    assert evaluation.value("linear", subject="pixels") < 0.9
    assert "Against random initialisation, measured otherwise: knn " in evaluation.verdict
    assert evaluation.verdict.splitlines()[0].split(":")[0] in ("NO GAIN", "NOT ENOUGH", "UNDECIDED", "BETTER")


def test_all_labels_of_low_label_are_linear_and_not_said_again(striped, spec, network):
    found = evaluate(network, spec, striped(60), num_untrained=1, **QUIET, protocols=("linear", "low_label:0.5,1"))
    assert {"50 %", "100 %"} <= {row["settings"]["variant"] for row in found.rows}
    assert "measured otherwise: low_label 50 %" in found.verdict and "low_label 100 %" not in found.verdict


def test_wrong_labels_are_learned_from_and_never_measured_on(striped, spec, network):
    """Two classes, nine of ten training labels swapped: what was learned is the opposite, and is counted as wrong."""
    train, test = striped(60), striped(40, seed=1, first_id=500, name="other")
    found = evaluate(network, spec, train, test, **QUIET, protocols=["linear"], label_noise="asymmetric:0.9")
    assert found.value("linear", subject="hog") < 0.05
    assert all(row["settings"]["label_noise"] == "asymmetric:0.9" for row in found.rows)
    assert "Training labels were made wrong: asymmetric:0.9." in found.verdict
    assert found.details["test_labels"] == evaluate(network, spec, train, test, **QUIET).details["test_labels"]


def test_the_model_measured_against_itself_is_never_better(striped, spec, network):
    result = evaluate(network, spec, striped(60), controls=(), teacher=(network, spec), protocols=("knn",), **QUIET)
    by_subject = {s: [(r["value"], r["low"]) for r in result.rows if r["subject"] == s] for s in ("model", "teacher")}
    assert by_subject["model"] == by_subject["teacher"]
    for comparison in result.details["comparisons"]:
        assert comparison["difference"] == 0
        assert comparison["low"] == -comparison["high"] < 0
        assert comparison["outcome"] == "not distinguishable"


def test_details_hold_what_a_report_draws(evaluation):
    details = json.loads(json.dumps(evaluation.details))
    assert details == evaluation.details
    assert details["classes"] == ["rows", "columns"]
    assert details["protocol"] == "linear"
    assert np.shape(details["scores"]) == (40, 2)
    assert details["test_index"] == list(range(500, 540))
    assert np.sum(details["confusion"]) == 40
    right = np.mean(np.equal(details["predicted"], details["test_labels"]))
    assert right == pytest.approx(evaluation.value("linear"))
    assert np.trace(details["confusion"]) / 40 == pytest.approx(right)
    assert details["probability"] == pytest.approx(np.max(details["scores"], axis=1), abs=1e-4)
    assert details["omitted"] == {"pretrained": "nobody publishes weights of this network"}


def test_random_initialisation_is_the_mean_of_several_networks_and_their_spread_counts(make_images, spec, network):
    rng = np.random.default_rng(0)
    train, test = (make_images(rng.integers(0, 255, (n, 16, 16, 3), np.uint8), np.arange(n) % 2) for n in (60, 80))

    def of(metric, **changed):
        arguments = dict(controls=("random_init",), protocols=("few_shot:5,num_seeds=3", "knn"), **QUIET) | changed
        result = evaluate(network, spec, train, test, **arguments)
        rows = [r for r in result.rows if r["subject"] == "random_init" and r["metric"] == metric]
        return rows, [c for c in result.details["comparisons"] if c["metric"] == metric]

    rows, compared = of("roc_auc", num_untrained=4)
    for row, comparison in zip(rows, compared):
        networks = row["settings"]["networks"]
        assert comparison["networks"] == networks and len(networks) == 4
        assert row["value"] == comparison["value"] == pytest.approx(np.mean(networks))
        assert row["settings"]["batchnorm"], "what they share is said"
        margin = margin_of(row)
        for low, high, value in (
            (row["low"], row["high"], row["value"]),
            (comparison["low"], comparison["high"], comparison["difference"]),
        ):
            assert low <= value - margin * 0.999 and (high >= value + margin * 0.999 or high == 1)
    assert rows[0]["low"] == pytest.approx(rows[0]["value"] - margin_of(rows[0]), rel=1e-3), "wider than over draws"
    (alone, _), (single,) = of("roc_auc", num_untrained=1)[0], of("roc_auc", num_untrained=1, protocols=("knn",))[1]
    assert alone["value"] == pytest.approx(rows[0]["settings"]["networks"][0])
    assert "networks" not in alone["settings"] and single["networks"] == []


def margin_of(row):
    networks = row["settings"]["networks"]
    return 3.182 * np.std(networks, ddof=1) * (5 / 4) ** 0.5


def test_the_mean_over_networks_is_resampled_not_the_first(make_images, spec):
    """Three networks that are right on other thirds of the images: their mean hardly depends on which are drawn."""
    images = make_images(np.zeros((30, 16, 16, 3), np.uint8), np.arange(30) % 2)
    task = Task(images, images, ("a", "b"), 0, torch.device("cpu"), progress=False)

    class Right(Knn):
        def run(self, subject):
            right = np.arange(30) // 10 == subject.settings["third"]
            wrong_or_right = np.where(right, images.labels, 1 - images.labels)
            return [Outcome([np.eye(2)[wrong_or_right]], {})]

    measured = _Measured(task, resamples(30, num_resamples=100))
    measured.add([Subject("random_init", nn.Identity(), spec, task, {"third": i}) for i in range(3)], [Right()])
    (row,) = [row for row in measured.rows if row["metric"] == "top1"]
    assert row["value"] == row["low"] == row["high"] == pytest.approx(1 / 3)
    assert row["settings"]["networks"] == [pytest.approx(1 / 3)] * 3 and "third" not in row["settings"]


def test_intervals_of_differences_hold_the_differences(evaluation):
    for c in evaluation.details["comparisons"]:
        assert c["low"] <= c["difference"] <= c["high"]
        assert c["difference"] == pytest.approx(c["model_value"] - c["value"])
    assert any(c["difference"] > 0 for c in evaluation.details["comparisons"])


def test_table_has_a_line_for_each_subject_and_fits_80_columns(evaluation):
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=80).print(evaluation.table())
    assert all(word in out.getvalue() for word in ("model", "random_init", "linear", "ROC-AUC"))


def test_without_test_images_a_stratified_fifth_is_set_aside(striped):
    train, test, classes = prepare(striped(50), None, seed=0)
    assert (len(train), len(test), classes) == (40, 10, ("rows", "columns"))
    assert np.bincount(test.labels).tolist() == [5, 5]
    assert not set(train.index) & set(test.index)
    assert (prepare(striped(50), None, seed=0)[1].index == test.index).all()
    assert (prepare(striped(50), None, seed=1)[1].index != test.index).any()


def test_classes_are_matched_by_name_not_by_number(make_images):
    blank = np.zeros((4, 16, 16, 3), np.uint8)
    train = make_images(blank, [0, 1, 2, 0], classes=("ant", "bee", "cat"))
    test = make_images(blank[:3], [0, 1, 1], classes=("cat", "ant"))
    train, test, classes = prepare(train, test, seed=0)
    assert classes == ("ant", "bee", "cat")
    assert test.labels.tolist() == [2, 0, 0]


def test_unlabelled_images_and_absent_classes_are_left_out(make_images):
    blank = np.zeros((6, 16, 16, 3), np.uint8)
    train = make_images(blank, [0, -1, 7, 7, 0, -1])
    train, test, classes = prepare(train, make_images(blank[:2], [7, -1]), seed=0)
    assert classes == ("0", "7")
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert train.index.tolist() == [0, 2, 3, 4]
    assert test.labels.tolist() == [1]


def test_pretraining_on_the_test_images_is_noted(striped, spec, network):
    seen = evaluate(network, spec, striped(40), controls=(), protocols=("knn",), trained_on="d0", **QUIET)
    assert all(row["settings"]["seen_in_pretraining"] == "without labels" for row in seen.rows)
    assert "Pretraining has seen these images" in seen.verdict
    unseen = evaluate(network, spec, striped(40), controls=(), protocols=("knn",), trained_on="x", **QUIET)
    assert "seen_in_pretraining" not in unseen.rows[0]["settings"]


def test_low_label_rows_carry_seeds_and_variants(striped, spec, network):
    protocols = ("few_shot:1,5,num_seeds=3",)
    result = evaluate(network, spec, striped(60), protocols=protocols, controls=("pixels",), **QUIET)
    rows = [r for r in result.rows if r["subject"] == "model" and r["metric"] == "top1"]
    assert [r["settings"]["variant"] for r in rows] == ["1-shot, num_seeds=3", "5-shot, num_seeds=3"]
    assert rows[0]["settings"]["interval"] == "t, 3 seeds"
    assert {c["variant"] for c in result.details["comparisons"]} == {r["settings"]["variant"] for r in rows}
    for c in result.details["comparisons"]:
        assert c["low"] <= c["difference"] <= c["high"]
    assert any(c["difference"] != 0 for c in result.details["comparisons"])


def test_fine_tuning_leaves_out_what_has_no_weights(striped, spec, network):
    quick = "finetune:1e-3,epochs=1,min_steps=2,batch_size=16"
    result = evaluate(network, spec, striped(30), protocols=(quick,), controls=("random_init", "pixels"), **QUIET)
    assert {r["subject"] for r in result.rows} == {"model", "random_init"}
    assert "nothing to train" in result.details["omitted"]["finetune of pixels"]


def test_an_area_that_is_undefined_is_left_out_with_a_reason(make_images, spec, network):
    rng = np.random.default_rng(0)
    make = lambda labels: make_images(rng.integers(0, 255, (len(labels), 16, 16, 3), dtype=np.uint8), labels)  # noqa: E731
    result = evaluate(
        network, spec, make(np.arange(30) % 3), make([0, 1] * 6), protocols=("knn",), controls=(), **QUIET
    )
    assert {r["metric"] for r in result.rows} == {"top1", "balanced_accuracy"}
    assert "roc_auc (1 of 3 classes have no image in the test data)" in result.verdict


def test_errors_in_the_users_words(make_images, striped, spec, network):
    blank = np.zeros((6, 16, 16, 3), np.uint8)
    run = lambda *images, **settings: evaluate(network, spec, *images, **settings, **QUIET)  # noqa: E731
    with pytest.raises(DataError, match=r'small has no labels. Give labels="folder"'):
        run(make_images(blank))
    with pytest.raises(DataError, match="other has no labels"):
        run(striped(20), make_images(blank, [-1] * 6, name="other"))
    with pytest.raises(DataError, match="small holds a single class, 'cat'; two are needed"):
        run(make_images(blank, [0] * 6, classes=("cat",)))
    with pytest.raises(DataError, match=r"other holds classes that small lacks: 'bee'\. small has 'rows', 'columns'"):
        run(striped(20), make_images(blank, [0] * 6, classes=("bee",), name="other"))
    with pytest.raises(DataError, match="holds a single image of 'b'; to set a fifth aside"):
        run(make_images(blank, [0, 0, 0, 0, 0, 1], classes=("a", "b")))
    with pytest.raises(RecipeError, match="unknown control 'noise'"):
        run(striped(20), controls=("noise",))
    with pytest.raises(RecipeError, match="no protocol was given; accepted: knn, linear"):
        run(striped(20), protocols=())
    with pytest.raises(RecipeError, match="no row with protocol=finetune"):
        run(striped(20), protocols=("knn",), controls=()).value("finetune")
