"""ColourBins: the ab plane of Lab in cells, so that a colour is a class; how rare each is; and back to a colour."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from attar.errors import RecipeError, ShapeError
from attar.views.colour import rgb_to_lab

SPACING = 10.0  # of the grid on ab; Zhang et al. 2016, section 2.1


class ColourBins(nn.Module):
    """Grid points of the ab plane that sRGB can show, with a weight for each.

    Args:
        counts: of pixels for each bin, in the order of `gamut_bins()`, (Q,).
        neighbours, sigma: a colour is shared among so many nearest bins, by a Gaussian of this width in ab units. The
            same width smooths the counts.
        uniform: share of the uniform distribution in what the weights are the inverse of, in [0, 1]: 1 weighs all
            alike, 0 by rarity alone.

    centres: (Q, 2). prior: (Q,), the smoothed share of each. weights: (Q,), with sum_q prior_q weights_q = 1.
    """

    centres: Tensor
    prior: Tensor
    weights: Tensor

    def __init__(self, counts: Tensor, *, neighbours: int, sigma: float, uniform: float):
        super().__init__()
        centres = gamut_bins()
        if counts.shape != (len(centres),):
            raise ShapeError(f"ColourBins: counts have shape {tuple(counts.shape)}; ({len(centres)},) are needed.")
        if not 1 <= neighbours <= len(centres):
            raise RecipeError(f"neighbours={neighbours} is not accepted; give a number from 1 to {len(centres)}.")
        if not sigma > 0:
            raise RecipeError(f"sigma={sigma} is not accepted; give a width above 0, in units of ab, e.g. 5.")
        if not 0 <= uniform <= 1:
            raise RecipeError(f"uniform_share={uniform} is not accepted; give a number from 0 to 1.")
        self.neighbours, self.sigma = neighbours, sigma
        prior = smoothed(counts, centres, sigma)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("prior", prior)
        self.register_buffer("weights", rarity_weights(prior, uniform=uniform))

    def __len__(self) -> int:
        return len(self.centres)

    @torch.no_grad()
    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """The K nearest bins of each colour, nearest first, and the share of each; (B, 2, H, W) -> twice (B, K, H, W).

        share_k ~ exp(-d_k^2 / (2 sigma^2)), d_k the distance to the k-th bin; they sum to 1.
        """
        colours = ab.float().movedim(1, -1)  # (B, H, W, 2)
        distance, numbers = torch.cdist(colours.reshape(-1, 2), self.centres).topk(self.neighbours, largest=False)
        shares = torch.softmax(-distance.square() / (2 * self.sigma**2), dim=1)
        shape = (*colours.shape[:-1], self.neighbours)
        return numbers.view(shape).movedim(-1, 1), shares.view(shape).movedim(-1, 1)

    def decode(self, logits: Tensor, *, temperature: float) -> Tensor:
        """The annealed mean: the mean colour under softmax(logits / temperature); (B, Q, H, W) -> (B, 2, H, W).

        Temperature 1 is the mean, which is pale where colours compete; towards 0 it becomes the likeliest bin.
        """
        share = torch.softmax(logits.float() / temperature, dim=1)
        return torch.einsum("bqhw,qc->bchw", share, self.centres)


@lru_cache(maxsize=1)
def gamut_bins() -> Tensor:
    """Corners of every grid cell of the ab plane that holds a colour of sRGB, (Q, 2), ordered by a, then b.

    Colours of one a and b form a line through the RGB cube, which enters it through a face; so the faces hold them all.
    """
    level = torch.linspace(0, 1, 256)
    face = torch.stack(torch.meshgrid(level, level, torch.tensor([0.0, 1.0]), indexing="ij")).reshape(1, 3, -1, 1)
    keys = []
    for turn in range(3):
        cell = (rgb_to_lab(face.roll(turn, dims=1))[0, 1:, :, 0] / SPACING).floor().long() + 50  # (2, colours)
        keys.append((1000 * cell[0] + cell[1]).unique())
    lower = torch.cat(keys).unique()
    corners = torch.cat([lower + 1000 * i + j for i in (0, 1) for j in (0, 1)]).unique()
    return SPACING * torch.stack([corners // 1000 - 50, corners % 1000 - 50], dim=1).float()


def nearest_bins(ab: Tensor) -> Tensor:
    """Number of the nearest bin of each colour, (N, 2) -> (N,)."""
    return torch.cdist(ab.float(), gamut_bins().to(ab.device)).argmin(dim=1)


def smoothed(counts: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """Shares of the bins after each has given of its own to its neighbours, by a Gaussian; they sum to 1. (Q,)"""
    gives = torch.exp(-torch.cdist(centres.double(), centres.double()).square() / (2 * sigma**2))
    gives = gives / gives.sum(dim=0)  # column q: where the mass of bin q goes
    prior = gives @ counts.double()
    return (prior / prior.sum()).float()


def rarity_weights(prior: Tensor, *, uniform: float) -> Tensor:
    """w_q ~ 1 / ((1 - uniform) p_q + uniform / Q), scaled so that sum_q p_q w_q = 1.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 4.
    Differs: a bin without mass (a share below float32's rounding, a pixel in eight million) has weight 0 where it has
    no uniform share either; by the formula it would be infinite.
    """
    share = (1 - uniform) * prior.double() + uniform / len(prior)
    weights = torch.where(share > torch.finfo(torch.float32).eps, 1 / share, 0.0)
    return (weights / (prior.double() * weights).sum()).float()
