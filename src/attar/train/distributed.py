"""Processes: torch.distributed under torchrun, or one process. Nothing here knows a method."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attar.errors import AttarError

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # of processes that wait for what the first one makes


@dataclass(frozen=True)
class World:
    """This process' place: rank of world_size processes, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True on every process if it is True on one."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes of a detached scalar."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def main_first(self, make: Callable[[bool], T]) -> T:
        """make(True) on the main process; then, on the others, make(False), which finds what the first one left.

        They wait as long as it takes: many images are decoded for hours, and a usual barrier gives up after minutes.
        """
        waiting: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world_size > 1 else None
        made = make(True) if self.is_main else None
        if waiting is not None:
            dist.barrier(group=waiting)
            dist.destroy_process_group(waiting)
        return make(False) if made is None else made

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """auto: the GPU of this process if there is one, otherwise the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise AttarError(f"--device {device!r} is unknown; accepted: auto, cpu, cuda, cuda:1.")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise AttarError(f"--device {device}: no CUDA device is visible to PyTorch here. Use --device cpu or auto.")
        device = f"cuda:{local_rank}" if device == "cuda" else device
    return torch.device(device)


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the process group that torchrun announces in the environment (gloo on CPU, NCCL on GPUs)."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_available() and dist.is_initialized():  # the caller already joined one
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        try:
            yield World(dist.get_rank(), dist.get_world_size(), chosen)
        finally:
            dist.destroy_process_group()
    else:
        yield World(0, 1, chosen)
