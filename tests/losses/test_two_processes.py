"""Two processes with half a batch each: loss and gradient equal one process on the joined batch.

The convention: each process returns the mean over its rows; loss and gradient are then averaged over processes.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("cross_sample_cases.py")
_spec = importlib.util.spec_from_file_location("cross_sample_cases", SCRIPT)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What both processes found; started once for all checks."""
    folder = tmp_path_factory.mktemp("two")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    command = [sys.executable, str(SCRIPT)]
    running = [
        subprocess.Popen([*command, str(rank), str(folder / "store"), str(out)]) for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.parametrize("name", cases.CASES)
def test_value_and_gradient_equal_the_joined_batch(two, name):
    value, *gradients = cases.compute(*cases.inputs())[name]
    shares = [process["cases"][name] for process in two]
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, value, rtol=1e-10, atol=1e-12)
    if name not in cases.WHOLE:
        assert not torch.allclose(shares[0][0], value), "each process must have computed its own rows"
    for i, gradient in enumerate(gradients, start=1):
        joined = torch.cat([share[i] for share in shares]) / 2
        torch.testing.assert_close(joined, gradient, rtol=1e-8, atol=1e-10)


def test_rows_come_in_the_order_of_ranks_and_unequal_numbers_are_refused_everywhere(two):
    for process in two:
        assert torch.equal(process["gathered"], cases.inputs()[0])
        assert "gather_rows: the processes hold [2, 3] rows (by rank)" in process["refusal"]
        assert "multiple of 2" in process["refusal"]
