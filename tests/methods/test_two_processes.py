"""Every method on two processes with half the batch each equals one process: loss, weights, teacher, queue, centre,
pseudo-labels. In training mode, batch norm over both processes. Both end with the same state."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("half_batches.py")
_spec = importlib.util.spec_from_file_location("half_batches", SCRIPT)
half_batches = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(half_batches)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What both processes found; started once for all methods."""
    folder = tmp_path_factory.mktemp("two")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    command = [sys.executable, str(SCRIPT)]
    running = [
        subprocess.Popen([*command, str(rank), str(folder / "store"), str(out)]) for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.parametrize("case", half_batches.CASES)
def test_half_batches_on_two_processes_equal_whole_ones_on_one(two, case):
    one = half_batches.two_steps(case, 0, 1)
    first, second = (process[case] for process in two)
    close = {"rtol": 1e-5, "atol": 1e-7} if half_batches.is_double(case) else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    for key, value in one["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), f"{key} differs between the processes"
        torch.testing.assert_close(first["state"][key], value, **close, msg=lambda m, key=key: f"{key}: {m}")
