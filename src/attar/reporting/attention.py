"""What a vision transformer looks at: images shown through the attention of its class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attar.models.backbones import Backbone
from attar.models.tokens import class_attention


@dataclass
class Attended:
    """images: (B, C, H, W), normalised. maps: (B, heads, H, W) in [0, 1], 1 where a head looks most."""

    images: Tensor
    maps: Tensor
    index: Tensor
    labels: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        """The image, then for each head what it attends to; the rest fades to the mean colour."""
        heads = {f"head {i + 1}": self.images * m[:, None] for i, m in enumerate(self.maps.unbind(1))}
        return {"image": self.images, **heads}


def attention_of(backbone: Backbone, images: Tensor, index: Tensor) -> Attended | None:
    """The images through the heads of the last block; None for networks without a class token."""
    shares = class_attention(backbone, images)
    if shares is None:
        return None
    shares = shares / shares.amax(dim=(2, 3), keepdim=True)
    maps = F.interpolate(shares, size=images.shape[2:], mode="bilinear", align_corners=False)
    return Attended(images, maps, index)
