"""Sharded over two processes a method trains as with a copy on each, and its checkpoints belong to one as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from attar import stages
from attar.errors import RecipeError
from attar.models.backbones import build_backbone
from attar.train.log import read_json_lines
from attar.train.sharding import blocks

METHODS = {
    "moco": dict(settings={"queue_length": 512}),  # SGD, a queue, a momentum teacher
    "dino": dict(settings={"num_prototypes": 64}),  # AdamW, every tensor clipped, a frozen layer, a centre
    # local views, which have 16 px at least
    "swav": dict(settings={"num_prototypes": 64, "num_local_views": 2, "optimiser": "lars"}, image_size=20),
}
COMMON = dict(
    backbone="resnet8", image_size=8, epochs=1, batch_size=256, precision="fp32", lr=0.01, progress=False, device="cpu"
)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_json_lines(out / "metrics.jsonl")]


def train_both_ways(rank: int, out: str) -> None:
    """One of two processes; parts of the backbone so small that it is cut in several."""
    import attar.train.sharding as sharding

    torch.set_num_threads(1)
    sharding.Sharded.__init__.__kwdefaults__["block"] = 1000
    for method, options in METHODS.items():
        for way, shard in (("sharded", True), ("copies", False)):
            stages.pretrain("digits", out=Path(out) / way / method, method=method, shard=shard, **{**COMMON, **options})


@pytest.mark.slow
def test_two_processes_that_share_the_weights_equal_two_with_copies(tmp_path):
    from tests.distributed_helper import run_two

    run_two(train_both_ways, str(tmp_path))
    for method in METHODS:
        copies, found = tmp_path / "copies" / method, tmp_path / "sharded" / method
        assert losses(found) == pytest.approx(losses(copies), rel=1e-3), method
        weights, shared = load_file(copies / "backbone.safetensors"), load_file(found / "backbone.safetensors")
        assert list(weights) == list(shared)
        for name, value in weights.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_a_sharded_run_that_was_killed_is_resumed_by_one_process(tmp_path):
    from tests.test_resume import start_and_wait

    run = [
        "-m",
        "attar",
        "pretrain",
        "digits",
        "--method",
        "dino",
        "-s",
        "num_prototypes=64",
        "--checkpoint-steps",
        "3",
    ]
    run += ["--backbone", "resnet8", "--image-size", "8", "--epochs", "2", "--batch-size", "128", "--precision", "fp32"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *run]
    os.environ["OMP_NUM_THREADS"] = "1"
    process = start_and_wait([*torchrun, "--shard", "--out", str(tmp_path / "run")], tmp_path / "run", 8)
    process.terminate()  # torchrun passes it on, and the processes save before they leave
    process.communicate(timeout=120)
    done = len(losses(tmp_path / "run"))
    assert 8 <= done < 28
    subprocess.run([sys.executable, *run, "--out", str(tmp_path / "run"), "--resume"], check=True, capture_output=True)
    subprocess.run([sys.executable, *run, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=2e-3)


def test_blocks_are_called_parts_with_enough_parameters():
    network = build_backbone("vit_micro_p8", image_size=32).network
    found = blocks(network, 10_000)
    held = [sum(p.numel() for p in part.parameters()) for part in found]
    assert found and network not in found and min(held) >= 10_000
    assert not any(isinstance(part, (nn.Sequential, nn.ModuleList)) for part in found)
    assert blocks(network, 10**9) == []


def test_alone_there_is_nothing_to_share(tmp_path):
    with pytest.raises(RecipeError, match="--shard spreads one training over several processes, and there is one"):
        stages.pretrain("digits", out=tmp_path / "run", shard=True, **COMMON)
    with pytest.raises(RecipeError, match="--compile and --shard"):
        stages.pretrain("digits", out=tmp_path / "run", shard=True, compile=True, **COMMON)
