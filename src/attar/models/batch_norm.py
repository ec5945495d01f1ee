"""Batch norm over all processes, on CPUs too (torch's own SyncBatchNorm refuses CPU tensors); or over parts of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.errors import RecipeError
from attar.losses.gather import first_own_row, world_size


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over processes; every process' loss depends on every process' input, so gradients sum too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def synchronised_forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What `norm` would give on the batch of all processes joined; value and gradient. x: (B, C, ...).

    Within `in_groups` it is what it would give on each group of the joined batch, one after the other. The statistics
    are at least fp32 whatever the input; in eval mode nothing is exchanged.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    members: Tensor = getattr(norm, "members", values.new_ones(1, len(x)))  # (G, B), 1 where a row is in a group
    group = members.argmax(dim=0)  # (B,)
    shape = [len(x), -1] + [1] * (x.ndim - 2)
    count = members.sum(1, keepdim=True) * (values[:1, :1].numel())
    joined = _SumOverProcesses.apply(torch.cat([_sums_of_groups(values, members), count], dim=1))
    total = joined[:, -1:].detach()
    mean = joined[:, :-1] / total  # (G, C)
    centred = values - mean[group].view(shape)
    variance = _SumOverProcesses.apply(_sums_of_groups(centred.pow(2), members)) / total
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        unbiased = variance.detach() * total / (total - 1).clamp_min(1)
        with torch.no_grad():
            for group_mean, group_variance in zip(mean, unbiased):
                norm.num_batches_tracked += 1  # type: ignore[assignment, operator]
                rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)  # type: ignore[arg-type]
                norm.running_mean.lerp_(group_mean, rate)
                norm.running_var.lerp_(group_variance, rate)
    normalised = centred * torch.rsqrt(variance + norm.eps)[group].view(shape)
    shape[0] = 1
    if norm.weight is not None:
        normalised = normalised * norm.weight.view(shape)
    if norm.bias is not None:
        normalised = normalised + norm.bias.view(shape)
    return normalised.to(x.dtype)


def _sums_of_groups(values: Tensor, members: Tensor) -> Tensor:
    """(B, C, ...) -> (G, C). A product and a sum: a matrix product would be rounded by autocast."""
    rows = values.flatten(2).sum(2) if values.ndim > 2 else values
    return (members[:, :, None] * rows).sum(1)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch norm of a module compute its statistics over all processes, in place.

    Parameters, buffers and their names stay, so state dicts are interchangeable. timm's norms with an activation
    (BatchNormAct2d) keep it.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.__class__ = _synchronised(type(child))
    return module


_CLASSES: dict[type, type] = {}


def _synchronised(kind: type) -> type:
    """The subclass of a batch norm class whose forward is `synchronised_forward`; made once for each class."""
    if kind.__name__.startswith("Synchronised"):
        return kind
    if kind not in _CLASSES:

        def forward(self: Any, x: Tensor) -> Tensor:
            out = synchronised_forward(self, x)
            for name in ("drop", "act"):  # timm's BatchNormAct2d
                if isinstance(getattr(self, name, None), nn.Module):
                    out = getattr(self, name)(out)
            return out

        _CLASSES[kind] = type(f"Synchronised{kind.__name__}", (kind,), {"forward": forward})
    return _CLASSES[kind]


def num_groups(num_images: int, group_size: int) -> int:
    """Groups of about group_size images: at least two, as long as each has two images."""
    return min(max(num_images // group_size, 2), max(num_images // 2, 1))


def check_groups(method: str, backbone: Any, given: Collection[str]) -> None:
    """A group size that a person gave must have batch norms to act on; the heads of these methods have none.

    Raises:
        RecipeError: the backbone has none either.
    """
    if "bn_group_size" in given and not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise RecipeError(
            f"{method}: bn_group_size would be ignored: {backbone.spec.name} has no batch norm. Leave it out."
        )


def in_groups(network: nn.Module, images: Tensor, group_size: int, *, interleaved: bool) -> Any:
    """network(images) with batch statistics that stay within groups of about group_size images. Rows keep their order.

    interleaved: a group is every n-th image; else a run of consecutive ones. A query and its key that are grouped in
    different ways share no statistics by which one could recognise the other (MoCo, section 3.3).
    The network may give a tensor or a tuple of tensors, and so does this.

    One process passes group by group. Where batch norm is synchronised the groups are those of the joined batch, which
    may spread over processes: all pass at once, and only the statistics are taken by group.
    """
    norms = [m for m in network.modules() if isinstance(m, tuple(_CLASSES.values()))] if world_size() > 1 else []
    if norms:
        first, num_rows = first_own_row(len(images)), world_size() * len(images)
        groups = _groups(num_rows, num_groups(num_rows, group_size), interleaved)
        members = torch.zeros(len(groups), num_rows)
        for g, rows in enumerate(groups):
            members[g, rows] = 1
        with _statistics_of(norms, members[:, first : first + len(images)].to(images.device)):
            return network(images)
    groups = [rows.to(images.device) for rows in _groups(len(images), num_groups(len(images), group_size), interleaved)]
    outputs = [network(images[group]) for group in groups]
    order = torch.cat(groups).argsort()
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)[order]
    return tuple(torch.cat(parts)[order] for parts in zip(*outputs))


def _groups(num_rows: int, num_groups: int, interleaved: bool) -> list[Tensor]:
    rows = torch.arange(num_rows)
    return [rows[g::num_groups] for g in range(num_groups)] if interleaved else list(rows.tensor_split(num_groups))


@contextmanager
def _statistics_of(norms: list[nn.Module], members: Tensor) -> Iterator[None]:
    for norm in norms:
        norm.members = members
    try:
        yield
    finally:
        for norm in norms:
            del norm.members
