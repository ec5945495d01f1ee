"""May a network that was trained on images of one size look at another one? (`--test-size`, `--teacher-size`)"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from attar.errors import BackboneError
from attar.models.backbones import Backbone, BackboneSpec, build_backbone


@functools.cache
def check_other_size(spec: BackboneSpec, size: int, *, option: str = "--test-size") -> None:
    """Raises BackboneError if the same weights do not make the same network for images of `size` pixels.

    Both networks are built; positions of transformers have other shapes then, and windows (Swin, MaxViT) or strides
    that follow the size show in the features.
    """

    def build(spec: BackboneSpec) -> Backbone:
        return build_backbone(spec.name, channels=spec.channels, image_size=spec.image_size, stem=spec.stem).eval()

    trained = build(spec)
    try:
        tested = build(replace(spec, image_size=size))
    except BackboneError:
        raise BackboneError(
            f"{option} {size}: {spec.name} cannot take images of {size} pixels. Leave it out, or take another size."
        ) from None
    if not _same(trained, tested):
        raise BackboneError(
            f"{option} {size}: {spec.name} has weights that belong to images of {spec.image_size} pixels. Leave it "
            "out, or take a convnet."
        )


@torch.no_grad()
def _same(trained: Backbone, tested: Backbone) -> bool:
    generator = torch.Generator().manual_seed(0)

    def moved(name: str, value: torch.Tensor) -> torch.Tensor:  # so that blocks which begin as nothing show, too
        if not value.is_floating_point() or "running_" in name:
            return value
        inputs = value[0].numel() if value.ndim > 1 else 1  # by their root, or deep networks overflow
        return value + 0.1 * torch.randn(value.shape, generator=generator) / inputs**0.5

    state = {name: moved(name, value) for name, value in trained.state_dict().items()}
    if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in tested.state_dict().items()}:
        return False
    for backbone in (trained, tested):
        backbone.load_state_dict(state)
    spec = tested.spec
    pixels = 2 * spec.channels * spec.image_size**2
    images = torch.linspace(-1, 1, pixels).sin().view(2, spec.channels, spec.image_size, spec.image_size)
    try:
        return torch.allclose(trained(images), tested(images), rtol=1e-3, atol=1e-5)
    except Exception:  # windows that do not divide its maps, and the like
        return False
