"""Rows of all processes, with the right gradient.

The convention of every cross-sample loss here: each process returns the mean over its own rows. Averaged over
processes (which DistributedDataParallel does with the gradient) that is the loss of one process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attar.errors import ShapeError


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of ranks; `x` itself without a process group.

    The gradient of this process' rows is the sum of what all processes' losses say about them. (An all-gather
    without it, as many implementations have, loses the gradient of the negatives.)

    Args:
        x: (B, ...), the same shape on every process.

    Returns:
        (B * world_size, ...); rows rank * B .. rank * B + B - 1 are this process' own.

    Raises:
        ShapeError: on every process, if the processes hold different numbers of rows.
    """
    if world_size() == 1:
        return x
    _check_equal_rows(x)
    return _GatherRows.apply(x)


def first_own_row(num_rows: int) -> int:
    """Where this process' rows begin in what `gather_rows` returns: rank * num_rows."""
    return dist.get_rank() * num_rows if world_size() > 1 else 0


def own_share(x: Tensor) -> Tensor:
    """Every world_size-th of the rows that all processes hold alike; together the shares are x. (N, ...)."""
    return x[first_own_row(1) :: world_size()]


def world_size() -> int:
    """The number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_equal_rows(x: Tensor) -> None:
    own = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    numbers = torch.cat(counts).tolist()
    if len(set(numbers)) > 1:
        raise ShapeError(
            f"gather_rows: the processes hold {numbers} rows (by rank); all must hold the same number. "
            f"Drop the last, smaller batch, or choose a batch size that is a multiple of {len(numbers)}."
        )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)  # gloo has no reduce-scatter; the sum, of which we keep our rows, is the same
        num_rows = len(total) // world_size()
        return total[first_own_row(num_rows) :][:num_rows]
