"""The losses that look across samples, on given rows. Run as a script it is one of two processes:

python cross_sample_cases.py RANK STORE OUT     takes its half of the rows, writes values and gradients to OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from attar.errors import ShapeError
from attar.losses import (
    barlow_twins,
    bilinear_nce,
    confidence_weighted_cross_entropy,
    error_rank_gate,
    gather_rows,
    info_nce,
    inva_spread,
    kl_divergence,
    koleo,
    mean_discrepancy,
    nce_partition,
    nt_xent,
    own_share,
    peer_similarity,
    relational_angle,
    relational_distance,
    sigreg,
    sinkhorn,
    swapped_prediction,
    vicreg,
)

B, E = 6, 7  # of the joined batch
UNIT = torch.eye(E, dtype=torch.float64)
DIRECTIONS = torch.randn(3, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WHOLE = (
    "barlow_twins",
    "mean_discrepancy",
    "sigreg",
)  # statistics of the joined batch alone: every process returns the same value

CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": lambda a, b: nt_xent(a, b, temperature=0.3),
    "nt_xent in blocks": lambda a, b: nt_xent(a, b, temperature=0.3, chunk_size=4),
    "info_nce": lambda a, b: info_nce(a, b, temperature=0.3),
    "info_nce in blocks": lambda a, b: info_nce(a, b, temperature=0.3, chunk_size=2),
    "info_nce, keys without gradient": lambda a, b: info_nce(a, b.detach() + 0 * b, temperature=0.3),
    "koleo": lambda a, b: koleo(a) + koleo(b),
    "bilinear_nce": lambda a, b: bilinear_nce(a, b, torch.arange(len(a))),
    # assignments are balanced over all rows, and over a queue that all processes hold, cut between them
    "sinkhorn": lambda a, b: swapped_prediction([a, b], [balanced(a), balanced(b)], temperature=0.5),
    "inva_spread": lambda a, b: inva_spread(a, b, temperature=0.3),
    "nce_partition": lambda a, b: (a * b).mean() * nce_partition(a, b, UNIT, temperature=0.3, num_images=40),
    "barlow_twins": lambda a, b: barlow_twins(a, b, redundancy_weight=0.2),
    "vicreg": lambda a, b: vicreg(a, b, similarity_weight=2.0, variance_weight=3.0, covariance_weight=0.5),
    "mean_discrepancy": mean_discrepancy,
    "confidence_weighted_cross_entropy": lambda a, b: (
        confidence_weighted_cross_entropy(a, a.argmin(dim=1), b) + 0 * b.sum()
    ),
    "peer_similarity": lambda a, b: (
        peer_similarity(a, b, a.square(), b, temperature=0.3) + peer_similarity(b, a, b[:, :4], a[:, :4], temperature=1)
    ),
    "sigreg": lambda a, b: sigreg(a, DIRECTIONS) + 2 * sigreg(b, DIRECTIONS),
    "relational_distance": lambda a, b: relational_distance(a, b.detach()) + 0 * b.sum(),
    "relational_angle": lambda a, b: relational_angle(a, b.detach()) + 0 * b.sum(),
    "error_rank_gate": lambda a, b: (
        kl_divergence(
            a,
            b,
            temperature=2.0,
            weights=error_rank_gate(b, b.detach().argsort(dim=1)[:, 2], keep_wrong=0.5),
        )
        + 0 * b.sum()
    ),
    # each row meets the weighted sum of all rows; plain arithmetic around gather_rows alone
    "gather_rows": lambda a, b: (a * (gather_rows(b) * torch.arange(1.0, B + 1)[:, None]).sum(0)).sum(1).mean(),
}


def balanced(rows: Tensor) -> Tensor:
    queue = torch.randn(5, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sinkhorn(torch.cat([rows, own_share(queue)]), epsilon=0.5, iterations=3)[: len(rows)]


def inputs() -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, B, E, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a, b


def compute(a: Tensor, b: Tensor) -> dict[str, list[Tensor]]:
    """name -> value, gradient of a, gradient of b."""
    found = {}
    for name, loss in CASES.items():
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        value = loss(a, b)
        value.backward()
        found[name] = [value.detach(), a.grad, b.grad]
    return found


def main(rank: int, store: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    own = slice(rank * B // 2, (rank + 1) * B // 2)
    a, b = inputs()
    found = compute(a[own], b[own])
    try:
        gather_rows(torch.zeros(2 + rank, E))
        refusal = ""
    except ShapeError as error:
        refusal = str(error)
    torch.save({"cases": found, "refusal": refusal, "gathered": gather_rows(a[own])}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
