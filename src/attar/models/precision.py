"""Mixed precision, as training and fine-tuning use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@contextmanager
def mixed_precision(device: torch.device, *, enabled: bool, recomputes: bool = False) -> Iterator[None]:
    """bf16 autocast around a forward pass that has a backward pass; without `enabled` nothing changes.

    On a CPU attention is computed in float32: in bf16 torch's fused kernel is slow in its backward pass, so that both
    passes take 1.2 (long sequences) to 4 times (short ones) as long (benchmarks/attention_cpu.py). Not where the
    backward pass `recomputes` activations: it would do so outside of this context, in bf16. And not in
    nn.MultiheadAttention, which hides its attention.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
        if not enabled or recomputes or device.type != "cpu":
            yield
            return
        with _Float32Attention():
            yield


class _Float32Attention(TorchFunctionMode):
    """Attention is computed in float32, and given in the type of its queries."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        with torch.autocast("cpu", enabled=False):
            out = func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
        return out.to(query.dtype)


def _float32(value: Any) -> Any:
    """Half-precision tensors in float32 (a mask may be one), all else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
