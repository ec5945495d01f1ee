"""Networks of 1-bit activations and 1-bit weights: ReActNet, and CIFAR ResNets made of the same parts.

    reactnet, reactnet_x0.25    Liu et al. 2020, arXiv:2003.03488: MobileNet's plan, widths 32 to 1024 (times a factor)
    bnn_resnet8, bnn_resnet20x2 as resnet8, resnet20x2, every 3x3 convolution binary with a shortcut of its own; where
                                the shape changes the shortcut is pooled and doubled, so that it has no weights
    NAME_real                   the same with real weights and binary activations: the first of two stages of training.
                                The parameters have the same names and shapes, so its weights start the second stage

The first convolution is real, as are all norms and shifts; there is no classifier. Binary layers compute with floats
of two values here: what becomes smaller is the stored network (see packed.py), not the time of this program.

Differs: ReActNet's published code begins with tiny positive weights; here they are normal (He), so half are negative.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.models.small_nets import Staged, initialise

EXAMPLES = ("reactnet", "reactnet_x0.25", "bnn_resnet8", "bnn_resnet20", "bnn_resnet20x2", "bnn_resnet20_real")


def build(name: str, *, channels: int) -> nn.Module | None:
    """The network of that name, or None if it is not one of these."""
    match = re.fullmatch(r"(reactnet|bnn_resnet(\d+))(?:_?x(\d+(?:\.\d+)?))?(_real)?", name)
    if match is None:
        return None
    factor, binary_weights = float(match[3] or 1), match[4] is None
    if match[1] == "reactnet":
        return ReActNet(factor, channels, binary_weights) if 0 < factor <= 4 else None
    depth = int(match[2])
    return BinaryResNet(depth, factor, channels, binary_weights) if depth % 6 == 2 and 0 < factor <= 16 else None


class _Sign(torch.autograd.Function):
    """+1 for x >= 0, else -1. The gradient is that of a piecewise quadratic: 2 - 2 |x| within [-1, 1), 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (2 - 2 * x.abs()).clamp_(min=0)


class _Binarised(torch.autograd.Function):
    """sign(W) times the mean of |W| of each output channel; the gradient passes where |W| <= 1, the scale gets none."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return scales(weight).view(-1, 1, 1, 1) * _signs(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return gradients[0] * (weight.abs() <= 1)


def _signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)  # torch.sign would give 0 for 0


def scales(weight: Tensor) -> Tensor:
    """Mean of |W| of each output channel (C,). The sum is taken in double precision: then scale * sign(W) has exactly
    the same scales again, which a packed network relies on."""
    total = weight.abs().double().sum(dim=(1, 2, 3))  # no mean(): ONNX would name it as the images' mean is named
    return (total / weight[0].numel()).to(weight.dtype)


def sign(x: Tensor) -> Tensor:
    """Activations as +1 and -1, trained through the piecewise quadratic."""
    return _Sign.apply(x) if torch.is_grad_enabled() else _signs(x)


class BinaryConv2d(nn.Conv2d):
    """A convolution without bias, of weights that are binarised in the forward pass unless binary_weights is False."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, *, binary_weights: bool):
        super().__init__(width_in, width, kernel, stride, kernel // 2, bias=False)
        self.binary_weights = binary_weights

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight(), None, self.stride, self.padding)

    def effective_weight(self) -> Tensor:
        """What the convolution computes with: two values a channel, or the weights as they are."""
        if not self.binary_weights:
            return self.weight
        if torch.is_grad_enabled():
            return _Binarised.apply(self.weight)
        return scales(self.weight).view(-1, 1, 1, 1) * _signs(self.weight)


class Shift(nn.Module):
    """A learnt shift of each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, 1, 1)


class RSign(Shift):
    """Shift, then sign: a learnt threshold of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(super().forward(x))


def rprelu(width: int) -> nn.Sequential:
    """Shift, PReLU, shift, of each channel."""
    return nn.Sequential(Shift(width), nn.PReLU(width), Shift(width))


class BinaryUnit(nn.Module):
    """RSign, binary convolution, batch norm, plus the shortcut, RPReLU.

    Shortcut: the input; averaged over 2x2 where the stride is 2; put beside itself where the width doubles.
    """

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, *, binary_weights: bool):
        super().__init__()
        self.repeats = width // width_in
        self.stride = stride
        self.rsign = RSign(width_in)
        self.conv = BinaryConv2d(width_in, width, kernel, stride, binary_weights=binary_weights)
        self.bn = nn.BatchNorm2d(width)
        self.rprelu = rprelu(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)
        shortcut = torch.cat([shortcut] * self.repeats, dim=1)
        return self.rprelu(self.bn(self.conv(self.rsign(x))) + shortcut)


def _stem(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))


class ReActNet(Staged):
    """Thirteen blocks of a binary 3x3 and a binary 1x1 convolution after a real 3x3 of stride 2; 32 pixels a position.

    Two parallel 1x1 convolutions side by side, where the width doubles, are one of twice the width.
    """

    PLAN = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def __init__(self, factor: float, channels: int, binary_weights: bool):
        super().__init__()
        width_in = max(round(32 * factor), 1)
        self.body = nn.ModuleDict({"stem": _stem(channels, width_in, 2)})
        for i, (multiple, stride) in enumerate(self.PLAN):
            width = max(round(32 * factor), 1) * (multiple // 32)
            self.body[f"block{i + 1}"] = nn.Sequential(
                BinaryUnit(width_in, width_in, 3, stride, binary_weights=binary_weights),
                BinaryUnit(width_in, width, 1, 1, binary_weights=binary_weights),
            )
            width_in = width
        initialise(self)


class BinaryResNet(Staged):
    """Three stages of 2n binary 3x3 convolutions, 6n + 2 layers by the count of He et al.; the stem is real."""

    def __init__(self, depth: int, factor: float, channels: int, binary_weights: bool):
        super().__init__()
        width_in = max(round(16 * factor), 1)
        widths = [width_in, 2 * width_in, 4 * width_in]
        self.body = nn.ModuleDict({"stem": _stem(channels, width_in, 1)})
        for i, width in enumerate(widths):
            units = []
            for j in range((depth - 2) // 3):
                stride = 2 if i and j == 0 else 1
                units.append(BinaryUnit(width_in, width, 3, stride, binary_weights=binary_weights))
                width_in = width
            self.body[f"stage{i + 1}"] = nn.Sequential(*units)
        initialise(self)
