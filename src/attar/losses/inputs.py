"""What all losses do with their inputs before the maths: precision and checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from attar.errors import RecipeError, ShapeError

Loss = TypeVar("Loss", bound=Callable[..., Any])


def full_precision(loss: Loss) -> Loss:
    """Compute a loss in float32 or better: half-precision inputs are raised, autocast is off.

    A softmax over similarities divided by 0.05 has no accuracy left in 8 or 11 bits of mantissa.
    """

    @wraps(loss)
    def raised(*tensors: Any, **settings: Any) -> Any:
        device = _first_tensor([*tensors, *settings.values()]).device.type
        with torch.autocast(device, enabled=False):
            return loss(*map(_raise, tensors), **{name: _raise(value) for name, value in settings.items()})

    return raised  # type: ignore[return-value]


def _raise(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_raise(item) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.element_size() < 4:
        return value.float()
    return value


def _first_tensor(values: list[Any]) -> Tensor:
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return value[0]
    raise TypeError(f"a loss takes tensors, but was given {[type(value).__name__ for value in values]}.")


def check_pair(where: str, a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Both (B, E), equal, not empty."""
    if a.ndim != 2 or a.shape != b.shape or a.numel() == 0:
        raise ShapeError(
            f"{where}: {names[0]} has shape {tuple(a.shape)} and {names[1]} {tuple(b.shape)}; "
            f"both must be (B, E), equal and not empty, row i of both from the same sample."
        )


def check_width(where: str, rows: Tensor, name: str, width: int) -> None:
    """(N, width), N >= 1."""
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        raise ShapeError(f"{where}: {name} has shape {tuple(rows.shape)}; it must be (N, {width}) with N >= 1.")


def check_positive(where: str, **settings: float) -> None:
    """Temperatures and sizes are > 0."""
    for name, value in settings.items():
        if not value > 0:
            raise RecipeError(f"{where}: {name}={value} is not accepted; it must be greater than 0.")
