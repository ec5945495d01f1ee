"""Tokens of a vision transformer: embed, mask or drop patches, run the blocks, pool.

For timm's VisionTransformer and the small ones of small_vits.py. Without masks the path is the network's own, number
for number. Images of another size than the network's get interpolated positions (timm's `dynamic_img_size`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attar.errors import BackboneError, ShapeError
from attar.models.backbones import Backbone, build_backbone


class Tokens(NamedTuple):
    """Normed output tokens. prefix: class token, then registers (B, P, D), P may be 0. patches: (B, N, D)."""

    prefix: Tensor
    patches: Tensor

    @property
    def cls(self) -> Tensor:
        """The class token (B, D)."""
        return self.prefix[:, 0]


def check_tokens(backbone: Backbone, method: str, needs: str) -> None:
    """Refuse a backbone whose tokens the method cannot train; `needs` as in `Method.needs_tokens`.

    Raises:
        BackboneError: naming what is accepted.
    """
    network: Any = backbone.network
    name = backbone.spec.name
    if not _is_plain_vit(network):
        raise BackboneError(
            f"{method} masks the patches of a vision transformer, and {name} is none that it can. Accepted: "
            f"{_ACCEPTED[needs]}, and timm's VisionTransformers with a norm before the pooling."
        )
    if needs == "class" and (not network.has_class_token or network.global_pool != "token"):
        raise BackboneError(
            f"{method} trains the class token, and the features of {name} are something else. "
            f"Accepted: {_ACCEPTED[needs]}."
        )
    if needs == "mean" and (network.global_pool != "avg" or getattr(network, "pool_include_prefix", False)):
        raise BackboneError(
            f"{method} trains the patch tokens only, and the features of {name} are its class token, which would "
            f"stay untrained. Use a network whose features are the mean of the patch tokens: {_ACCEPTED[needs]}."
        )


_ACCEPTED = {
    "any": "vit_micro_p4, vit_tiny_p4, vit_small_p16, … (vit_<width>_p<patch>), vit_small_patch16_224, …",
    "class": "vit_micro_p4, vit_tiny_p4, vit_tiny_p4_reg4, … (vit_<width>_p<patch>), vit_small_patch16_224, …",
    "mean": "vit_micro_p4_gap, vit_tiny_p4_gap, vit_small_p16_gap, … (vit_<width>_p<patch>_gap), "
    "vit_base_patch16_gap_224, …",
}


def _is_plain_vit(network: nn.Module) -> bool:
    """timm's own class, not one derived from it, all of whose weights lie before the pooling."""
    from timm.models.vision_transformer import VisionTransformer

    if type(network) is not VisionTransformer or isinstance(network.norm, nn.Identity):
        return False
    return not any(True for part in ("attn_pool", "fc_norm", "head") for _ in _parameters(getattr(network, part)))


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def patch_size(backbone: Backbone) -> int:
    """Side of a patch in pixels; 1 for networks without (square) patches."""
    size = getattr(getattr(backbone.network, "patch_embed", None), "patch_size", None)
    return int(size[0]) if isinstance(size, tuple) and size[0] == size[1] else 1


def is_transformer(name: str, *, image_size: int, stem: str = "standard") -> bool:
    """Is a network of this name trained as vision transformers are, not as ResNets? Its weights are not made.

    Those with patches, with more norms over channels than batch norms (ConvNeXt and PoolFormer too), or with most of
    their weights in linear layers (LeViT, mixers), whatever comes after the pooling; not ResNets with some attention
    between their convolutions.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, image_size=image_size, stem=stem)
    body = [module for path, module in backbone.named_modules() if ".head." not in f"{path}."]
    over_channels = sum(_norms_channels(m) for m in body)
    linear = sum(m.weight.numel() for m in body if isinstance(m, nn.Linear))
    total = sum(p.numel() for m in body for p in m.parameters(recurse=False))
    return (
        patch_size(backbone) > 1 or over_channels > sum(isinstance(m, _BatchNorm) for m in body) or 2 * linear > total
    )


def _norms_channels(module: nn.Module) -> bool:
    """Layer norm, group norm of a single group, or RMS norm, of which there are several classes."""
    one_group = isinstance(module, nn.GroupNorm) and module.num_groups == 1
    return isinstance(module, nn.LayerNorm) or one_group or type(module).__name__.lower().startswith("rmsnorm")


def embed(
    backbone: Backbone, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None
) -> Tokens:
    """Input tokens: patch embeddings, with positions and prefix tokens, as they enter the first block.

    masked: bool (B, N), True where mask_token (D values) takes the place of the patch's embedding; its position stays.
    """
    network: Any = backbone.network
    x = network.patch_embed(images)  # (B, H, W, D) with dynamic sizes, else (B, N, D)
    if masked is not None and mask_token is not None:
        if masked.shape != (len(x), x[0, ..., 0].numel()):
            raise ShapeError(
                f"embed: masked has shape {tuple(masked.shape)}; the images have {x[0, ..., 0].numel()} patches, so "
                f"({len(x)}, {x[0, ..., 0].numel()}) is needed."
            )
        x = torch.where(masked.view(*x.shape[:-1], 1), mask_token.to(x.dtype).view(-1), x)
    x = network._pos_embed(x)
    x = network.norm_pre(network.patch_drop(x))
    return Tokens(x[:, : network.num_prefix_tokens], x[:, network.num_prefix_tokens :])


def run_blocks(backbone: Backbone, tokens: Tokens, *, valid: Tensor | None = None) -> Tokens:
    """Blocks and final norm. valid: bool (B, N), False for padding, which no token then attends to.

    A block is computed again in the backward pass where the backbone is told to (`checkpoint_activations`).
    """
    network: Any = backbone.network
    x = torch.cat(tokens, dim=1)
    num_prefix = tokens.prefix.shape[1]
    mask = None if valid is None else key_mask(valid, num_prefix)
    for block in network.blocks:
        if backbone.recomputes:
            x = checkpoint(block, x, attn_mask=mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    x = network.norm(x)
    return Tokens(x[:, :num_prefix], x[:, num_prefix:])


def tokens_of(
    backbone: Backbone, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None
) -> Tokens:
    """Output tokens of images, masked patches replaced at the input (see `embed`)."""
    return run_blocks(backbone, embed(backbone, images, masked=masked, mask_token=mask_token))


def pool(backbone: Backbone, tokens: Tokens) -> Tensor:
    """The features (B, D) that the backbone makes of these tokens; of all tokens, what `backbone(images)` gives."""
    network: Any = backbone.network
    return network.forward_head(torch.cat(tokens, dim=1))


@torch.no_grad()
def class_attention(backbone: Backbone, images: Tensor) -> Tensor | None:
    """Where the class token of the last block looks: (B, heads, H', W'), shares of its attention to the patches.

    None for networks without a class token, and for those whose blocks are not timm's plain ones.
    Source: Caron et al. 2021, arXiv:2104.14294, figure 1.
    """
    network: Any = backbone.network
    if not _is_plain_vit(network) or not network.has_class_token:
        return None
    x = torch.cat(embed(backbone, images), dim=1)
    for block in network.blocks[:-1]:
        x = block(x)
    attention = network.blocks[-1].attn
    normed = network.blocks[-1].norm1(x)
    qkv = attention.qkv(normed).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
    q, k = attention.q_norm(qkv[0][:, :, :1]), attention.k_norm(qkv[1])
    shares = (attention.scale * q @ k.transpose(2, 3)).softmax(dim=3)[:, :, 0, network.num_prefix_tokens :]
    rows = images.shape[2] // patch_size(backbone)
    return shares.unflatten(2, (rows, -1)).float()


def key_mask(valid: Tensor, num_prefix: int = 0) -> Tensor:
    """What timm's attention takes: bool (B, 1, 1, P + N), True where a token may be attended to."""
    return nn.functional.pad(valid, (num_prefix, 0), value=True)[:, None, None]


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """tokens (B, N, D) at indices (B, n): (B, n, D)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def indices_of(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row, in order, padded to the longest row.

    Args:
        chosen: bool (B, N), at least one True.

    Returns:
        indices (B, n), n the largest count; valid bool (B, n), False on padding.
    """
    counts = chosen.sum(dim=1)
    longest = int(counts.max())
    indices = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    return indices, torch.arange(longest, device=chosen.device) < counts[:, None]


def patchify(images: Tensor, size: int) -> Tensor:
    """The pixels of each patch, channels last: (B, C, H, W) -> (B, N, size * size * C), N in reading order."""
    channels = images.shape[1]
    rows, columns = images.shape[2] // size, images.shape[3] // size
    split = images.view(len(images), channels, rows, size, columns, size)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(len(images), rows * columns, size * size * channels)
