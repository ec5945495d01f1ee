"""Early exits: a network cut after one of its stages, and a branch that makes features of the map found there.

exit2_resnet20 is resnet20 up to its second exit. Exits are numbered from the shallowest: the last map of each size,
three at most, the nearest to the end; the network itself is the deepest, and needs no name of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attar.errors import BackboneError
from attar.models.small_nets import Staged

if TYPE_CHECKING:
    from attar.models.backbones import Backbone

MOST_EXITS = 3  # of BYOT's ResNets


def parse(name: str) -> tuple[int, str] | None:
    """(number of the exit, name of the whole network), or None for other names.

    >>> parse("exit2_resnet20")
    (2, 'resnet20')
    """
    match = re.fullmatch(r"exit([1-9])_(.+)", name)
    return (int(match[1]), match[2]) if match else None


class Branch(nn.Sequential):
    """BYOT's bottleneck: 1x1, k x k of stride k and 1x1 convolutions, each with batch norm and ReLU, then the mean.

    Maps (B, W, h, w) -> features (B, D). stride: how much smaller the deepest map is.
    """

    def __init__(self, width: int, num_features: int, stride: int):
        middle = max(num_features // 4, 1)
        layers: list[nn.Module] = []
        for width_in, width_out, k in ((width, middle, 1), (middle, middle, stride), (middle, num_features, 1)):
            layers += [nn.Conv2d(width_in, width_out, k, k, bias=False), nn.BatchNorm2d(width_out)]
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def exits_of(backbone: Backbone) -> dict[str, Branch]:
    """The stages after which an image can leave, from the shallowest, each with a new branch for its map.

    Raises:
        BackboneError: a network whose maps do not shrink on the way (vision transformers).
    """
    maps = backbone.stages_of_blank()
    last_of_size = list({m.shape[-1]: name for name, m in maps.items() if m.ndim == 4}.values())
    if len(last_of_size) < 2:
        raise BackboneError(
            f"{backbone.spec.name} has no early exits: its maps do not shrink on the way. Take a convnet."
        )
    smallest = maps[last_of_size[-1]].shape[-1]
    return {
        name: Branch(maps[name].shape[1], backbone.num_features, maps[name].shape[-1] // smallest)
        for name in last_of_size[-1 - MOST_EXITS : -1]
    }


class EarlyExit(nn.Module):
    """The layers up to a stage, then its branch. The network is cut in place.

    stages: names of all stages of the network, as `Backbone.stages` has them. last: the one after which to leave.
    """

    def __init__(self, network: Any, stages: list[str], last: str, branch: Branch):
        super().__init__()
        self.stage_names = stages[: stages.index(last) + 1]
        if isinstance(network, Staged):
            for name in stages[len(self.stage_names) :]:
                del network.body[name]
        else:
            network.prune_intermediate_layers([len(self.stage_names) - 1], prune_norm=True, prune_head=True)
        self.network = network
        self.branch = branch

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        if isinstance(self.network, Staged):
            return self.network.stages_of(images)
        network: Any = self.network
        indices = list(range(len(self.stage_names)))
        maps = network.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)
        return dict(zip(self.stage_names, maps, strict=True))

    def forward_features(self, images: Tensor) -> Tensor:
        """The map at the exit; the names of these two methods are timm's."""
        return self.stages_of(images)[self.stage_names[-1]]

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return self.branch(feature_map)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
