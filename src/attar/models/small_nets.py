"""Networks for small images, in the shapes the papers use: CIFAR ResNets, wide ResNets, VGG, NIN; and AlexNet.

    resnet20, resnet56, …       He et al. 2016, arXiv:1512.03385, section 4.2: depth 6n + 2, widths 16, 32, 64
    resnet20x2, resnet8x0.5     the same with all widths times a factor; x4 (resnet8x4, resnet32x4) has the widths
                                32, 64, 128, 256 of the distillation literature: its stem is 32, not 64
    wrn_40_2                    Zagoruyko and Komodakis 2016, arXiv:1605.07146: depth 6n + 4, widening factor
    vgg8_small, vgg13_small     VGG with batch norm for 32 pixels, as in the distillation literature (timm's VGGs are
                                for 224)
    vgg11_small, vgg16_small    the same with more convolutions
    mobilenetv2_small           Sandler et al. 2018, arXiv:1801.04381, at half the width, with strides for 32 pixels;
                                mobilenetv2_smallx1 is the whole width
    shufflenetv1_small          Zhang et al. 2018, arXiv:1707.01083: 3 groups, widths 240, 480, 960
    shufflenetv2_small          Ma et al. 2018, arXiv:1807.11164, x1: widths 116, 232, 464, and 1024 at the end; all
                                three as in the distillation literature: its tables call them MobileNetV2, ShuffleNetV1
                                and ShuffleNetV2
    alexnet                     Krizhevsky et al. 2012 in one column, with batch norm, as self-supervised papers have it
    nin4                        network in network with four blocks, RotNet's network on CIFAR

No network here has a classifier. All take any image of at least 8 pixels (alexnet: 64).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EXAMPLES = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
    "resnet20x2",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
    "wrn_28_10",
    "vgg8_small",
    "vgg11_small",
    "vgg13_small",
    "vgg16_small",
    "mobilenetv2_small",
    "shufflenetv1_small",
    "shufflenetv2_small",
    "alexnet",
    "nin4",
)


def build(name: str, *, channels: int) -> nn.Module | None:
    """The network of that name, or None if it is not one of these."""
    if match := re.fullmatch(r"resnet(\d+)(?:x(\d+(?:\.\d+)?))?", name):
        depth, factor = int(match[1]), float(match[2] or 1)
        if depth % 6 == 2 and depth not in (26, 50, 152) and 0 < factor <= 16:  # those three are ImageNet ResNets
            return CifarResNet(depth, factor, channels)
    if (match := re.fullmatch(r"wrn_(\d+)_(\d+)", name)) and int(match[1]) % 6 == 4:
        return WideResNet(int(match[1]), int(match[2]), channels)
    if match := re.fullmatch(r"mobilenetv2_small(?:x(\d+(?:\.\d+)?))?", name):
        factor = float(match[1] or 0.5)
        return SmallMobileNetV2(factor, channels) if 0.1 <= factor <= 4 else None
    if name == "shufflenetv1_small":
        return SmallShuffleNetV1(channels)
    if name == "shufflenetv2_small":
        return SmallShuffleNetV2(channels)
    if name in _VGG:
        return SmallVGG(_VGG[name], channels)
    return {"alexnet": AlexNet, "nin4": NIN}[name](channels) if name in ("alexnet", "nin4") else None


class Staged(nn.Module):
    """A straight list of named stages, average-pooled at the end."""

    body: nn.ModuleDict
    checkpointed = False

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map; the names of these two methods are timm's."""
        return deque(self._maps(images), maxlen=1).pop()[1]  # keeps one map at a time

    def _maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        again = self.checkpointed and torch.is_grad_enabled()
        for name, stage in self.body.items():
            images = checkpoint(stage, images, use_reentrant=False) if again else stage(images)
            yield name, images

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointed = enable

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        return dict(self._maps(images))


def initialise(network: nn.Module) -> None:
    """He et al. 2015: normal with variance 2 / fan_out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input (through a 1x1 convolution where the shape changes), ReLU."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(Staged):
    """Three stages of n basic blocks; the stem has 3x3 kernels and stride 1."""

    def __init__(self, depth: int, factor: float, channels: int):
        super().__init__()
        widths = [max(round(w * factor), 1) for w in (16, 32, 64)]
        stem = 32 if factor == 4 else widths[0]
        blocks = (depth - 2) // 6
        self.body = nn.ModuleDict(
            {
                "stem": nn.Sequential(
                    nn.Conv2d(channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
                )
            }
        )
        width_in = stem
        for i, width in enumerate(widths):
            layers = [BasicBlock(width_in if j == 0 else width, width, 2 if i and j == 0 else 1) for j in range(blocks)]
            self.body[f"stage{i + 1}"] = nn.Sequential(*layers)
            width_in = width
        initialise(self)


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the input; where the shape changes the activated input goes through 1x1."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(activated)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class WideResNet(Staged):
    """Three stages of n pre-activation blocks, a last BN-ReLU."""

    def __init__(self, depth: int, factor: int, channels: int):
        super().__init__()
        blocks, width_in = (depth - 4) // 6, 16
        self.body = nn.ModuleDict({"stem": nn.Conv2d(channels, 16, 3, 1, 1, bias=False)})
        for i, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            layers: list[nn.Module] = [
                PreActivationBlock(width_in if j == 0 else width, width, 2 if i and j == 0 else 1)
                for j in range(blocks)
            ]
            if i == 2:
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            self.body[f"stage{i + 1}"] = nn.Sequential(*layers)
            width_in = width
        initialise(self)


_VGG = {
    "vgg8_small": ((64,), (128,), (256,), (512,), (512,)),
    "vgg11_small": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13_small": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16_small": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class SmallVGG(Staged):
    """Five stages of 3x3 conv-BN-ReLU; the first three are followed by pooling, so 32 pixels end as 4."""

    def __init__(self, plan: tuple[tuple[int, ...], ...], channels: int):
        super().__init__()
        self.body = nn.ModuleDict()
        width_in = channels
        for i, widths in enumerate(plan):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(width_in, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                width_in = width
            if i in (1, 2, 3):
                layers.insert(0, nn.MaxPool2d(2))
            self.body[f"stage{i + 1}"] = nn.Sequential(*layers)
        initialise(self)


class AlexNet(Staged):
    """conv1 .. conv5, each with batch norm and ReLU; pooling after conv1, conv2 and conv5. Needs 64 pixels."""

    def __init__(self, channels: int):
        super().__init__()

        def block(width_in: int, width: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
            convolution = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
            return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

        pool = nn.MaxPool2d(3, 2)
        self.body = nn.ModuleDict(
            {
                "conv1": nn.Sequential(*block(channels, 96, 11, 4, 2)),
                "conv2": nn.Sequential(pool, *block(96, 256, 5, 1, 2)),
                "conv3": nn.Sequential(pool, *block(256, 384, 3, 1, 1)),
                "conv4": nn.Sequential(*block(384, 384, 3, 1, 1)),
                "conv5": nn.Sequential(*block(384, 256, 3, 1, 1), pool),
            }
        )
        initialise(self)


class NIN(Staged):
    """Four blocks of one spatial and two 1x1 convolutions, 192 wide; pooling after the first two."""

    def __init__(self, channels: int):
        super().__init__()

        def block(width_in: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for width, size in zip(widths, (kernel, 1, 1)):
                layers += [nn.Conv2d(width_in, width, size, 1, size // 2, bias=False), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                width_in = width
            return layers

        self.body = nn.ModuleDict(
            {
                "block1": nn.Sequential(*block(channels, (192, 160, 96), 5), nn.MaxPool2d(3, 2, 1)),
                "block2": nn.Sequential(*block(96, (192, 192, 192), 5), nn.AvgPool2d(3, 2, 1)),
                "block3": nn.Sequential(*block(192, (192, 192, 192), 3)),
                "block4": nn.Sequential(*block(192, (192, 192, 192), 3)),
            }
        )
        initialise(self)


def _conv_bn(width_in: int, width: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the width, 3x3 for each channel alone, 1x1 without ReLU; plus the input if it fits."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int):
        super().__init__()
        hidden = width_in * expansion
        self.body = nn.Sequential(
            *_conv_bn(width_in, hidden),
            nn.ReLU(inplace=True),
            *_conv_bn(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.ReLU(inplace=True),
            *_conv_bn(hidden, width),
        )
        self.keeps = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keeps else self.body(x)


class SmallMobileNetV2(Staged):
    """Seven groups of inverted residuals; the stem, groups 3, 4 and 6 halve the size: 32 pixels end as 2.

    The first group expands by 1 and has the 1x1 convolution all the same, as the literature's network has it.
    """

    def __init__(self, factor: float, channels: int):
        super().__init__()
        width_in = int(32 * factor)
        groups: list[nn.Module] = []
        for expansion, base, number, stride in (
            (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            width = int(base * factor)
            blocks = [
                InvertedResidual(width_in if j == 0 else width, width, stride if j == 0 else 1, expansion)
                for j in range(number)
            ]
            groups.append(nn.Sequential(*blocks))
            width_in = width
        last = max(1280, int(1280 * factor))
        self.body = nn.ModuleDict(  # a stage for each size, as far as sizes go
            {
                "stem": nn.Sequential(*_conv_bn(channels, int(32 * factor), 3, stride=2), nn.ReLU(inplace=True)),
                "stage1": nn.Sequential(groups[0], groups[1]),
                "stage2": groups[2],
                "stage3": nn.Sequential(groups[3], groups[4]),
                "stage4": nn.Sequential(groups[5], groups[6], *_conv_bn(width_in, last), nn.ReLU(inplace=True)),
            }
        )
        initialise(self)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels dealt out anew, so that the next grouped convolution sees all groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, 3x3 for each channel alone, grouped 1x1; plus the input, or beside it where it shrinks."""

    def __init__(self, width_in: int, width: int, stride: int, groups: int):
        super().__init__()
        self.shrinks = stride == 2
        out = width - width_in if self.shrinks else width
        middle = out // 4
        self.groups = 1 if width_in == 24 else groups  # the stem is too narrow
        self.reduce = nn.Sequential(*_conv_bn(width_in, middle, groups=self.groups), nn.ReLU(inplace=True))
        self.expand = nn.Sequential(
            *_conv_bn(middle, middle, 3, stride=stride, groups=middle),
            nn.ReLU(inplace=True),  # the paper has none here; the literature's network has
            *_conv_bn(middle, out, groups=groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(_shuffle(self.reduce(x), self.groups))
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], dim=1) if self.shrinks else y + x)


class SmallShuffleNetV1(Staged):
    """Three stages of 4, 8 and 4 units; each halves the size, and the 1x1 stem does not: 32 pixels end as 4."""

    def __init__(self, channels: int, groups: int = 3):
        super().__init__()
        self.body = nn.ModuleDict({"stem": nn.Sequential(*_conv_bn(channels, 24), nn.ReLU(inplace=True))})
        width_in = 24
        for i, (width, number) in enumerate(((240, 4), (480, 8), (960, 4))):
            units = [
                ShuffleUnitV1(width_in if j == 0 else width, width, 2 if j == 0 else 1, groups) for j in range(number)
            ]
            self.body[f"stage{i + 1}"] = nn.Sequential(*units)
            width_in = width
        initialise(self)


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, the other half go through 1x1, 3x3 each alone, 1x1; then all are shuffled.

    Where it shrinks all channels go both ways, and the first way is 3x3 each alone and 1x1.
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.shrinks = stride == 2
        half = width // 2
        own = width_in if self.shrinks else half
        self.short = (
            nn.Sequential(
                *_conv_bn(width_in, width_in, 3, stride=2, groups=width_in),
                *_conv_bn(width_in, half),
                nn.ReLU(inplace=True),
            )
            if self.shrinks
            else nn.Identity()
        )
        self.long = nn.Sequential(
            *_conv_bn(own, half),
            nn.ReLU(inplace=True),
            *_conv_bn(half, half, 3, stride=stride, groups=half),
            *_conv_bn(half, half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        short, long = (x, x) if self.shrinks else x.chunk(2, dim=1)
        return _shuffle(torch.cat([self.short(short), self.long(long)], dim=1), 2)


class SmallShuffleNetV2(Staged):
    """Three stages of 4, 8 and 4 units; each halves the size, and the 1x1 stem does not: 32 pixels end as 4."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.ModuleDict({"stem": nn.Sequential(*_conv_bn(channels, 24), nn.ReLU(inplace=True))})
        width_in = 24
        for i, (width, number) in enumerate(((116, 4), (232, 8), (464, 4))):
            units: list[nn.Module] = [
                ShuffleUnitV2(width_in if j == 0 else width, width, 2 if j == 0 else 1) for j in range(number)
            ]
            if i == 2:
                units += [*_conv_bn(width, 1024), nn.ReLU(inplace=True)]
            self.body[f"stage{i + 1}"] = nn.Sequential(*units)
            width_in = width
        initialise(self)
