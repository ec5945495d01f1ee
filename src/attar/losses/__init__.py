"""Losses: pure functions of tensors. Default reduction: sum over targets, mean over samples."""

from attar.losses.clustering import dino
from attar.losses.contrastive import info_nce, nt_xent
from attar.losses.distillation import anchor_similarities, kl_divergence, similarity_distillation, soft_cross_entropy
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.redundancy import barlow_twins, barlow_twins_terms, sigreg, vicreg, vicreg_terms
from attar.losses.siamese import byol_regression, negative_cosine

__all__ = [
    "anchor_similarities",
    "barlow_twins",
    "barlow_twins_terms",
    "byol_regression",
    "dino",
    "first_own_row",
    "gather_rows",
    "info_nce",
    "kl_divergence",
    "negative_cosine",
    "nt_xent",
    "sigreg",
    "similarity_distillation",
    "soft_cross_entropy",
    "vicreg",
    "vicreg_terms",
]
