"""Losses: pure functions of tensors. Default reduction: sum over targets, mean over samples."""

from attar.losses.clustering import dino
from attar.losses.contrastive import info_nce, instance_softmax, inva_spread, nt_xent
from attar.losses.distillation import anchor_similarities, kl_divergence, similarity_distillation, soft_cross_entropy
from attar.losses.gather import first_own_row, gather_rows
from attar.losses.nce import nce, nce_partition
from attar.losses.siamese import byol_regression, negative_cosine

__all__ = [
    "anchor_similarities",
    "byol_regression",
    "dino",
    "first_own_row",
    "gather_rows",
    "info_nce",
    "instance_softmax",
    "inva_spread",
    "kl_divergence",
    "nce",
    "nce_partition",
    "negative_cosine",
    "nt_xent",
    "similarity_distillation",
    "soft_cross_entropy",
]
