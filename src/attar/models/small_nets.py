"""Networks for small images, in the shapes the papers use: CIFAR ResNets, wide ResNets, VGG, NIN; and AlexNet.

    resnet20, resnet56, …       He et al. 2016, arXiv:1512.03385, section 4.2: depth 6n + 2, widths 16, 32, 64
    resnet20x2, resnet8x0.5     the same with all widths times a factor; x4 (resnet8x4, resnet32x4) has the widths
                                32, 64, 128, 256 of the distillation literature: its stem is 32, not 64
    wrn_40_2                    Zagoruyko and Komodakis 2016, arXiv:1605.07146: depth 6n + 4, widening factor
    vgg8_small, vgg13_small     VGG with batch norm for 32 pixels, as in the distillation literature (timm's VGGs are
                                for 224)
    alexnet                     Krizhevsky et al. 2012 in one column, with batch norm, as self-supervised papers have it
    nin4                        network in network with four blocks, RotNet's network on CIFAR

No network here has a classifier. All take any image of at least 8 pixels (alexnet: 64).
"""

from __future__ import annotations

import re

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
    "vgg13_small",
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
        again = self.checkpointed and torch.is_grad_enabled()
        for stage in self.body.values():
            images = checkpoint(stage, images, use_reentrant=False) if again else stage(images)
        return images

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointed = enable

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name, stage in self.body.items():
            images = maps[name] = stage(images)
        return maps


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
    "vgg13_small": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
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
