"""A narrow transformer that says what stands at some places of a grid, from tokens at other places."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.tokens import Tokens, key_mask


class PatchDecoder(nn.Module):
    """MAE's decoder and I-JEPA's predictor: wanted places start as one learned mask token plus their position.

    Attention does not see the order of tokens, so the seen and the wanted ones are simply put one after the other,
    and only wanted ones are read out.

    Args:
        in_dim, out_dim: widths of the tokens given and of the predictions.
        width, depth, heads: of the transformer. grid: patches a side, for fixed sine-cosine positions.
    """

    positions: Tensor

    def __init__(self, in_dim: int, out_dim: int, *, width: int, depth: int, heads: int, grid: int):
        super().__init__()
        if width % heads or width % 4:
            raise RecipeError(
                f"a decoder of width {width} with {heads} heads: the width must be a multiple of both the heads and 4."
            )
        from timm.models.vision_transformer import Block

        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.register_buffer("positions", sine_cosine(grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.predict = nn.Linear(width, out_dim)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tokens,
        seen: Tensor,
        wanted: Tensor,
        *,
        seen_valid: Tensor | None = None,
        wanted_valid: Tensor | None = None,
    ) -> Tensor:
        """Predictions (B, m, out_dim) at the wanted places.

        Args:
            tokens: prefix (B, P, D), without a position, and patches (B, n, D).
            seen, wanted: places of the patches (B, n) and of the predictions (B, m), 0 .. grid * grid - 1.
            seen_valid, wanted_valid: bool, False on padding; both or none.
        """
        prefix, patches = self.embed(tokens.prefix), self.embed(tokens.patches) + self.positions[seen]
        queries = self.mask_token + self.positions[wanted]
        x = torch.cat([prefix, patches, queries.to(patches.dtype)], dim=1)
        mask = None
        if seen_valid is not None and wanted_valid is not None:
            mask = key_mask(torch.cat([seen_valid, wanted_valid], dim=1), prefix.shape[1])
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.predict(self.norm(x[:, -wanted.shape[1] :]))


def sine_cosine(grid: int, width: int) -> Tensor:
    """Positions of a square grid, in reading order: (grid * grid, width), the first half for rows.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5, for each axis.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).float()
