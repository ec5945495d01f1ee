"""Health of a representation without labels: is it spread out, is it aligned, is it collapsing?

embedding_std   mean over dimensions of the standard deviation of normalised embeddings, times sqrt(E):
                1 for an isotropic cloud, 0 for a collapse to one point
rankme          exp(entropy of the normalised singular values); Garrido et al. 2023, arXiv:2210.02885
alignment       mean squared distance of positive pairs; uniformity  log mean exp(-2 squared distance)
                of all pairs; Wang and Isola 2020, arXiv:2005.10242
gradient_spike  largest norm of the gradient since the last measurement over the median one: near 1 in smooth training,
                much larger where it becomes unstable; Chen et al. 2021, arXiv:2104.02057, section 4.1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLLAPSED_STD = 0.05  # of 1 for a healthy cloud; a collapsing run passes 0.05 within some hundred steps
COLLAPSED_RANK = 1.5


def embedding_std(embeddings: Tensor) -> float:
    """In [0, 1]: 1 for an isotropic cloud, 0 when all rows are equal. embeddings (B, E), any scale."""
    normalised = F.normalize(embeddings.float(), dim=1)
    return float(normalised.std(dim=0, unbiased=False).mean() * embeddings.shape[1] ** 0.5)


def rankme(embeddings: Tensor, *, epsilon: float = 1e-7) -> float:
    """Effective rank, from 1 (one direction) to min(B, E)."""
    singular = torch.linalg.svdvals(embeddings.float())
    share = singular / singular.sum().clamp_min(epsilon) + epsilon
    return float(torch.exp(-(share * share.log()).sum()))


def alignment(embeddings: Tensor, positives: Tensor) -> float:
    """Mean squared distance between normalised positive pairs, in [0, 4]."""
    a, b = F.normalize(embeddings.float(), dim=1), F.normalize(positives.float(), dim=1)
    return float((a - b).pow(2).sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """log of the mean Gaussian potential over distinct pairs; lower is more uniform, 0 is a collapse."""
    squared = torch.pdist(F.normalize(embeddings.float(), dim=1)).pow(2)
    return float(squared.mul(-2).exp().mean().log())


def online_knn(features: Tensor, labels: Tensor, *, k: int = 20) -> float:
    """Leave-one-out accuracy of a cosine kNN vote among these labelled samples, in [0, 1]."""
    normalised = F.normalize(features.float(), dim=1)
    similarity = normalised @ normalised.T
    similarity.fill_diagonal_(-2.0)
    value, nearest = similarity.topk(min(k, len(labels) - 1), dim=1)
    votes = torch.zeros(len(labels), int(labels.max()) + 1, device=features.device)
    votes.scatter_add_(1, labels[nearest], (value / 0.1).exp())
    return float((votes.argmax(dim=1) == labels).float().mean())


class HealthMonitor:
    """Keeps the last embeddings of training and measures them when asked."""

    def __init__(self, *, num_rows: int = 1024):
        self.num_rows = num_rows
        self._embeddings: list[Tensor] = []
        self._positives: list[Tensor] = []
        self._gradient_norms: list[Tensor] = []

    def add_gradient(self, norm: Tensor) -> None:
        """The norm of a step's gradient, a scalar."""
        self._gradient_norms.append(norm.detach())

    def add(self, embeddings: Tensor | None, positives: Tensor | None) -> None:
        if embeddings is None:
            return
        self._embeddings.append(embeddings.detach())
        self._positives.append(embeddings.new_empty(0) if positives is None else positives.detach())
        while sum(len(rows) for rows in self._embeddings[1:]) >= self.num_rows:
            self._embeddings.pop(0)
            self._positives.pop(0)

    def measure(self) -> dict[str, float | bool]:
        """The gauges over what was kept; without embeddings only that of the gradient. Always measured in fp32."""
        gauges: dict[str, float | bool] = {}
        if self._gradient_norms:
            norms = torch.stack(self._gradient_norms).float()
            gauges["gradient_spike"] = float(norms.max() / norms.median().clamp_min(1e-12))
            self._gradient_norms.clear()
        if not self._embeddings:
            return gauges
        rows = torch.cat(self._embeddings)[-self.num_rows :]
        gauges |= {"embedding_std": embedding_std(rows), "rankme": rankme(rows), "uniformity": uniformity(rows)}
        if all(len(p) for p in self._positives):
            positives = torch.cat(self._positives)[-self.num_rows :]
            gauges["alignment"] = alignment(rows, positives)
        gauges["collapsed"] = gauges["embedding_std"] < COLLAPSED_STD or gauges["rankme"] < COLLAPSED_RANK
        return gauges
