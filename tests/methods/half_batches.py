"""Two steps of every method, and of queues that wrap around, on this process' half of each batch; run as a script it is
one of two processes:

python half_batches.py RANK STORE OUT     writes loss and state after the steps to OUT
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from attar.methods import CATALOGUE
from attar.models.batch_norm import synchronise_batch_norm
from attar.views.draws import Draws

_spec = importlib.util.spec_from_file_location("methods_conftest", Path(__file__).with_name("conftest.py"))
bench = importlib.util.module_from_spec(_spec)
sys.modules["methods_conftest"] = bench
_spec.loader.exec_module(bench)

# name -> method, recipe, settings: of ten rows, which no number of batches of six fills; the second batch wraps around
_WRAPPING = [("seed", "small_patches"), ("compress", "1q"), ("compress", "2q"), ("s2bnn", "both"), ("foundation", None)]
CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {name: (name, None, {}) for name in CATALOGUE} | {
    f"{name} {recipe or ''} queue of 10": (name, recipe, {"queue_length": 10}) for name, recipe in _WRAPPING
}
CASES["metric center"] = ("metric", "center", {})
CASES["simclr memory of 10"] = ("simclr", "v2_memory", {"memory_length": 10})
CASES["dinov2 softmax"] = ("dinov2", None, {"centring": "softmax"})
# Of NCE, Z is state; of both, negatives are drawn by the step.
CASES |= {f"{name} nce": (name, "photo", {"num_negatives": 20}) for name in ("inst_disc", "pirl", "cmc")}
CASES["inst_disc sampled"] = ("inst_disc", "sampled", {"num_negatives": 20})
# Of a batch of six: a query's group is one process' half, its key's is spread over both.
_IN_GROUPS = [("moco", None), ("densecl", None), ("s2bnn", "both")]
CASES |= {f"{name} in groups of 3": (name, recipe, {"bn_group_size": 3}) for name, recipe in _IN_GROUPS}
# A queue is used once it is full: here from the second step, whose batch wraps around it.
CASES["swav queue of 4"] = ("swav", None, {"queue_length": 4, "queue_start_fraction": 0.0})

# Batch norm over six images makes much of rounding, so the arithmetic is in float64 but for methods whose queues,
# banks, prototypes or colours stay float32.
SINGLE = ("colorization", "compress", "crd", "deep_cluster", "foundation", "nnclr", "seed", "swav")


def is_double(case: str) -> bool:
    return CASES[case][0] not in SINGLE


def two_steps(case: str, rank: int, world_size: int) -> dict[str, Any]:
    """Mean loss of both steps over processes, and the state after them. Gradients are averaged as DDP does."""
    name, recipe, settings = CASES[case]
    built = bench.build(name, recipe, **settings)
    if world_size > 1:
        synchronise_batch_norm(built.method)  # as the loop does
    if is_double(case):
        built.method.double()
    losses = []
    for step in range(2):
        positions = (np.arange(bench.BATCH) + step * bench.BATCH) % len(built.images)
        canvases = built.images.batch(np.split(positions, world_size)[rank])
        batch = built.make_views(canvases, Draws(0, canvases.index, epoch=0))
        if is_double(case):
            batch = in_float64(batch)
        built.optimiser.zero_grad()
        loss = built.method(batch, built.progress(step)).loss
        loss.backward()
        for parameter in built.method.parameters():
            if parameter.grad is not None:
                parameter.grad = averaged(parameter.grad, world_size)
        built.optimiser.step()
        built.method.after_step(built.progress(step))
        losses.append(averaged(loss.detach(), world_size))
    return {"losses": torch.stack(losses), "state": dict(built.method.state_dict())}


def in_float64(value: Any) -> Any:
    """A batch, its tensors of real numbers in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(in_float64(part) for part in value)
    if is_dataclass(value):
        return replace(value, **{field.name: in_float64(getattr(value, field.name)) for field in fields(value)})
    return value


def averaged(value: Tensor, world_size: int) -> Tensor:
    if world_size == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size


def main(rank: int, store: str, out: str) -> None:
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=wait)
    torch.save({case: two_steps(case, rank, 2) for case in CASES}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
