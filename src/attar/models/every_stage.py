"""Features out of every stage: stages_resnet18 is resnet18 read at all of its maps instead of the mean of the last.

The largest value of each channel over all positions, one stage after another, from the input to the output. For small
marks in large images (cracks, spots, defects): a mean over positions drowns them, and the last map is coarse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import BackboneError

if TYPE_CHECKING:
    from attar.models.backbones import Backbone

PREFIX = "stages_"


class EveryStage(nn.Module):
    """Images (B, C, H, W) -> features (B, sum of the stages' channels).

    whole: the network whose maps are read; what it does after the last of them is cut off, in place. cut: the names
    that the weights of that part had.

    Raises:
        BackboneError: a network without maps that shrink on the way (vision transformers), or handcrafted features.
    """

    def __init__(self, whole: Backbone):
        super().__init__()
        maps = whole.stages_of_blank()
        shrink = all(m.ndim == 4 for m in maps.values()) and len({m.shape[-1] for m in maps.values()}) > 1
        if not shrink or next(whole.parameters(), None) is None:
            name = whole.spec.name
            raise BackboneError(f"{PREFIX}{name}: {name} has no maps that shrink on the way. Take a convnet.")
        network: Any = whole.network
        names = network.state_dict().keys()
        if hasattr(network, "prune_intermediate_layers"):  # of timm; weights that get no gradient would stop DDP
            network.prune_intermediate_layers([len(maps) - 1], prune_norm=True, prune_head=True)
        self.whole = whole
        self.cut = frozenset(names - network.state_dict().keys())
        self.pretrained_cfg = getattr(network, "pretrained_cfg", None)  # what timm says of published weights

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.whole.network.set_grad_checkpointing(enable)  # type: ignore[operator]

    def stages_of(self, images: Tensor) -> dict[str, Tensor]:
        return self.whole.stages(images)

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and the last of the maps that they are taken from."""
        maps = list(self.stages_of(images).values())
        return torch.cat([_largest(feature_map) for feature_map in maps], dim=1), maps[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.features_and_map(images)[0]


def _largest(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C). As a pooling, whose backward pass is cheaper on a CPU than that of amax."""
    return F.max_pool2d(feature_map, feature_map.shape[2:]).flatten(1)  # type: ignore[arg-type]
