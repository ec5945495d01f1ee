"""Early exits: who leaves where, what it costs, and the rows a person gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import attar
from attar.errors import RecipeError
from attar.evaluation.exits import leaves_at
from attar.reporting.page import RunContent, exits_plot
from tests.methods.conftest import make_images


def sure(*largest):
    """Probabilities of two classes with these largest ones."""
    return np.array([[value, 1 - value] for value in largest])


def test_an_image_leaves_at_the_first_sure_exit_and_at_the_last_in_any_case():
    scores = [sure(0.9, 0.6, 0.6, 0.95), sure(0.6, 0.9, 0.6, 0.99), sure(0.6, 0.6, 0.6, 0.6)]
    assert leaves_at(scores, 0.9).tolist() == [0, 1, 2, 0]
    assert leaves_at(scores, 0.96).tolist() == [2, 2, 2, 1]
    assert leaves_at(scores, 0.5).tolist() == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out, images = tmp_path_factory.mktemp("exits") / "run", make_images(60)
    attar.pretrain(
        images, out=out, method="byot", backbone="resnet8x0.5", epochs=3, batch_size=8, device="cpu", progress=False
    )
    result = attar.evaluate(
        out, images, protocols=("exits:0.34,0.6,1.0", "classifier"), controls=False, device="cpu", progress=False
    )
    assert "exits" in str(result.table().columns[0]._cells)
    alone = attar.evaluate(out, images, protocols=("exits:0.6",), device="cpu", progress=False)
    assert "NO CONTROLS" not in alone.verdict and "for which there are controls" in alone.verdict
    return [row for row in result.rows if row["metric"] == "top1"]


def test_rows_hold_each_exit_and_the_curve(rows):
    found = {row["settings"]["variant"]: row for row in rows if row["protocol"] == "exits"}
    assert list(found) == ["whole", "exit1", "exit2", "threshold 0.34", "threshold 0.6", "threshold 1"]
    own = next(row for row in rows if row["protocol"] == "classifier")
    assert found["whole"]["value"] == own["value"]
    work = {name: row["settings"]["share_of_work"] for name, row in found.items()}
    assert 0 < work["exit1"] < work["exit2"] < work["whole"] == 1
    # all leave at the first exit: its answer and its work; none before the end: all branches come on top
    first, last = found["threshold 0.34"], found["threshold 1"]
    assert first["settings"]["leave"] == {"exit1": 1.0, "exit2": 0.0, "whole": 0.0}
    assert first["value"] == found["exit1"]["value"] and work["threshold 0.34"] == pytest.approx(work["exit1"])
    assert last["settings"]["leave"]["whole"] == 1 and last["value"] == own["value"]
    assert 1 < work["threshold 1"] < 1.5
    middle = found["threshold 0.6"]["settings"]
    assert sum(middle["leave"].values()) == pytest.approx(1)
    assert all(row["settings"]["latency_ms"] > 0 for row in found.values())


def test_a_run_without_exits_is_refused(tmp_path):
    images = make_images(24)
    attar.pretrain(
        images, out=tmp_path / "run", method="supervised", backbone="resnet8x0.5", epochs=1, batch_size=8,
        device="cpu", progress=False,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="run kept no early exits; train it by a method that does .byot."):
        attar.evaluate(tmp_path / "run", images, protocols=("exits",), progress=False)


def test_the_report_draws_the_curve(rows):
    evaluation, details = {"rows": rows}, {"metric": "top1"}
    plot = exits_plot(RunContent("run", Path("run"), {}, [], [], {}, evaluation, details, {}, [], {}, {}))
    assert "the first sure exit" in plot and "work, % of the whole network" in plot
