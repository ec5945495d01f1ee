"""Schedules as pure functions of (recipe, step, total_steps). Per-method schedules live in the method's file."""

from __future__ import annotations

import math

from attar.methods.base import Recipe


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from start (fraction 0) to end (fraction 1).

    >>> cosine(1.0, 0.0, 0.5)
    0.5
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Linear warm-up to peak_lr, then the recipe's schedule (a cosine: num_cycles times) over what remains.

    Warm-up lasts warmup_fraction * total_steps updates; update 0 already learns (its rate is peak / warm-up).
    """
    warmup = round(recipe.warmup_fraction * total_steps)
    if step < warmup:
        return recipe.peak_lr * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.peak_lr
    if recipe.schedule == "step":
        passed = sum(step >= drop * total_steps for drop in recipe.lr_drops)
        return recipe.peak_lr * recipe.lr_drop_factor**passed
    if recipe.schedule == "linear":
        done = (step - warmup) / max(total_steps - warmup, 1)
        return recipe.peak_lr + (recipe.final_lr - recipe.peak_lr) * done
    return cosine(recipe.peak_lr, recipe.final_lr, recipe.cycle(step, total_steps)[1])


def weight_decay(recipe: Recipe, step: int, total_steps: int) -> float:
    """Constant, or a cosine from weight_decay to weight_decay_end."""
    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    return cosine(recipe.weight_decay, recipe.weight_decay_end, step / max(total_steps, 1))
