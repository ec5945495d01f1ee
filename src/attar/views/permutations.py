"""Orders of the tiles of a puzzle that differ in many places, so that they can be told apart."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.views.draws import Draws


@lru_cache(maxsize=8)
def spread_permutations(num_tiles: int, number: int) -> Tensor:
    """A set of permutations of 0 .. num_tiles - 1, far from each other in Hamming distance; int64 (number, num_tiles).

    Greedy, from all num_tiles! candidates: next comes the one whose nearest chosen permutation is farthest; among
    equals the one with the largest mean distance to all chosen; among equals the first in a random but fixed order.
    The same call gives the same set, on any machine. Do not change the result in place.

    Raises:
        RecipeError: if there are not so many permutations, or more than 9 tiles (9! are 362,880 candidates).
    """
    if not 2 <= num_tiles <= 9:
        raise RecipeError(f"permutations: a puzzle of {num_tiles} tiles is not supported; give 4 (2 x 2) or 9 (3 x 3).")
    flat = np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(num_tiles))), dtype=np.uint8)
    candidates = flat.reshape(-1, num_tiles)
    if number > len(candidates):
        raise RecipeError(
            f"num_permutations={number}: {num_tiles} tiles have {len(candidates)} permutations; use that or less."
        )
    in_random_order = Draws(0, torch.arange(len(candidates))).uniform().argsort(stable=True).numpy()
    columns = np.ascontiguousarray(candidates[in_random_order].T)  # (tiles, candidates): one tile's place at a time
    nearest = np.full(columns.shape[1], num_tiles, dtype=np.int32)  # distance to the nearest chosen permutation
    total = np.zeros(columns.shape[1], dtype=np.int32)  # sum of distances to all chosen ones
    chosen: list[int] = []
    for _ in range(number):
        chosen.append(int(np.argmax(nearest * (1 << 24) + total)))  # a chosen one has nearest = 0 and comes last
        distance = np.zeros(columns.shape[1], dtype=np.uint8)
        for place, own in zip(columns, columns[:, chosen[-1]]):
            distance += place != own
        np.minimum(nearest, distance, out=nearest)
        total += distance
    return torch.from_numpy(columns[:, chosen].T.astype(np.int64))


def hamming_distances(permutations: Tensor) -> Tensor:
    """Number of places in which each two of (N, T) differ, int64 (N, N)."""
    return permutations.shape[1] - (permutations[:, None] == permutations).sum(dim=2)
