"""May a network that was trained on images of one size look at another one? (`--test-size`, `--teacher-size`)"""

from __future__ import annotations

from dataclasses import replace

import torch

from attar.errors import BackboneError
from attar.models.backbones import Backbone, BackboneSpec, build_backbone


def check_other_size(spec: BackboneSpec, size: int, *, option: str = "--test-size") -> None:
    """Raises BackboneError if the same weights do not make the same network for images of `size` pixels.

    Both networks are built; positions of transformers have other shapes then, and windows (Swin, MaxViT) or strides
    that follow the size show in the features.
    """

    def build(spec: BackboneSpec) -> Backbone:
        return build_backbone(spec.name, channels=spec.channels, image_size=spec.image_size, stem=spec.stem).eval()

    with torch.random.fork_rng(devices=[]):
        trained = build(spec)
        try:
            tested = build(replace(spec, image_size=size))
        except BackboneError as error:
            raise BackboneError(f"{option} {size}: {error}") from None
    if not _same(trained, tested):
        raise BackboneError(
            f"{option} {size}: {spec.name} has weights that belong to images of {spec.image_size} pixels. Leave it "
            "out, or take a convnet."
        )


@torch.no_grad()
def _same(trained: Backbone, tested: Backbone) -> bool:
    shapes = [{name: value.shape for name, value in b.state_dict().items()} for b in (trained, tested)]
    if shapes[0] != shapes[1]:
        return False
    tested.load_state_dict(trained.state_dict())
    spec = tested.spec
    pixels = 2 * spec.channels * spec.image_size**2
    images = torch.linspace(-1, 1, pixels).sin().view(2, spec.channels, spec.image_size, spec.image_size)
    try:
        return torch.allclose(trained(images), tested(images), rtol=1e-3, atol=1e-5)
    except Exception:  # windows that do not divide its maps, and the like
        return False
