"""Weighted k-nearest-neighbour vote on frozen features.

score(c) = sum over the k nearest training images of class c of exp(s / t),  s = cosine similarity,
divided by its sum over classes so that scores are comparable between test images.
Wu et al. 2018, arXiv:1805.01978 (k = 200); Caron et al. 2021, arXiv:2104.14294 (k = 10..200, t = 0.07).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError
from attar.evaluation.subject import Outcome, Protocol, Subject

DEFAULT_K = 20
BLOCK_VALUES = 1 << 25  # similarities held at once: 128 MB of float32
FAISS_ROWS = 10_000  # training images above which faiss searches on the CPU, in half the time of torch


def knn_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, *, num_classes: int, k: int, temperature: float
) -> np.ndarray:
    """Vote of the k nearest training images for every test image.

    Args:
        train, test: features (n, D) and (M, D), any scale, on the same device.
        train_labels: int64 (n,) in 0 .. num_classes - 1.
        k: neighbours, 1 <= k <= n. temperature: > 0; infinity is the plain majority vote.

    Returns:
        float64 (M, num_classes), rows sum to 1.
    """
    if not 1 <= k <= len(train):
        raise AttarError(
            f"knn: k={k} neighbours were asked for, but there are {len(train)} labelled training images. "
            f"Use k from 1 to {len(train)}, e.g. knn:{min(20, len(train))}."
        )
    if not temperature > 0:
        raise AttarError(f"knn: temperature={temperature} is not accepted; give a number > 0, e.g. 0.07.")
    similarity, nearest = nearest_rows(F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1), k)
    weight = (similarity.double() / temperature).softmax(dim=1)  # the common factor cancels; nothing overflows
    scores = torch.zeros(len(test), num_classes, dtype=torch.float64, device=test.device)
    scores.scatter_add_(1, train_labels.to(test.device)[nearest], weight)
    return scores.cpu().numpy()


def nearest_rows(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Inner product and position (M, k) of the k rows of train (n, D) that are nearest to each row of test (M, D)."""
    search = _search_faiss if len(train) > FAISS_ROWS and train.device.type == "cpu" else _search
    return search(train, test, k)


def _search(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine and position (M, k) of the k nearest rows of train, in blocks of test rows."""
    rows = max(1, BLOCK_VALUES // len(train))
    found = [(block @ train.T).topk(k, dim=1) for block in test.split(rows)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _search_faiss(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    similarity, nearest = faiss.knn(test.numpy(), train.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(similarity), torch.from_numpy(nearest)


@dataclass(frozen=True)
class Knn(Protocol):
    """k: neighbours; None takes 20, or all training images where there are fewer. temperature: of the vote."""

    k: int | None = None
    temperature: float = 0.07

    name = "knn"
    bare = "k"

    def run(self, subject: Subject) -> list[Outcome]:
        k = min(DEFAULT_K, len(subject.train)) if self.k is None else self.k
        scores = knn_scores(
            subject.train.values,
            subject.train_labels,
            subject.test.values,
            num_classes=subject.task.num_classes,
            k=k,
            temperature=self.temperature,
        )
        return [Outcome([scores], {"k": k, "temperature": self.temperature})]
