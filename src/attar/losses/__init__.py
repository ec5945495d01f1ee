"""Losses: pure functions of tensors. Default reduction: sum over targets, mean over samples."""

from attar.losses.clustering import dino, prototype_cross_entropy, sinkhorn, swapped_prediction
from attar.losses.colour import colour_cross_entropy
from attar.losses.contrastive import bilinear_nce, cosine_margin, info_nce, instance_softmax, inva_spread, nt_xent
from attar.losses.distillation import (
    anchor_similarities,
    error_rank_gate,
    kl_divergence,
    similarity_distillation,
    soft_cross_entropy,
    token_similarity,
)
from attar.losses.gather import first_own_row, gather_rows, own_share
from attar.losses.koleo import koleo
from attar.losses.masked import (
    masked_distillation,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    normalise_patches,
    weighted_mse,
)
from attar.losses.metric import (
    all_pairs,
    center,
    center_steps,
    class_pairs,
    contrastive_pair,
    mined_triplets,
    n_pair,
    triplet,
)
from attar.losses.nce import nce, nce_partition
from attar.losses.redundancy import barlow_twins, barlow_twins_terms, sigreg, vicreg, vicreg_terms
from attar.losses.self_distillation import (
    confidence_weighted_cross_entropy,
    feature_hint,
    mean_discrepancy,
    peer_similarity,
)
from attar.losses.siamese import byol_regression, negative_cosine
from attar.losses.transfer import attention_transfer, relational_angle, relational_distance

__all__ = [
    "all_pairs",
    "anchor_similarities",
    "attention_transfer",
    "barlow_twins",
    "barlow_twins_terms",
    "bilinear_nce",
    "byol_regression",
    "center",
    "center_steps",
    "class_pairs",
    "colour_cross_entropy",
    "confidence_weighted_cross_entropy",
    "contrastive_pair",
    "cosine_margin",
    "dino",
    "error_rank_gate",
    "feature_hint",
    "first_own_row",
    "gather_rows",
    "info_nce",
    "instance_softmax",
    "inva_spread",
    "kl_divergence",
    "koleo",
    "masked_distillation",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "mean_discrepancy",
    "mined_triplets",
    "n_pair",
    "nce",
    "nce_partition",
    "negative_cosine",
    "normalise_patches",
    "nt_xent",
    "own_share",
    "peer_similarity",
    "prototype_cross_entropy",
    "relational_angle",
    "relational_distance",
    "sigreg",
    "similarity_distillation",
    "sinkhorn",
    "soft_cross_entropy",
    "swapped_prediction",
    "token_similarity",
    "triplet",
    "vicreg",
    "vicreg_terms",
    "weighted_mse",
]
