"""Random numbers for augmentation: a pure function of (seed, epoch, sample id, number of the draw).

A counter-based generator (the finaliser of SplitMix64 over a key) instead of a sequential one, so that a
sample's views do not depend on its place in the batch, on the rank or on the device: two processes draw what one
would draw, a resumed run draws what it would have drawn, and a teacher's cache can name the view it holds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _wrap(value: int) -> int:
    """The same 64 bits as a signed integer, which is what torch.int64 holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_MIX1 = _wrap(0xBF58476D1CE4E5B9)
_MIX2 = _wrap(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


class Draws:
    """The generator that views take their parameters from; each call yields fresh, independent numbers per sample.

    Args:
        seed: of the run.
        index: stable sample ids, int64 (B,). Numbers live on its device.
        epoch: draws differ between epochs; a cache that replays views passes the number of the view here.
    """

    def __init__(self, seed: int, index: Tensor, *, epoch: int = 0):
        self.index = index
        key = _mix(torch.tensor([_wrap(seed * 0x632BE59BD9B4E019 + 1)]))
        key = _mix(key ^ _wrap((epoch + 1) * 0x9E3779B97F4A7C15))
        self._keys = _mix(index.long() * _GOLDEN + int(key))
        self._count = 0

    def __len__(self) -> int:
        return len(self.index)

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """24 random bits each, int64 (B, *shape)."""
        n = math.prod(shape)
        counter = torch.arange(self._count, self._count + n, device=self.index.device)
        self._count += n
        bits = _mix(_mix(self._keys[:, None] + (counter[None] + 1) * _GOLDEN))
        return _shift(bits, 40).view(len(self.index), *shape)

    def uniform(self, low: float = 0.0, high: float = 1.0, *, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [low, high), float32 (B, *shape)."""
        return self._bits(shape).float() * 2.0**-24 * (high - low) + low

    def bernoulli(self, probability: float, *, shape: tuple[int, ...] = ()) -> Tensor:
        """True with this probability, bool (B, *shape); exact at 0 and 1."""
        return self.uniform(shape=shape) < probability

    def integers(self, high: int, *, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in 0 .. high-1, int64 (B, *shape)."""
        return (self.uniform(shape=shape) * high).long().clamp_(max=high - 1)

    def normal(self, *, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal (Box-Muller), float32 (B, *shape)."""
        radius = torch.sqrt(-2.0 * torch.log(self.uniform(shape=shape) + 2.0**-25))
        return radius * torch.cos(self.uniform(0.0, 2.0 * math.pi, shape=shape))

    def permutation(self, n: int) -> Tensor:
        """One random order of 0 .. n-1 per sample, int64 (B, n)."""
        return self.uniform(shape=(n,)).argsort(dim=1, stable=True)
