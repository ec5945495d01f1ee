"""metrics.jsonl: complete rows, no row twice after a resume, a loud stop at a non-finite loss."""

import json

import pytest
import torch

from attar.errors import TrainingError
from attar.train.log import JsonLines, MetricsLog, read_json_lines


def row(step):
    return {"step": step, "epoch": 0, "lr": 0.1, "images_per_second": 10.0, "data_wait": 0.0}


def test_rows_from_the_checkpoint_on_are_written_again_not_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(5)) + '{"step": 5, "lo')
    lines = JsonLines(path, from_step=3)
    lines.write({"step": 3, "again": True})
    lines.close()
    assert [r["step"] for r in read_json_lines(path)] == [0, 1, 2, 3]


def test_terms_are_written_as_numbers(tmp_path):
    log = MetricsLog(tmp_path, from_step=0, tensorboard=False)
    log.add(row(0), {"loss": torch.tensor(1.5), "accuracy": 0.25})
    assert log.flush() == {"loss": 1.5, "accuracy": 0.25}
    log.close()
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{**row(0), "loss": 1.5, "accuracy": 0.25}]


def test_a_non_finite_loss_stops_with_the_step_and_the_terms(tmp_path):
    log = MetricsLog(tmp_path, from_step=0, tensorboard=False)
    log.add(row(11), {"loss": torch.tensor(float("nan")), "kl": torch.tensor(2.0)})
    with pytest.raises(TrainingError, match=r"not finite at step 11 \(loss=nan, kl=2"):
        log.flush()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == "nan"  # valid JSON all the same


def test_tensorboard_events_are_written(tmp_path):
    log = MetricsLog(tmp_path, from_step=0, tensorboard=True)
    log.add(row(0), {"loss": 1.0})
    log.flush()
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
