"""Copies of the trained network: MomentumTeacher follows it slowly, FrozenCopy is what it was at some time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class MomentumTeacher(nn.Module):
    """A moving average of a module's parameters: teacher = momentum * teacher + (1 - momentum) * student.

    Starts as an exact copy and never gets a gradient. Only parameters are averaged; its batch norm statistics come
    from its own forward passes, so batch norms stay in train mode with the method (MoCo, BYOL, DINO). All else is in
    eval mode: what it says is a target, which dropout and drop-path would blur. It is saved with the method's state.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> MomentumTeacher:
        super().train(mode)
        self.module.eval()
        for part in self.module.modules():
            if isinstance(part, _NormBase):  # with its own flag alone: timm's may hold a dropout
                part.training = mode
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """One step of the average. momentum: weight of the old value, in [0, 1]."""
        for own, new in zip(self.module.parameters(), student.parameters(), strict=True):
            own.lerp_(new.to(own.dtype), 1.0 - momentum)


class FrozenCopy(nn.Module):
    """A network as it was when it was last copied: always in eval mode, without gradient, saved with the method.

    Like every frozen teacher (models/teachers.py) it answers in fp32, whatever its student computes in.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenCopy:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.module(images.float())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Become a copy: parameters, and buffers such as batch norm's statistics."""
        self.module.load_state_dict(network.state_dict())
