"""Optimisers with the papers' exclusions. The update rules are torch's and timm's; which parameter is decayed,
adapted, frozen or scaled is decided here, once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attar.errors import RecipeError
from attar.methods.base import Method, Progress, Recipe
from attar.train.schedules import learning_rate, weight_decay

LARS_TRUST = 1e-3  # You et al. 2017; the value of SimCLR, BYOL, MoCo v3 and Barlow Twins


def parameter_groups(method: Method, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of trainable parameters; each carries lr_scale, constant_lr, weight_decay_scale,
    frozen_fraction, adapt.

    Biases and norm parameters (ndim <= 1) are neither decayed nor adapted unless recipe.decay_bias_and_norm.
    A method's own groups are split by the same rule.
    """
    own = method.parameter_groups() or [{"params": list(method.named_parameters())}]
    groups: list[dict[str, Any]] = []
    for group in own:
        shared = {
            "lr_scale": group.get("lr_scale", 1.0),
            "constant_lr": group.get("constant_lr", False),
            "frozen_fraction": group.get("frozen_fraction", 0.0),
        }
        scale = group.get("weight_decay_scale", 1.0)
        trainable = [_parameter(item) for item in group["params"] if _parameter(item).requires_grad]
        plain = [p for p in trainable if p.ndim > 1 or recipe.decay_bias_and_norm]
        excluded = [p for p in trainable if not (p.ndim > 1 or recipe.decay_bias_and_norm)]
        if plain:
            groups.append({"params": plain, "weight_decay_scale": scale, "adapt": True, **shared})
        if excluded:
            groups.append({"params": excluded, "weight_decay_scale": 0.0, "adapt": False, **shared})
    _check_complete(method, groups)
    return groups


def _parameter(item: Any) -> nn.Parameter:
    return item[1] if isinstance(item, tuple) else item


def _check_complete(method: Method, groups: list[dict[str, Any]]) -> None:
    listed = [id(p) for group in groups for p in group["params"]]
    grouped = set(listed)
    if len(listed) != len(grouped):
        raise RecipeError(f"{type(method).__name__}.parameter_groups names a parameter twice.")
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            raise RecipeError(f"{type(method).__name__}.parameter_groups leaves out {name}; it would never be trained.")


def build_optimiser(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`; rates are set each step by `set_rates`."""
    groups = parameter_groups(method, recipe)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.adam_betas, weight_decay=recipe.weight_decay)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.peak_lr,
            momentum=recipe.sgd_momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    from timm.optim import Lars

    for group in groups:
        group["always_adapt"] = group["adapt"]  # timm adapts only decayed groups unless told; we say it explicitly
    return Lars(
        groups,
        lr=recipe.peak_lr,
        momentum=recipe.sgd_momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        trust_coeff=LARS_TRUST,
    )


def set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, progress: Progress) -> float:
    """Set learning rate and weight decay of every group for this step; returns the base learning rate."""
    lr = learning_rate(recipe, progress.step, progress.total_steps)
    decay = weight_decay(recipe, progress.step, progress.total_steps)
    for group in optimiser.param_groups:
        group["lr"] = (recipe.peak_lr if group["constant_lr"] else lr) * group["lr_scale"]
        group["weight_decay"] = decay * group["weight_decay_scale"]
    return lr


def drop_frozen_gradients(optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Parameters of a group that is still frozen get no update at all (DINO's last layer): their gradient goes."""
    for group in optimiser.param_groups:
        if progress.fraction < group["frozen_fraction"]:
            for parameter in group["params"]:
                parameter.grad = None


def clip_gradients(optimiser: torch.optim.Optimizer, recipe: Recipe) -> Tensor:
    """Clip to recipe.clip_gradient: the norm over all parameters, or each tensor's own norm.

    Returns:
        The norm over all parameters before clipping. Its spikes tell of an instability that the loss does not show
        (Chen et al. 2021, arXiv:2104.02057, section 4.2).
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    if recipe.clip_gradient is not None and not recipe.clip_per_parameter:
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_gradient)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if recipe.clip_gradient is not None:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, recipe.clip_gradient)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
