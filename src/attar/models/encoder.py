"""A backbone with its own input normalisation: what a person deploys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import ShapeError
from attar.models.backbones import Backbone


class Encoder(nn.Module):
    """Pixels in [0, 1] -> features. Normalisation is inside, so that it cannot be forgotten or differ.

    image: the size, channels and statistics the backbone was trained with. num_features: width of the features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, image: ImageSpec):
        super().__init__()
        self.backbone = backbone
        self.image = image
        self.num_features = backbone.num_features
        self.register_buffer("mean", torch.tensor(image.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), float in [0, 1], C as in `image`.

        Raises:
            ShapeError: another number of channels or dimensions, or integer pixels.
        """
        if images.ndim != 4 or images.shape[1] != self.image.channels or not images.is_floating_point():
            raise ShapeError(
                f"load(): expected float pixels in [0, 1] of shape (B, {self.image.channels}, {self.image.size}, "
                f"{self.image.size}), got {images.dtype} {tuple(images.shape)}."
            )
        return self.backbone((images - self.mean) / self.std)
