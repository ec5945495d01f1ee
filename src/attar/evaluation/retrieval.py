"""Retrieval among the test images: is one of the k nearest others of the same class?

    recall@k = share of the test images with at least one image of their class among their k nearest, itself left out

by cosine similarity of the features; nothing is fitted. Jegou et al. 2011 (DOI 10.1109/TPAMI.2010.57); for metric
learning Oh Song et al. 2016, arXiv:1511.06452, section 6. An image whose class no other test image has is never found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attar.errors import AttarError
from attar.evaluation.knn import nearest_rows
from attar.evaluation.subject import Outcome, Protocol, Subject


@dataclass(frozen=True)
class Retrieval(Protocol):
    """k: how many neighbours are looked at; one metric each."""

    k: tuple[int, ...] = (1, 2, 4, 8)

    name = "retrieval"
    bare = "k"
    learns = False

    def given(self, *, without: str = "") -> str:
        """Nothing: the metrics' names tell k."""
        return ""

    def metrics(self, usual: Sequence[str]) -> list[str]:
        return []

    def run(self, subject: Subject) -> list[Outcome]:
        labels = torch.from_numpy(subject.task.test_labels)
        most = len(labels) - 1
        if not self.k or min(self.k) < 1 or max(self.k) > most:
            raise AttarError(f"retrieval: k={self.k} is not accepted; give numbers from 1 to {most}, e.g. retrieval:1.")
        rows = F.normalize(subject.test.values.float(), dim=1)
        nearest = others(nearest_rows(rows, rows, max(self.k) + 1)[1].cpu())  # (M, k)
        same = labels[nearest] == labels[:, None]
        hits = {f"recall@{k}": same[:, :k].any(dim=1).double().numpy() for k in sorted(set(self.k))}
        found = F.one_hot(labels[nearest[:, 0]], subject.task.num_classes).double().numpy()
        return [Outcome([found], {}, by_image=hits)]


def others(nearest: torch.Tensor) -> torch.Tensor:
    """Of k + 1 neighbours (M, k + 1) the k that are not the row itself; equal images may stand before it."""
    own = nearest == torch.arange(len(nearest))[:, None]
    own[~own.any(dim=1), -1] = True  # more than k equals: all that were found are others
    return nearest[~own].view(len(nearest), -1)
