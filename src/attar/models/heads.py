"""Heads: what stands between a backbone and a loss, and is thrown away after training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError, unknown_name
from attar.losses.inputs import full_precision

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
NORMS = (None, "batch", "batch_no_shift", "batch_no_affine")


class MLP(nn.Sequential):
    """Linear layers with a norm and an activation after each but the last.

    Args:
        dims: widths from input to output, at least two.
        norm: "batch" or None, after every hidden layer. activation: "relu" or "gelu".
        final_norm: after the last layer: None, "batch", "batch_no_shift" (scale only, SimCLR) or
            "batch_no_affine" (MoCo v3).
        bias, final_bias: of the hidden layers and of the last one.

    `spec` holds these arguments as JSON, and `from_spec` builds the same shape again.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        norm: str | None = "batch",
        activation: str = "relu",
        final_norm: str | None = None,
        bias: bool = True,
        final_bias: bool = True,
    ):
        if len(dims) < 2 or min(dims) < 1:
            raise RecipeError(f"MLP: dims={list(dims)}; give at least an input and an output width, all >= 1.")
        if activation not in ACTIVATIONS:
            raise RecipeError("MLP: " + unknown_name("activation", activation, ACTIVATIONS))
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(itertools.pairwise(dims)):
            last = i == len(dims) - 2
            layers.append(nn.Linear(width_in, width_out, bias=final_bias if last else bias))
            layers += _norm(final_norm if last else norm, width_out)
            if not last:
                layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers)
        self.num_features_out = dims[-1]
        self.spec: dict[str, Any] = {
            "dims": list(dims),
            "norm": norm,
            "activation": activation,
            "final_norm": final_norm,
            "bias": bias,
            "final_bias": final_bias,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> MLP:
        return cls(**spec)


def _norm(name: str | None, width: int) -> list[nn.Module]:
    if name not in NORMS:
        raise RecipeError("MLP: " + unknown_name("norm", str(name), [str(n) for n in NORMS]))
    if name is None:
        return []
    if name == "batch_no_affine":
        return [nn.BatchNorm1d(width, affine=False)]
    norm = nn.BatchNorm1d(width)
    if name == "batch_no_shift":
        norm.bias.requires_grad_(False)  # stays 0: a scale, but no shift
    return [norm]


class DINOHead(nn.Module):
    """MLP with GELU, L2-normalised bottleneck, then scores against unit prototypes.

    Source: Caron et al. 2021, arXiv:2104.14294, section 3 and appendix C. The released code writes the last layer as
    a weight-normalised Linear with its gain fixed to 1; that is a Linear whose rows are normalised, as here.

    Args:
        in_dim, num_prototypes: widths D and K. hidden_dim, bottleneck_dim: of the three-layer MLP.
        norm: "batch" for convnets, None for ViTs.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm: str | None = None,
    ):
        super().__init__()
        self.mlp = MLP([in_dim, hidden_dim, hidden_dim, bottleneck_dim], norm=norm, activation="gelu")
        self.last_layer = nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.num_features_out = num_prototypes

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, K) of features (B, D), each in [-1, 1]."""
        return self.scores(self.embedding(features))

    def embedding(self, features: Tensor) -> Tensor:
        """The bottleneck: unit vectors (..., E) of features (..., D); without batch norm, of tokens (B, N, D) too."""
        return F.normalize(self.mlp(features), dim=-1)

    def scores(self, embedding: Tensor) -> Tensor:
        """(..., K), float32 or better; linear, so the scores of a mean embedding are the mean of the scores."""
        return _cosines(embedding, self.last_layer.weight)


@full_precision
def _cosines(embedding: Tensor, weight: Tensor) -> Tensor:
    """Of unit embeddings with rows of any length; a softmax divides them by 0.04, for which 8 bits are too few."""
    return F.linear(embedding, F.normalize(weight, dim=1))
