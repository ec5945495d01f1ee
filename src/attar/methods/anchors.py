"""What a teacher really says where similarities to anchors are distilled (SEED, CompRess, foundation)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def teacher_says(student_logits: Tensor, teacher_logits: Tensor, *, teacher_temperature: float) -> dict[str, Tensor]:
    """Metrics of one step, of similarities (B, N) to the same N anchors.

    teacher_entropy: of the soft targets, in nats; near 0 they are a hard label, near log N they say nothing.
    top1_agreement: share of images whose nearest anchor is the same for both.
    """
    targets = torch.softmax(teacher_logits.float() / teacher_temperature, dim=1)
    return {
        "teacher_entropy": torch.special.entr(targets).sum(dim=1).mean(),
        "top1_agreement": (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean(),
    }


@torch.no_grad()
def probability_of(columns: Tensor, teacher_logits: Tensor, *, teacher_temperature: float) -> Tensor:
    """Mean probability that the teacher gives to one anchor of each row. columns: (B,)."""
    targets = torch.softmax(teacher_logits.float() / teacher_temperature, dim=1)
    return targets.gather(1, columns[:, None]).mean()
