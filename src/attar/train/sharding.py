"""Fully sharded training (FSDP2), for networks whose weights, gradients and moments do not fit on one device.

Each process keeps its slice of every parameter; a block's parameters are put together while it computes. What is
computed and what is saved is what one process would compute and save: a checkpoint holds whole tensors, so a run may
be resumed sharded or not, on any number of processes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from attar.methods.base import Method, Progress, StepOutput
from attar.models.backbones import Backbone
from attar.train.distributed import World

BLOCK = 1_000_000  # parameters; a part of a backbone with so many is put together and let go by itself


class Sharded(nn.Module):
    """A method whose parameters are spread over the processes. `whole`: an unspread copy, on the main process only."""

    def __init__(self, method: Method, world: World, *, block: int = BLOCK):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__()
        # in a tuple: not a part of this module
        self._whole: tuple[Method, ...] = (copy.deepcopy(method).cpu(),) if world.is_main else ()
        self.method = method.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        mesh = init_device_mesh(world.device.type, (world.world_size,))
        for backbone in [m for m in method.modules() if isinstance(m, Backbone)]:
            for part in blocks(backbone.network, block):
                fully_shard(part, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, batch: Any, progress: Progress) -> tuple[Tensor, StepOutput]:
        """The loss also by itself: FSDP2 looks for tensors in tuples, not in a StepOutput."""
        output = self.method(batch, progress)
        return output.loss, output

    def whole(self, state: dict[str, Tensor]) -> Method:
        """The method on one device again, with this state; on the main process."""
        method = self._whole[0]
        method.load_state_dict(state)
        return method


def blocks(network: nn.Module, least: int) -> list[nn.Module]:
    """Parts of a network with at least so many parameters each, those of inner parts not counted; inner parts first.

    A container is no part: others walk through it without calling it.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        """Number of parameters that are left for the parts further out."""
        own = sum(p.numel() for p in module.parameters(recurse=False))
        left = own + sum(visit(child) for child in module.children())
        container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if module is network or container or left < least or not any(True for _ in module.children()):
            return left
        found.append(module)
        return 0

    visit(network)
    return found


def gathered(state: Any) -> Any:
    """The same nested state with every sharded tensor put together. All processes must call this."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def load_method(method: Method, state: dict[str, Tensor]) -> None:
    """Whole tensors into a method that may be sharded."""
    own = method.state_dict()
    method.load_state_dict({key: _like(own[key], value) if key in own else value for key, value in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Whole moments into the optimiser of a method that may be sharded."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {
        number: {
            name: _like(parameters[number], value)
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in kept.items()
        }
        for number, kept in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": moments})


def _like(own: Any, value: Tensor) -> Tensor:
    """The value spread over processes as `own` is."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
