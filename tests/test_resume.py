"""A run that was killed, stopped or split over processes gives the losses of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attar import stages
from attar.errors import RunError
from attar.train.log import read_json_lines

COMMON = [
    "--backbone",
    "resnet8x0.5",
    "--image-size",
    "8",
    "--epochs",
    "2",
    "--batch-size",
    "128",
    "--precision",
    "fp32",
]
METHODS = {
    "moco": ["-s", "queue_length=512"],  # queue and momentum teacher
    "dino": ["-s", "num_prototypes=64"],  # centre, momentum teacher, schedules
    "pskd": [],  # a table of the last epoch's predictions
    "snapshot": ["-s", "num_cycles=2"],  # the network of the last cycle
    "dogo": ["-s", "peer=resnet8x0.5"],  # a peer that learns beside it
    "crd": ["-s", "num_negatives=64"],  # two memory banks
    "seed": ["-s", "queue_length=512"],  # a queue of the teacher's answers
}
TAUGHT = ("crd", "seed")


def command(method: str, out: Path) -> list[str]:
    kind = (
        ["distill", "digits", "--teacher", str(out.parent / "teacher")] if method in TAUGHT else ["pretrain", "digits"]
    )
    start = [sys.executable, "-m", "attar", *kind, "--method", method, "--out", str(out)]
    return [*start, *COMMON, *METHODS[method], "--checkpoint-steps", "3"]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_json_lines(out / "metrics.jsonl")]


def start_and_wait(arguments: list[str], out: Path, steps: int) -> subprocess.Popen:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(losses(out)) < steps and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moments"),
    [
        ("moco", (2, 17)),
        ("dino", (8,)),
        ("pskd", (17,)),
        ("snapshot", (17,)),
        ("dogo", (17,)),
        ("crd", (17,)),
        ("seed", (17,)),
    ],
)
def test_kill_and_resume_give_the_uninterrupted_losses(tmp_path, method, moments):
    if method in TAUGHT:
        teacher = dict(method="supervised", backbone="resnet8x0.5", image_size=8, batch_size=128)
        stages.pretrain("digits", out=tmp_path / "teacher", epochs=1, progress=False, **teacher)
    subprocess.run(command(method, tmp_path / "whole"), check=True, capture_output=True)
    expected = losses(tmp_path / "whole")
    assert len(expected) == 2 * (1797 // 128)
    for kill_after in moments:  # before the first checkpoint, and in the middle of an epoch
        out = tmp_path / f"killed-{kill_after}"
        process = start_and_wait(command(method, out), out, kill_after)
        process.kill()
        process.wait()
        subprocess.run([*command(method, out), "--resume"], check=True, capture_output=True)
        assert losses(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_cleanly(tmp_path, number):
    out = tmp_path / "run"
    process = start_and_wait([*command("moco", out), "--checkpoint-steps", "1000"], out, 5)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in text and "--resume" in text
    manifest = json.loads(next((out / "checkpoint").glob("step-*/manifest.json")).read_text())
    assert manifest["step"] == len(losses(out)) >= 5
    subprocess.run([*command("moco", out), "--resume"], check=True, capture_output=True)
    subprocess.run(command("moco", tmp_path / "whole"), check=True, capture_output=True)
    assert losses(out) == losses(tmp_path / "whole")


def test_resuming_with_other_settings_is_refused_with_the_fields(tmp_path):
    settings = dict(
        backbone="resnet8x0.5", image_size=8, epochs=1, batch_size=256, progress=False, out=tmp_path / "run"
    )
    run = stages.pretrain("digits", **settings)
    assert stages.pretrain("digits", **settings, resume=True).fit is None  # complete: nothing to do
    (run.path / "backbone.json").unlink()
    with pytest.raises(RunError, match=r"temperature: 0\.5 -> 0\.3"):
        stages.pretrain("digits", **settings, settings={"temperature": 0.3}, resume=True)


def distributed_training(rank: int, out: str) -> None:
    """One of two processes; the same command as one process alone."""
    torch.set_num_threads(1)
    stages.pretrain("digits", out=out, method="simclr", **DISTRIBUTED)


DISTRIBUTED = dict(
    backbone="resnet8x0.5",
    image_size=8,
    epochs=1,
    batch_size=256,
    precision="fp32",
    lr=0.01,  # at the recipe's rate rounding differences grow tenfold a step, for one process with other threads too
    progress=False,
    device="cpu",
)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    from tests.distributed_helper import run_two

    stages.pretrain("digits", out=tmp_path / "one", method="simclr", **DISTRIBUTED)
    run_two(distributed_training, str(tmp_path / "two"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 7
    for (step, a), (_, b) in zip(one, two):
        assert b == pytest.approx(a, rel=1e-5 if step == 0 else 2e-3), f"step {step}"  # rounding grows with training


@pytest.mark.slow
def test_torchrun_starts_two_processes(tmp_path):
    out = tmp_path / "run"
    arguments = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", *command("moco", out)[2:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    assert len(losses(out)) == 2 * (1797 // 128) and (out / "backbone.safetensors").is_file()
