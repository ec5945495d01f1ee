"""Losses without negatives that keep embeddings apart by their statistics over the batch: decorrelated dimensions
(Barlow Twins, VICReg) or an isotropic Gaussian cloud (SIGReg of LeJEPA). Statistics are of the joined batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import gather_rows
from attar.losses.inputs import check_pair, check_positive, check_width, full_precision

_BARLOW_EPSILON = 1e-5  # of the batch norm that standardises the embeddings in the published code
_VICREG_EPSILON = 1e-4  # section 4.1


def barlow_twins(z1: Tensor, z2: Tensor, *, redundancy_weight: float) -> Tensor:
    """The correlation of dimension i in view 1 and j in view 2 must be 1 for i = j, and 0 otherwise.

    loss = sum_i (C_ii - 1)^2 + redundancy_weight * sum_{i != j} C_ij^2,
    C = a^T b / B, where a, b are z1, z2 with every dimension standardised over the batch (biased variance + 1e-5).

    Args:
        z1, z2: embeddings of the two views, row i from the same image. (B, E), any scale and shift of a dimension.
            Across processes, pass local rows; they are gathered, with gradient.
        redundancy_weight: lambda. Paper: 0.0051 (published command), 0.005 (text).

    Returns:
        Scalar, a sum over E + E (E - 1) entries; 0 for equal views with uncorrelated dimensions, 4E for z2 = -z1.

    Raises:
        ShapeError: if the shapes differ or B * world_size < 2.

    Source: Zbontar et al. 2021, arXiv:2103.03230, eq. 1 and algorithm 1.
    """
    invariance, redundancy = barlow_twins_terms(z1, z2)
    return invariance + redundancy_weight * redundancy


@full_precision
def barlow_twins_terms(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums of `barlow_twins`, unweighted: over the diagonal and over the rest."""
    check_pair("barlow_twins", z1, z2, ("z1", "z2"))
    a, b = (_standardised(_several_rows("barlow_twins", z)) for z in (z1, z2))
    correlation = a.T @ b / len(a)  # (E, E)
    return (correlation.diagonal() - 1).pow(2).sum(), _sum_off_diagonal_squares(correlation)


def vicreg(
    z1: Tensor, z2: Tensor, *, similarity_weight: float, variance_weight: float, covariance_weight: float
) -> Tensor:
    """Views close, every dimension spread by at least 1, no two dimensions correlated.

    loss = similarity_weight * s + variance_weight * v + covariance_weight * c
    s = mean over rows and dimensions of (z1 - z2)^2
    v = mean over views and dimensions of max(0, 1 - sqrt(Var_d + 1e-4)),   Var with B - 1
    c = sum over views of  1/E sum_{i != j} Cov_ij^2,   Cov with B - 1

    Args:
        z1, z2: embeddings of the two views, row i from the same image. (B, E); their scale matters, do not normalise.
            Across processes, pass local rows; for v and c they are gathered, with gradient.
        similarity_weight, variance_weight, covariance_weight: paper: 25, 25, 1.

    Returns:
        Scalar >= 0. Constant embeddings give 0.99 * variance_weight.

    Raises:
        ShapeError: if the shapes differ or B * world_size < 2.

    Source: Bardes et al. 2022, arXiv:2105.04906, eq. 1 to 6.
    Differs: equation 6 adds the variance terms of both views; the published code takes their mean, as here. Double
        variance_weight for the paper's sum. Equation 5 sums s over dimensions; the paper's algorithm 1 and its code
        take the mean, as here.
    """
    similarity, variance, covariance = vicreg_terms(z1, z2)
    return similarity_weight * similarity + variance_weight * variance + covariance_weight * covariance


@full_precision
def vicreg_terms(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s, v and c of `vicreg`, unweighted. s is the local mean, v and c are those of the joined batch."""
    check_pair("vicreg", z1, z2, ("z1", "z2"))
    similarity = (z1 - z2).pow(2).mean()
    variance, covariance = z1.new_zeros(()), z1.new_zeros(())
    for z in (z1, z2):
        rows = _several_rows("vicreg", z)
        centred = rows - rows.mean(dim=0)
        matrix = centred.T @ centred / (len(rows) - 1)  # (E, E)
        spread = (matrix.diagonal() + _VICREG_EPSILON).sqrt()
        variance = variance + F.relu(1 - spread).mean() / 2
        covariance = covariance + _sum_off_diagonal_squares(matrix) / len(matrix)
    return similarity, variance, covariance


@full_precision
def sigreg(embeddings: Tensor, directions: Tensor, *, max_frequency: float = 3.0, num_knots: int = 17) -> Tensor:
    """Sketched isotropic Gaussian regularisation: along every direction, embeddings must be distributed as N(0, 1).

    loss = mean over directions a of  N  integral_{-T}^{T} |phi_a(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt
    phi_a(t) = mean_n exp(i t <a, z_n>), the empirical characteristic function (the statistic of Epps and Pulley)

    Args:
        embeddings: z, (B, E); their scale matters, do not normalise. Across processes, pass local rows: phi and N
            are those of the joined batch.
        directions: (M, E), the slices, any length (normalised here), the same on every process, new in every step.
            No gradient.
        max_frequency, num_knots: T, and the points of the trapezoid rule on [0, T]; the integrand is even.

    Returns:
        Scalar >= 0. On average 1.053 for rows that are N(0, I), whatever B; 0.4022 B when all rows are 0.

    Raises:
        ShapeError: if embeddings are not (B, E), or directions not (M, E).
        RecipeError: if max_frequency <= 0 or num_knots < 2.

    Source: Balestriero and LeCun 2025, arXiv:2511.08544, algorithm 1; Epps and Pulley 1983.
    Differs: the paper's listing integrates over [-5, 5] with 17 knots; the published code over [0, 3], twice, as here.
    """
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ShapeError(f"sigreg: embeddings have shape {tuple(embeddings.shape)}; they must be (B, E), not empty.")
    check_width("sigreg", directions, "directions", embeddings.shape[1])
    check_positive("sigreg", max_frequency=max_frequency, num_intervals=num_knots - 1)
    slices = F.normalize(directions.detach().to(embeddings), dim=1)
    t = torch.linspace(0, max_frequency, num_knots, dtype=embeddings.dtype, device=embeddings.device)
    gaussian = torch.exp(-t.square() / 2)  # the characteristic function of N(0, 1), and the weight
    angles = (embeddings @ slices.T)[:, :, None] * t  # (B, M, knots)
    # Sums, not rows, travel between processes: they do not grow with the batch
    sums = gather_rows(torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])[None]).sum(dim=0)
    num_rows = gather_rows(t.new_tensor([len(embeddings)])).sum()
    real, imaginary = sums / num_rows
    error = (real - gaussian).square() + imaginary.square()
    return num_rows * 2 * torch.trapezoid(error * gaussian, t, dim=1).mean()


def _several_rows(where: str, z: Tensor) -> Tensor:
    """The rows of all processes, at least two."""
    rows = gather_rows(z)
    if len(rows) < 2:
        raise ShapeError(f"{where}: one row of shape {tuple(z.shape)} has no variance; pass at least 2 rows.")
    return rows


def _standardised(rows: Tensor) -> Tensor:
    """Every dimension with mean 0 and (biased) variance 1."""
    centred = rows - rows.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + _BARLOW_EPSILON).rsqrt()


def _sum_off_diagonal_squares(matrix: Tensor) -> Tensor:
    return matrix.square().fill_diagonal_(0.0).sum()
