"""The schedule of a momentum teacher that ends as the mean of the student's last weights (BYOL, DINO, MoCo v3)."""

from __future__ import annotations

import math

from attar.methods.base import Progress


def cosine_to_one(momentum: float, progress: Progress) -> float:
    """1 - (1 - momentum) (1 + cos(pi * step / total_steps)) / 2: from `momentum` at the first step towards 1.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.2.

    >>> [round(cosine_to_one(0.996, Progress(step, 4, 0, 1)), 7) for step in range(4)]
    [0.996, 0.9965858, 0.998, 0.9994142]
    """
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress.fraction)) / 2
