"""Losses over masked patches. All are means over images of the mean over the masked patches of the image, so an image
with many masked patches counts as much as one with few, and an image without any counts 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.inputs import check_positive, full_precision


@full_precision
def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over masked patches.

    loss = mean_b 1 / |M_b| sum_{n in M_b} mean_d (prediction - target)^2

    Args:
        prediction, target: (B, N, D), D values a patch. The target is detached.
        mask: bool (B, N), True where a patch is predicted.

    Returns:
        Scalar. Zeros against patches normalised by their own mean and (unbiased) deviation: (D - 1) / D.

    Source: He et al. 2022 (MAE), arXiv:2111.06377, section 3.
    """
    _check_patches("masked_mse", prediction, target, mask)
    return _masked_mean((prediction - target.detach()).square().mean(dim=2), mask)


@full_precision
def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over masked patches; arguments as in `masked_mse`. A constant offset d gives |d|.

    Source: Xie et al. 2022 (SimMIM), arXiv:2111.09886, section 3.4.
    """
    _check_patches("masked_l1", prediction, target, mask)
    return _masked_mean((prediction - target.detach()).abs().mean(dim=2), mask)


@full_precision
def masked_smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Huber's loss with threshold 1 over masked patches; arguments as in `masked_mse`.

    Each value gives e^2 / 2 where its error |e| < 1, else |e| - 1/2.

    Source: the published code of I-JEPA, Assran et al. 2023, arXiv:2301.08243; the paper's section 3 has the squared
    distance instead.
    """
    _check_patches("masked_smooth_l1", prediction, target, mask)
    return _masked_mean(F.smooth_l1_loss(prediction, target.detach(), reduction="none").mean(dim=2), mask)


@full_precision
def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Squared error of pixels, each with a weight; what has none is not counted.

    loss = mean_b 1 / |{p : w_bp > 0}| sum_p w_bp mean_c (prediction_bcp - target_bcp)^2

    Args:
        prediction, target: (B, C, H, W). The target is detached.
        weights: (B, 1, H, W), >= 0. Weights of 1 everywhere give the plain mean squared error.

    Source: Pathak et al. 2016, arXiv:1604.07379, eq. 1.
    Differs: the mean over the predicted pixels; the paper writes the sum.
    """
    if prediction.ndim != 4 or prediction.shape != target.shape or prediction.numel() == 0:
        raise ShapeError(
            f"weighted_mse: prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; both must "
            "be (B, C, H, W), equal and not empty."
        )
    B, _, H, W = prediction.shape
    if weights.shape != (B, 1, H, W):
        raise ShapeError(f"weighted_mse: weights have shape {tuple(weights.shape)}; {(B, 1, H, W)} are needed.")
    errors = weights * (prediction - target.detach()).square().mean(dim=1, keepdim=True)
    return (errors.sum(dim=(1, 2, 3)) / (weights > 0).sum(dim=(1, 2, 3)).clamp_min(1)).mean()


@full_precision
def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch minus its mean, divided by its standard deviation (unbiased; 1e-6 is added to the variance).

    Args:
        patches: (..., D), the D pixel values of a patch last.

    Source: MAE's published code; arXiv:2111.06377, section 3.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


@full_precision
def masked_distillation(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor,
    *,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The student must say of a masked patch what the teacher, who sees it, says: DINO's loss, patch by patch.

    loss = mean_b 1 / |M_b| sum_{n in M_b} - sum_k P_bnk log Q_bnk,
    P = softmax((teacher_scores - centre) / teacher_temperature), Q = softmax(student_scores / student_temperature).

    Args:
        student_scores, teacher_scores: (M, K), of the M masked patches only, in the order of `mask.nonzero()`. The
            teacher's are detached here.
        mask: bool (B, N) with M entries True; M may be 0.
        centre: (1, K), subtracted from the teacher's scores only.
        student_temperature, teacher_temperature: > 0.

    Returns:
        Scalar, in nats. Equal scores and temperatures give the mean entropy.

    Source: Zhou et al. 2022 (iBOT), arXiv:2111.07832, eq. 2 (for one view; pass both views as 2B images).
    """
    check_positive(
        "masked_distillation", student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    if student_scores.shape != teacher_scores.shape or student_scores.ndim != 2 or mask.ndim != 2:
        raise ShapeError(
            f"masked_distillation: student scores have shape {tuple(student_scores.shape)}, the teacher's "
            f"{tuple(teacher_scores.shape)}, the mask {tuple(mask.shape)}; (M, K), (M, K) and (B, N) are needed."
        )
    image = mask.nonzero()[:, 0]  # (M,)
    if len(image) != len(student_scores):
        raise ShapeError(
            f"masked_distillation: {len(student_scores)} rows of scores for {len(image)} masked patches; there must be "
            f"one row for each True of the mask."
        )
    targets = torch.softmax((teacher_scores - centre).detach() / teacher_temperature, dim=1)
    cross_entropy = -(targets * torch.log_softmax(student_scores / student_temperature, dim=1)).sum(dim=1)
    return (cross_entropy / mask.sum(dim=1)[image]).sum() / len(mask)


def _masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of the mean over masked patches; errors (B, N)."""
    return ((errors * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


def _check_patches(where: str, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    if prediction.ndim != 3 or prediction.shape != target.shape or prediction.numel() == 0:
        raise ShapeError(
            f"{where}: prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; both must be "
            f"(B, N, D), equal and not empty."
        )
    if mask.shape != prediction.shape[:2] or mask.dtype != torch.bool:
        raise ShapeError(
            f"{where}: mask has shape {tuple(mask.shape)} and type {mask.dtype}; bool {tuple(prediction.shape[:2])} "
            f"is needed, True where a patch is predicted."
        )
