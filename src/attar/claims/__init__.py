"""Claims: for a paper's central sentence, the smallest experiment that could prove it wrong."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from attar.errors import RecipeError, unknown_name

if TYPE_CHECKING:
    from attar.claims.base import ClaimResult

_ABLATIONS = "attar.claims.views_and_collapse"
_TRANSFER = "attar.claims.transfer"
_FEATURES = "attar.claims.feature_distillation"
_SELF = "attar.claims.self_distillation"
_LABELLED = "attar.claims.labelled_distillation"
CLAIMS = {
    "seed": "attar.claims.seed",
    "simclr_v2": "attar.claims.simclr_v2",
    "compress": _FEATURES,
    "compress_temperature": _FEATURES,
    "seed_self": _FEATURES,
    "s2bnn": _FEATURES,
    "foundation": _FEATURES,
    "ddgsd": _SELF,
    "byot": _SELF,
    "pskd": _SELF,
    "born_again": _SELF,
    "dogo": _SELF,
    "kd": _LABELLED,
    "crd": _LABELLED,
    "sskd": _LABELLED,
    "sskd_tasks": _LABELLED,
    "sskd_errors": _LABELLED,
    "sskd_few_labels": _LABELLED,
    "sskd_wrong_labels": _LABELLED,
    "sskd_families": _LABELLED,
    "simsiam_collapse": _ABLATIONS,
    "byol_collapse": _ABLATIONS,
    "moco_queue": _ABLATIONS,
    "simclr_parts": _ABLATIONS,
    "swav_multi_crop": _ABLATIONS,
    "byol_views": _ABLATIONS,
    "dino_centring": _ABLATIONS,
    "moco_v3_patches": _ABLATIONS,
    "inst_disc_nce": _ABLATIONS,
    "cluster_transfer": _TRANSFER,
    "jigsaw_plus_plus": _TRANSFER,
    "number_of_clusters": _TRANSFER,
    "clusters_of_others": _TRANSFER,
    "best_layer": _TRANSFER,
    "pretext_tasks": _TRANSFER,
}


def said(name: str) -> tuple[str, str]:
    """What a claim says, and who said it."""
    module = import_module(CLAIMS[name])
    if hasattr(module, "STATEMENT"):
        return module.STATEMENT, module.SOURCE
    return module.CLAIMS[name].statement, module.CLAIMS[name].source


def reproduce(
    name: str,
    *,
    data: str | None = None,
    test: str | None = None,
    size: str = "cpu",
    out: str | Path | None = None,
    seeds: int | None = None,
    device: str = "auto",
    teacher: str | None = None,
) -> ClaimResult:
    """Run a claim's arms and controls, and say whether it holds at this size.

    Args:
        name: a claim of CLAIMS. data, test: labelled images (labels only measure); default: scikit-learn's digits.
        size: "cpu" (minutes on two cores), "gpu", or what docs/claims.md says some have.
        seeds: their number; default: the claim's own.
        out: folder of the runs; trainings that are done there are not done again. Default: one for each claim, size
            and data.
        teacher: a network (a run folder, a timm name, NAME@FILE) in the place of the one a claim of distillation
            trains.
    """
    if name not in CLAIMS:
        raise RecipeError(unknown_name("claim", name, CLAIMS))
    from attar.claims.ablation import run_ablation

    if seeds is not None and seeds < 1:
        raise RecipeError(f"--seeds {seeds}: it must be 1 or more.")
    folder = None if out is None else Path(out)
    module = import_module(CLAIMS[name])
    asked = {} if teacher is None else {"teacher": teacher}
    claim = module.CLAIM if hasattr(module, "CLAIM") else module.CLAIMS[name]
    if not callable(claim):
        claim = partial(run_ablation, claim)
    elif teacher is not None:
        raise RecipeError(f"--teacher would be ignored: {name} trains its own. Leave it out.")
    return claim(data=data or "digits", test=test, size=size, out=folder, seeds=seeds, device=device, **asked)
