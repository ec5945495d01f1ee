"""Losses that carry more than a teacher's answers to a student: where it looks, and how its samples lie to each other.

The teacher never gets a gradient. Reduction: mean over places, pairs or triples, and over samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.inputs import full_precision


@full_precision
def attention_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The student must look where the teacher looks, whatever their widths.

    Q(A) = the mean over channels of A^2, flattened to H W places, normalised to unit length
    loss = mean_i mean_p ( Q(S_i)_p - Q(T_i)_p )^2

    Args:
        student_map, teacher_map: (B, C, H, W) and (B, C', H', W'), row i of both from the same image. Where the sizes
            differ, the energies of both are averaged to the smaller one.

    Returns:
        Scalar >= 0; 0 for equal maps, also if one is scaled. At most 2 / (H W), as both are unit vectors.

    Raises:
        ShapeError: if these are no maps of the same images.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1, eq. 2 with p = 2.
    Differs: the paper writes the norm of the difference, its published code the mean square, as here; their weight
    1000 belongs to the mean.
    """
    if student_map.ndim != 4 or teacher_map.ndim != 4 or len(student_map) != len(teacher_map) or not len(student_map):
        raise ShapeError(
            f"attention_transfer: student_map has shape {tuple(student_map.shape)} and teacher_map "
            f"{tuple(teacher_map.shape)}; both must be maps (B, C, H, W) of the same images."
        )
    height = min(student_map.shape[2], teacher_map.shape[2])
    width = min(student_map.shape[3], teacher_map.shape[3])
    s, t = (
        F.normalize(F.adaptive_avg_pool2d(x.square().mean(dim=1, keepdim=True), (height, width)).flatten(1), dim=1)
        for x in (student_map, teacher_map.detach())
    )
    return (s - t).square().mean()


@full_precision
def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Pairs must lie as far apart in the student as in the teacher, each in units of its own mean distance.

    d_ij = |x_i - x_j| / mu,  mu = mean of |x_i - x_j| over pairs of different rows;  loss = mean_ij huber(d^S - d^T)

    Args:
        student, teacher: (B, D) and (B, D'), row i of both from the same sample. Across processes, pass local rows;
            the others are gathered.

    Returns:
        Scalar >= 0: mean over all B^2 ordered pairs, a row with itself included (it adds 0). Huber's delta is 1.

    Raises:
        ShapeError: fewer than 2 rows in all, or different numbers of rows.

    Source: Park et al. 2019, arXiv:1904.05068, eq. 5 to 8.
    """
    own, everyone = _rows("relational_distance", student, teacher)
    s, t = (_distances(x) for x in everyone)
    return F.smooth_l1_loss(s[own], t[own])


@full_precision
def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Triples must make the same angles in the student as in the teacher.

    c_ijk = < n(x_i - x_j), n(x_k - x_j) >,  n(v) = v / |v|;  loss = mean_jik huber(c^S - c^T)

    Args:
        student, teacher: as for `relational_distance`. Memory grows with B^3.

    Returns:
        Scalar in [0, 1.5]: mean over all B^3 ordered triples, degenerate ones included (they add 0).

    Raises:
        ShapeError: as `relational_distance`.

    Source: Park et al. 2019, arXiv:1904.05068, eq. 9 and 10.
    """
    own, everyone = _rows("relational_angle", student, teacher)
    s, t = (_cosines(x, own) for x in everyone)
    return F.smooth_l1_loss(s, t)


def _rows(where: str, student: Tensor, teacher: Tensor) -> tuple[slice, tuple[Tensor, Tensor]]:
    """This process' rows, and those of all."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ShapeError(
            f"{where}: student has shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}; both must be "
            "(B, D), of any widths, row i of both from the same sample."
        )
    everyone = gather_rows(student), gather_rows(teacher.detach())
    if len(everyone[0]) < 2:
        raise ShapeError(f"{where}: {len(everyone[0])} row in all; relations need at least 2.")
    first = first_own_row(len(student))
    return slice(first, first + len(student)), everyone


def _distances(x: Tensor) -> Tensor:
    """(B, B) in units of the mean over different rows; equal rows have a distance and a slope of 0."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / (distance > 0).sum().clamp_min(1)
    return distance / mean.clamp_min(torch.finfo(x.dtype).eps)


def _cosines(x: Tensor, vertices: slice) -> Tensor:
    """(V, B, B): the angles at each vertex between the directions to all other rows."""
    directions = F.normalize(_differences(x[vertices], x), dim=2)
    return directions @ directions.transpose(1, 2)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    return b[None] - a[:, None]
