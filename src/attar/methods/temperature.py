"""The schedule of a teacher's temperature that rises at the start of training (DINO, iBOT, DINOv2)."""

from __future__ import annotations

from attar.methods.base import Progress


def rising_temperature(start: float, end: float, fraction: float, progress: Progress) -> float:
    """Rises from epoch to epoch, its last value reached in the last epoch of this fraction of training.

    >>> [round(rising_temperature(0.04, 0.07, 0.3, Progress(epoch, 10, epoch, 10)), 3) for epoch in range(4)]
    [0.04, 0.055, 0.07, 0.07]
    """
    warmup_epochs = round(fraction * progress.total_epochs)
    if progress.epoch >= warmup_epochs - 1:
        return end
    return start + (end - start) * progress.epoch / (warmup_epochs - 1)
