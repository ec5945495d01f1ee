"""Instance discrimination against a memory bank, as InstDisc, PIRL and CMC have it: common settings, one loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attar.errors import RecipeError
from attar.losses import info_nce, instance_softmax, nce, nce_partition
from attar.methods.base import Recipe, Setup
from attar.models.memory_bank import MemoryBank

logger = logging.getLogger("attar")

_FEW_STEPS = 1000  # an epoch; below, NCE and its bank were seen to chase each other


@dataclass(frozen=True, kw_only=True)
class MemoryRecipe(Recipe):
    """Settings of methods with a memory bank.

    objective: "nce" tells the own row from K drawn ones, each by itself, with a fixed Z; "softmax" picks it among
    them. num_negatives: K, drawn anew each step; None: all rows, with "softmax" only.
    """

    objective: Literal["nce", "softmax"]
    num_negatives: int | None
    temperature: float
    bank_momentum: float = 0.5  # weight of the old row; 0.5 in the published code of all three
    projector_dim: int = 128  # in all three


def new_banks(recipe: MemoryRecipe, setup: Setup, method: str, num: int = 1) -> list[MemoryBank]:
    """The banks of a method that compares with them by `discriminate`; each starts with random rows of its own.

    Raises:
        RecipeError: for settings that do not go together.
    """
    if recipe.objective == "nce" and recipe.num_negatives is None:
        raise RecipeError(
            f"{method}: num_negatives=None (all images) is for objective=softmax; give nce a number, e.g. 4096."
        )
    num_images = len(setup.images)
    if recipe.objective == "nce" and num_images < _FEW_STEPS * recipe.batch_size:
        logger.warning(
            "%s: objective=nce is for data of a million images; with %d it learns little. "
            "Consider -s objective=softmax -s num_negatives=none.",
            method,
            num_images,
        )
    return [
        MemoryBank(setup.images.index, recipe.projector_dim, momentum=recipe.bank_momentum, seed=setup.seed + i)
        for i in range(num)
    ]


def discriminate(bank: MemoryBank, embeddings: Tensor, index: Tensor, recipe: MemoryRecipe, step: int) -> Tensor:
    """Loss of recognising, for each embedding (B, E), the bank's row of its image.

    The drawn rows of a step are the same for the whole batch and for all calls with this bank. The first call of NCE
    estimates Z on its batch; the bank keeps it, so that all steps, and a resumed run, have the same. No row moves.
    """
    temperature = recipe.temperature
    if recipe.num_negatives is None:
        return instance_softmax(embeddings, bank.rows[bank.ids], bank.positions(index), temperature=temperature)
    own, drawn = bank.rows[index], bank.draw(recipe.num_negatives, step)
    if recipe.objective == "softmax":
        return info_nce(embeddings, own, temperature=temperature, negatives=drawn)
    if not bank.partition > 0:
        z = nce_partition(embeddings, own, drawn, temperature=temperature, num_images=len(bank))
        bank.partition.copy_(z)
    return nce(embeddings, own, drawn, temperature=temperature, num_images=len(bank), partition=bank.partition)
