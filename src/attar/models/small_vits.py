"""Vision transformers of any patch size, for small images: vit_<width>_p<patch>[_reg<n>][_gap].

    vit_micro_p4            128 wide, 6 blocks, 4 heads: for 32 px on a CPU
    vit_tiny_p4             192 wide, 12 blocks, 3 heads; small (384, 6 heads) and base (768, 12) as in
                            Touvron et al. 2021 (DeiT), arXiv:2012.12877, table 1; vit_small_p16 is timm's
                            vit_small_patch16_224 by its weights' names and shapes
    vit_tiny_p4_reg4        with four registers, tokens without a position; Darcet et al. 2024, arXiv:2309.16588. As in
                            timm's DINOv2 networks the class token, a learned vector anyway, then has none of its own
    vit_tiny_p4_gap         without a class token: the features are the mean of the patch tokens

They are timm's VisionTransformer with another patch size, so their weights have timm's names.
"""

from __future__ import annotations

import re

from torch import nn

from attar.errors import BackboneError

EXAMPLES = (
    "vit_micro_p4",
    "vit_micro_p8",
    "vit_tiny_p4",
    "vit_tiny_p8",
    "vit_tiny_p16",
    "vit_small_p8",
    "vit_small_p16",
    "vit_base_p16",
    "vit_tiny_p4_reg4",
    "vit_micro_p4_gap",
    "vit_tiny_p4_gap",
    "vit_small_p16_gap",
)

_SIZES = {"micro": (128, 6, 4), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}


def matches(name: str) -> re.Match[str] | None:
    """Whether a name is one of these."""
    return re.fullmatch(r"vit_(micro|tiny|small|base)_p([1-9]\d*)(?:_reg(\d+))?(_gap)?", name)


def build(name: str, *, channels: int, image_size: int, drop_path: float = 0.0) -> nn.Module | None:
    """The network of that name, or None if it is not one of these.

    Raises:
        BackboneError: the image is not a whole number of patches.
    """
    match = matches(name)
    if match is None:
        return None
    patch = int(match[2])
    if image_size % patch:
        fitting = [size for size in (image_size // patch * patch, (image_size // patch + 1) * patch) if size]
        raise BackboneError(
            f"{name} cuts images into patches of {patch} x {patch} pixels; {image_size} is not a multiple of {patch}. "
            f"Use --image-size {' or '.join(map(str, fitting))}, or another patch size."
        )
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = _SIZES[match[1]]
    registers = int(match[3] or 0)
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        reg_tokens=registers,
        no_embed_class=registers > 0,  # registers have no position; then timm gives the class token none either
        class_token=match[4] is None,
        global_pool="token" if match[4] is None else "avg",
        fc_norm=False,  # the norm stays before the pooling, where the tokens are read
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )
