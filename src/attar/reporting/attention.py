"""What a vision transformer looks at: images shown through the attention of its class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attar.models.backbones import Backbone
from attar.models.tokens import class_attention


@dataclass
class Attended:
    """images: (B, C, H, W), normalised. maps: (B, heads, H, W), from 0 where a head looks least to 1 where most."""

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
    low, high = shares.amin(dim=(2, 3), keepdim=True), shares.amax(dim=(2, 3), keepdim=True)
    shares = (shares - low) / (high - low).clamp_min(1e-12)
    maps = F.interpolate(shares, size=images.shape[2:], mode="bilinear", align_corners=False)
    return Attended(images, maps, index)
