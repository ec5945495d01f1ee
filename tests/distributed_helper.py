"""Two processes on this machine, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _process(rank: int, function: Callable[..., None], store: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()


def run_two(function: Callable[..., None], *arguments: Any) -> None:
    """function(rank, *arguments) in each of two gloo processes; an error in one is raised here with its traceback.

    function must be importable by its module's name, and starting costs some seconds: check much in one call.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(function, str(Path(folder) / "store"), arguments), nprocs=2)
