from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ComputedTypes(TorchDispatchMode):
    """The types that attention, its backward pass alone, and linear layers compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention: set[torch.dtype] = set()
        self.backward: set[torch.dtype] = set()
        self.linear: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.name():
            self.attention.add(args[0].dtype)
            if "backward" in func.name():
                self.backward.add(args[0].dtype)
        elif "addmm" in func.name():
            self.linear.add(args[1].dtype)
        return func(*args, **(kwargs or {}))
