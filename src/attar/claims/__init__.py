"""Claims: for a paper's central sentence, the smallest experiment that could prove it wrong."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from attar.errors import RecipeError, unknown_name

if TYPE_CHECKING:
    from attar.claims.base import ClaimResult

CLAIMS = {"seed": "attar.claims.seed"}


def reproduce(
    name: str,
    *,
    data: str | None = None,
    test: str | None = None,
    size: str = "cpu",
    out: str | Path | None = None,
    seeds: int | None = None,
    device: str = "auto",
) -> ClaimResult:
    """Run a claim's arms and controls, and say whether it holds at this size.

    Args:
        name: a claim of CLAIMS. data, test: labelled images (labels only measure); default: scikit-learn's digits.
        size: "cpu" (minutes on two cores) or "gpu". seeds: number of seeds; default: the claim's own.
        out: folder of the runs; what is done there is not done again. Default: one for each claim, size and data.
    """
    if name not in CLAIMS:
        raise RecipeError(unknown_name("claim", name, CLAIMS))
    if seeds is not None and seeds < 1:
        raise RecipeError(f"--seeds {seeds}: it must be 1 or more.")
    claim = import_module(CLAIMS[name]).CLAIM
    return claim(data=data, test=test, size=size, out=None if out is None else Path(out), seeds=seeds, device=device)
