"""Batch norm over all processes, on CPUs too (torch's own SyncBatchNorm refuses CPU tensors); or over parts of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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

    The statistics are fp32 whatever the input; in eval mode nothing is exchanged.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    values = x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = values.new_tensor([values.numel() / values.shape[1]])
    joined = _SumOverProcesses.apply(torch.cat([values.sum(axes), count]))
    total = joined[-1].detach()
    mean = joined[:-1] / total
    centred = values - mean.view(shape)
    variance = _SumOverProcesses.apply(centred.pow(2).sum(axes)) / total
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1  # type: ignore[assignment, operator]
            rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)  # type: ignore[arg-type]
            norm.running_mean.lerp_(mean.detach(), rate)
            norm.running_var.lerp_(variance.detach() * total / (total - 1).clamp_min(1), rate)
    normalised = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.weight is not None:
        normalised = normalised * norm.weight.view(shape)
    if norm.bias is not None:
        normalised = normalised + norm.bias.view(shape)
    return normalised.to(x.dtype)


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


def in_groups(network: nn.Module, images: Tensor, num_groups: int, *, interleaved: bool) -> Any:
    """network(images), one forward pass a group, so that batch statistics stay within groups. Rows keep their order.

    interleaved: a group is every num_groups-th image; else a run of consecutive ones. A query and its key that are
    grouped in different ways share no statistics by which one could recognise the other (MoCo, section 3.3).
    The network may give a tensor or a tuple of tensors, and so does this.
    """
    rows = torch.arange(len(images), device=images.device)
    groups = [rows[g::num_groups] for g in range(num_groups)] if interleaved else list(rows.tensor_split(num_groups))
    outputs = [network(images[group]) for group in groups]
    order = torch.cat(groups).argsort()
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)[order]
    return tuple(torch.cat(parts)[order] for parts in zip(*outputs))
