"""The numbers of every recipe of the joint-embedding, clustering and masked methods, as papers and published code have
them; those of small recipes as the benchmarks were made with. Views are in test_published_details.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from attar.methods import CATALOGUE
from attar.methods.base import load, resolve_recipe

FAMILIES = ("contrastive", "clustering", "siamese", "masked")
METHODS = [name for name, entry in CATALOGUE.items() if entry.family in FAMILIES]

USUAL = {  # of training, where a row says nothing else
    "lr_scaling": "linear",
    "lr": None,
    "final_lr": 0.0,
    "schedule": "cosine",
    "num_cycles": 1,
    "lr_drops": (),
    "lr_drop_factor": 0.1,
    "weight_decay_end": None,
    "sgd_momentum": 0.9,
    "nesterov": False,
    "adam_betas": (0.9, 0.999),
    "clip_gradient": None,
    "clip_per_parameter": False,
}


def training(
    optimiser: str,
    epochs: int,
    batch_size: int,
    base_lr: float,
    weight_decay: float,
    *,
    warmup: float = 0,
    drops: tuple[int, ...] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Fields of Recipe. warmup, drops: in epochs, as the papers count. base_lr: at 256 images, where no other rule is
    named. SGD decays biases and norms, too, and the others do not, where nothing else is said."""
    own: dict[str, Any] = {
        "optimiser": optimiser,
        "epochs": epochs,
        "batch_size": batch_size,
        "base_lr": base_lr,
        "weight_decay": weight_decay,
        "warmup_fraction": warmup / epochs,
        "decay_bias_and_norm": optimiser == "sgd",
    }
    steps = {"schedule": "step", "lr_drops": tuple(epoch / epochs for epoch in drops)} if drops else {}
    return USUAL | own | steps | changes


ALL: dict[str, Any] = {"decay_bias_and_norm": True}
PER_TENSOR = {"clip_gradient": 3.0, "clip_per_parameter": True}
TO_A_MILLIONTH = {"final_lr": 1e-6, "weight_decay_end": 0.4}  # cosines of rate and weight decay, of DINO and after it
FIXED: dict[str, Any] = {"lr_scaling": "none"}
ROOT: dict[str, Any] = {"lr_scaling": "sqrt"}

# optimiser, epochs, batch size, rate, weight decay; the order of recipes is the methods', the first one the default
TRAINING = {
    ("cpc", "photo"): training("adamw", 200, 512, 2e-4, 0.0, **FIXED, schedule="constant"),  # section 3.2; epochs ours
    ("cpc", "small"): training("adamw", 200, 128, 1e-3, 0.0, **FIXED),
    # zhirongw/lemniscate.pytorch: main.py, README.md, cifar.py
    ("inst_disc", "photo"): training("sgd", 200, 256, 0.03, 1e-4, drops=(120, 160)),
    ("inst_disc", "sampled"): training("sgd", 200, 256, 0.03, 1e-4, drops=(120, 160)),
    ("inst_disc", "small"): training("sgd", 200, 128, 0.06, 5e-4, drops=(120, 160)),
    # mangye16/Unsupervised_Embedding_Learning: demo_seen.py, demo_unseen.py
    ("inva_spread", "small"): training("sgd", 301, 128, 0.06, 5e-4, drops=(120, 200)),
    ("inva_spread", "photo"): training("sgd", 100, 64, 0.001, 5e-4, **FIXED, schedule="constant"),
    # facebookresearch/vissl: pretrain/pirl/pirl_jigsaw_4node_resnet50.yaml
    ("pirl", "photo"): training("sgd", 800, 1024, 0.03, 1e-4, final_lr=1.2e-4, decay_bias_and_norm=False),
    ("pirl", "small"): training("sgd", 200, 128, 0.06, 5e-4, decay_bias_and_norm=False),
    # HobbitLong/CMC: train_CMC.py
    ("cmc", "photo"): training("sgd", 240, 128, 0.06, 1e-4, drops=(120, 160, 200)),
    ("cmc", "small"): training("sgd", 240, 128, 0.06, 1e-4, drops=(120, 160, 200)),
    # facebookresearch/moco: README.md, colab/moco_cifar10_demo.ipynb
    ("moco", "v2"): training("sgd", 200, 256, 0.03, 1e-4),
    ("moco", "v1"): training("sgd", 200, 256, 0.03, 1e-4, drops=(120, 160)),
    ("moco", "small"): training("sgd", 200, 512, 0.03, 5e-4),
    # google-research/simclr: README.md; arXiv:2006.10029, section 3.1; CIFAR-10: lightly's, and appendix B.9
    ("simclr", "photo"): training("lars", 1000, 4096, 0.075, 1e-4, **ROOT, warmup=10),
    ("simclr", "v2"): training("lars", 800, 4096, 0.1, 1e-4, **ROOT, warmup=40),
    ("simclr", "v2_memory"): training("lars", 800, 4096, 0.1, 1e-4, **ROOT, warmup=40),
    ("simclr", "small"): training("sgd", 200, 128, 0.12, 5e-4),
    ("simclr", "small_lars"): training("lars", 1000, 512, 1.0, 1e-4, warmup=10),
    # facebookresearch/moco-v3: CONFIG.md
    ("moco_v3", "vit"): training("adamw", 300, 4096, 1.5e-4, 0.1, warmup=40, **ALL),
    ("moco_v3", "convnet"): training("lars", 300, 4096, 0.3, 1e-6, warmup=10),
    ("moco_v3", "small"): training("sgd", 200, 256, 0.12, 5e-4, warmup=10),
    ("moco_v3", "small_vit"): training("adamw", 200, 256, 1e-3, 0.1, **FIXED, warmup=200 * 40 / 300, **ALL),
    # WXinlong/DenseCL: densecl_imagenet_200ep.py
    ("densecl", "photo"): training("sgd", 200, 256, 0.03, 1e-4),
    ("densecl", "small"): training("sgd", 200, 512, 0.03, 5e-4),
    # clane9/vissl: pretrain/nnclr/nnclr_8node_resnet.yaml; CIFAR-10: lightly's
    ("nnclr", "photo"): training("lars", 1000, 4096, 0.3, 1e-6, warmup=10),
    ("nnclr", "small"): training("sgd", 200, 128, 0.12, 5e-4),
    # facebookresearch/swav: scripts/; 4.8 at 4096
    ("deep_cluster", "photo"): training("lars", 800, 4096, 0.3, 1e-6, warmup=10, final_lr=0.0048, **ALL),
    ("deep_cluster", "small"): training("adamw", 200, 128, 2e-3, 1e-6, **ALL),
    ("swav", "photo"): training("lars", 800, 4096, 0.3, 1e-6, warmup=10, final_lr=0.0048, **ALL),
    ("swav", "photo_256"): training("lars", 200, 256, 0.6, 1e-6, final_lr=0.0006, **ALL),
    # Goyal et al. 2021, section 3: 9.6 at 8704, after 8 of 122 thousand updates
    ("swav", "seer"): training("lars", 1, 8704, 9.6 / 34, 1e-5, warmup=8 / 122, final_lr=0.0096, **ALL),
    ("swav", "small"): training("adamw", 200, 128, 2e-3, 1e-6, **ALL),
    # google-deepmind/deepmind-research: byol/configs/byol.py; CIFAR-10: lightly's
    ("byol", "photo"): training("lars", 1000, 4096, 0.2, 1.5e-6, warmup=10),
    ("byol", "small"): training("sgd", 200, 128, 0.12, 5e-4, warmup=10),
    # facebookresearch/dino: README.md, main_dino.py; CIFAR-10: lightly's
    ("dino", "photo"): training("adamw", 300, 1024, 5e-4, 0.04, warmup=10, **TO_A_MILLIONTH, **PER_TENSOR),
    ("dino", "convnet"): training(
        "sgd", 100, 1024, 0.03, 1e-4, warmup=10, final_lr=1e-6, **PER_TENSOR, decay_bias_and_norm=False
    ),
    ("dino", "small"): training("sgd", 200, 128, 0.12, 5e-4, warmup=10, **PER_TENSOR),
    ("dino", "small_vit"): training("adamw", 200, 256, 1e-3, 0.04, warmup=10, **TO_A_MILLIONTH, **PER_TENSOR),
    # facebookresearch/simsiam: README.md; CIFAR-10: PatrickHua/SimSiam
    ("simsiam", "photo"): training("sgd", 100, 512, 0.05, 1e-4),
    ("simsiam", "small"): training("sgd", 800, 512, 0.03, 5e-4),
    # facebookresearch/barlowtwins: main.py, and facebookresearch/vicreg: main_vicreg.py end at a thousandth
    ("barlow_twins", "photo"): training("lars", 1000, 2048, 0.2, 1e-6, warmup=10, final_lr=1.6 / 1000),
    ("barlow_twins", "small"): training("sgd", 200, 128, 0.12, 5e-4, warmup=10),
    ("vicreg", "photo"): training("lars", 1000, 2048, 0.2, 1e-6, warmup=10, final_lr=1.6 / 1000),
    ("vicreg", "small"): training("sgd", 200, 128, 0.12, 5e-4, warmup=10, clip_gradient=1.0),
    # rbalestr-lab/lejepa: README.md; warm-up, batch and "small": MINIMAL.md
    ("lejepa", "photo"): training("adamw", 100, 256, 5e-4, 5e-2, **FIXED, warmup=1, final_lr=5e-7, **ALL),
    ("lejepa", "convnet"): training("adamw", 100, 256, 5e-4, 5e-4, **FIXED, warmup=1, final_lr=5e-7, **ALL),
    ("lejepa", "small"): training("adamw", 800, 256, 2e-3, 5e-4, **FIXED, warmup=1, final_lr=1e-3, **ALL),
    ("lejepa", "small_vit"): training("adamw", 800, 256, 2e-3, 5e-2, **FIXED, warmup=1, final_lr=1e-3, **ALL),
    # facebookresearch/mae: PRETRAIN.md
    ("mae", "photo"): training("adamw", 800, 4096, 1.5e-4, 0.05, warmup=40, adam_betas=(0.9, 0.95)),
    ("mae", "small"): training("adamw", 400, 512, 1e-3, 0.05, warmup=20, adam_betas=(0.9, 0.95)),
    # microsoft/SimMIM: config.py, simmim_pretrain__vit_base__img224__800ep.yaml; 1e-4 at 512
    ("simmim", "photo"): training("adamw", 800, 2048, 1e-4 / 2, 0.05, warmup=10, drops=(700,), clip_gradient=5.0),
    ("simmim", "small"): training("adamw", 400, 512, 5e-4, 0.05, warmup=20, clip_gradient=5.0),
    # bytedance/ibot: README.md, main_ibot.py
    ("ibot", "photo"): training("adamw", 800, 1024, 5e-4, 0.04, warmup=10, **TO_A_MILLIONTH, **PER_TENSOR),
    ("ibot", "small"): training("adamw", 200, 256, 1e-3, 0.04, warmup=10, **TO_A_MILLIONTH, **PER_TENSOR),
    # facebookresearch/dinov2: ssl_default_config.yaml, train/vitl14.yaml; 0.004 and 2e-4 at 1024 = 32^2
    ("dinov2", "photo"): training(
        "adamw", 100, 1024, 0.004 / 32, 0.04, warmup=10, **ROOT, **TO_A_MILLIONTH, clip_gradient=3.0
    ),
    ("dinov2", "large"): training(
        "adamw", 500, 3072, 2e-4 / 32, 0.04, warmup=80, **ROOT, final_lr=1e-6, weight_decay_end=0.2, clip_gradient=3.0
    ),
    ("dinov2", "small"): training(
        "adamw", 200, 256, 1e-3 / 16, 0.04, warmup=10, **ROOT, final_lr=1e-6, weight_decay_end=0.2, clip_gradient=3.0
    ),
    # facebookresearch/ijepa: configs/in1k_vith14_ep300.yaml; 1e-3 at 2048
    ("i_jepa", "photo"): training("adamw", 300, 2048, 1e-3 / 8, 0.04, warmup=40, **TO_A_MILLIONTH),
    ("i_jepa", "small"): training("adamw", 400, 256, 1e-3, 0.04, warmup=20, final_lr=1e-6, weight_decay_end=0.2),
}

BANK: dict[str, Any] = {"bank_momentum": 0.5, "projector_dim": 128}
NOISE, DRAWN = BANK | {"objective": "nce", "temperature": 0.07}, BANK | {"objective": "softmax", "temperature": 0.07}
EVERY = BANK | {"objective": "softmax", "num_negatives": None, "temperature": 0.1}
CPC = {"num_skipped_rows": 1, "context_blocks": 5, "context_hidden_dim": 256, "patch_crop": 60 / 64}
PIRL = {"patch_weight": 0.5}
WIDE = {"projector_hidden_dim": None, "projector_dim": 128}  # as wide as the features, then 128
MOCO = WIDE | {"queue_length": 65536, "momentum": 0.999, "bn_group_size": 32}
MOCO_SMALL = WIDE | {"queue_length": 4096, "momentum": 0.99, "bn_group_size": 64, "temperature": 0.1}
SIMCLR = WIDE | {"memory_length": None, "memory_momentum": 0.999}
MOCO_V3: dict[str, Any] = {"momentum": 0.99, "projector_hidden_dim": 4096, "projector_dim": 256}
MOCO_V3 |= {"predictor_hidden_dim": 4096, "freeze_patches": True}
NNCLR = {"projector_hidden_dim": 2048, "projector_dim": 256, "predictor_hidden_dim": 4096}
SWAV: dict[str, Any] = {"temperature": 0.1, "num_prototypes": 3000, "sinkhorn_epsilon": 0.05, "sinkhorn_iterations": 3}
SWAV |= {"queue_length": 0, "queue_start_fraction": 15 / 200, "head_batch_norm": True, "projector_layers": 2}
SWAV |= {"projector_hidden_dim": 2048, "projector_dim": 128, "num_local_views": 6, "local_size": 96 / 224}
SEER: dict[str, Any] = {"num_prototypes": 16000, "sinkhorn_epsilon": 0.03, "sinkhorn_iterations": 10}
SEER |= {"head_batch_norm": False, "projector_layers": 3, "projector_hidden_dim": 8192, "projector_dim": 256}
CLUSTER: dict[str, Any] = {"temperature": 0.1, "num_heads": 3, "kmeans_iterations": 10, "projector_dim": 128}
BYOL = {"projector_dim": 256}
SIMSIAM = {"projector_hidden_dim": 2048, "projector_dim": 2048, "predictor_hidden_dim": 512}
VICREG = {"similarity_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}
SLICES = {"sigreg_weight": 0.05, "num_slices": 1024, "projector_hidden_dim": 2048, "projector_dim": 128}
SLICES |= {"num_global_views": 2, "num_local_views": 6, "local_size": 98 / 224}
MINIMAL = {"sigreg_weight": 0.02, "num_slices": 256, "projector_dim": 16, "num_global_views": 4, "num_local_views": 0}
TEACHER: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature_start": 0.04, "centre_momentum": 0.9}
DINO = TEACHER | {"teacher_temperature": 0.07, "momentum": 0.996, "num_prototypes": 65536, "local_size": 96 / 224}
DINO |= {"projector_hidden_dim": 2048, "projector_dim": 256, "num_local_views": 8}
MASKS: dict[str, Any] = {"mask_probability": 0.5, "mask_ratio": (0.1, 0.5)}
MASKED_SMALL: dict[str, Any] = {"momentum": 0.99, "num_prototypes": 1024, "projector_hidden_dim": 512}
MASKED_SMALL |= {"projector_dim": 128, "num_local_views": 4, "local_size": 0.5}
DINOV2 = DINO | MASKS | {"centring": "sinkhorn", "sinkhorn_iterations": 3, "koleo_weight": 0.1, "patch_embed_lr": 0.2}
I_JEPA: dict[str, Any] = {"momentum": 0.996, "num_targets": 4, "target_scale": (0.15, 0.2), "min_context": 10}
I_JEPA |= {"target_aspect": (0.75, 1.5), "context_scale": (0.85, 1.0)}


def first(warmup: float, frozen: float, epochs: int) -> dict[str, float]:
    """How many epochs a teacher's temperature rises and the last layer stays as it is."""
    return {"teacher_temperature_fraction": warmup / epochs, "freeze_last_layer_fraction": frozen / epochs}


# a method's own numbers, without those of its pictures
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("cpc", "photo"): CPC | {"num_rows": 7, "num_predicted_rows": 5},
    ("cpc", "small"): CPC | {"num_rows": 5, "num_predicted_rows": 3},
    ("inst_disc", "photo"): NOISE | {"num_negatives": 4096, "bank_momentum": 0.0, "proximal_weight": 30.0},
    ("inst_disc", "sampled"): DRAWN | {"num_negatives": 65536, "proximal_weight": 0.0},
    ("inst_disc", "small"): EVERY | {"proximal_weight": 0.0},
    ("inva_spread", "small"): {"temperature": 0.1, "projector_dim": 128},
    ("inva_spread", "photo"): {"temperature": 0.1, "projector_dim": 128},
    ("pirl", "photo"): NOISE | PIRL | {"num_negatives": 32000, "patch_scale": 64 / 224},
    ("pirl", "small"): EVERY | PIRL | {"patch_scale": 12 / 32},
    ("cmc", "photo"): NOISE | {"num_negatives": 16384},
    ("cmc", "small"): EVERY,
    ("moco", "v2"): MOCO | {"temperature": 0.2, "projector_layers": 2},
    ("moco", "v1"): MOCO | {"temperature": 0.07, "projector_layers": 1},
    ("moco", "small"): MOCO_SMALL | {"projector_layers": 1},
    ("simclr", "photo"): SIMCLR | {"temperature": 0.1, "projector_layers": 2},
    ("simclr", "v2"): SIMCLR | {"temperature": 0.1, "projector_layers": 3},
    ("simclr", "v2_memory"): SIMCLR | {"temperature": 0.1, "projector_layers": 3, "memory_length": 65536},
    ("simclr", "small"): SIMCLR | {"temperature": 0.5, "projector_layers": 2},
    ("simclr", "small_lars"): SIMCLR | {"temperature": 0.5, "projector_layers": 2},
    ("moco_v3", "vit"): MOCO_V3 | {"temperature": 0.2, "projector_layers": 3, "predictor_norm": True},
    ("moco_v3", "convnet"): MOCO_V3 | {"temperature": 1.0, "projector_layers": 2, "predictor_norm": False},
    ("moco_v3", "small"): MOCO_V3 | {"temperature": 0.2, "projector_layers": 2, "predictor_norm": False},
    ("moco_v3", "small_vit"): MOCO_V3
    | {"temperature": 0.2, "projector_layers": 3, "predictor_norm": True}
    | {"projector_hidden_dim": 512, "predictor_hidden_dim": 512},
    ("densecl", "photo"): MOCO | {"temperature": 0.2, "dense_weight": 0.5},
    ("densecl", "small"): MOCO_SMALL | {"dense_weight": 0.5},
    ("nnclr", "photo"): NNCLR | {"temperature": 0.1, "queue_length": 98304, "projector_layers": 3},
    ("nnclr", "small"): NNCLR | {"temperature": 0.5, "queue_length": 4096, "projector_layers": 2},
    ("deep_cluster", "photo"): CLUSTER
    | {"num_clusters": 3000, "projector_hidden_dim": 2048, "num_local_views": 6, "local_size": 96 / 224},
    ("deep_cluster", "small"): CLUSTER
    | {"num_clusters": 100, "projector_hidden_dim": 512, "num_local_views": 0, "local_size": 96 / 224},
    ("swav", "photo"): SWAV | {"freeze_prototypes_fraction": 1 / 800},  # 313 steps of 4096 images
    ("swav", "photo_256"): SWAV | {"freeze_prototypes_fraction": 1 / 200, "queue_length": 3840},  # 5005 of 256
    ("swav", "seer"): SWAV
    | SEER
    | {"freeze_prototypes_fraction": 313 / 122000, "num_local_views": 4, "local_size": 96 / 160},
    ("swav", "small"): SWAV
    | {"freeze_prototypes_fraction": 1 / 200, "num_prototypes": 512, "projector_hidden_dim": 512, "num_local_views": 0},
    ("byol", "photo"): BYOL | {"momentum": 0.996, "projector_hidden_dim": 4096, "predictor_hidden_dim": 4096},
    ("byol", "small"): BYOL | {"momentum": 0.99, "projector_hidden_dim": 1024, "predictor_hidden_dim": 1024},
    ("dino", "photo"): DINO | first(30, 1, 300) | {"head_batch_norm": False},
    ("dino", "convnet"): DINO | first(10, 1, 100) | {"head_batch_norm": False, "teacher_temperature": 0.04},
    ("dino", "small"): DINO
    | first(20, 1, 200)
    | {"head_batch_norm": True, "teacher_temperature": 0.04, "momentum": 0.99}
    | {"num_prototypes": 2048, "num_local_views": 0},
    ("dino", "small_vit"): DINO
    | MASKED_SMALL
    | first(0, 1, 200)
    | {"head_batch_norm": False, "teacher_temperature": 0.04},
    ("simsiam", "photo"): SIMSIAM | {"projector_layers": 3},
    ("simsiam", "small"): SIMSIAM | {"projector_layers": 2},
    ("barlow_twins", "photo"): {"redundancy_weight": 0.0051, "loss_scale": 1.0, "bias_lr_scale": 0.0048 / 0.2}
    | {"projector_layers": 3, "projector_hidden_dim": 8192, "projector_dim": 8192},
    ("barlow_twins", "small"): {"redundancy_weight": 0.005, "loss_scale": 1e-3, "bias_lr_scale": 1.0}
    | {"projector_layers": 2, "projector_hidden_dim": 2048, "projector_dim": 2048},
    ("vicreg", "photo"): VICREG | {"projector_hidden_dim": 8192, "projector_dim": 8192},
    ("vicreg", "small"): VICREG | {"projector_hidden_dim": 2048, "projector_dim": 2048},
    ("lejepa", "photo"): SLICES,
    ("lejepa", "convnet"): SLICES,
    ("lejepa", "small"): SLICES | MINIMAL,
    ("lejepa", "small_vit"): SLICES | MINIMAL,
    ("mae", "photo"): {"mask_ratio": 0.75, "normalise_pixels": True}
    | {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    ("mae", "small"): {"mask_ratio": 0.75, "normalise_pixels": True}
    | {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 4},
    ("simmim", "photo"): {"mask_ratio": 0.6, "mask_cell": 32 / 224},
    ("simmim", "small"): {"mask_ratio": 0.6, "mask_cell": 8 / 32},
    ("ibot", "photo"): DINO | MASKS | first(30, 1, 800) | {"num_prototypes": 8192, "num_local_views": 10},
    ("ibot", "small"): DINO | MASKS | MASKED_SMALL | first(0, 1, 200) | {"teacher_temperature": 0.04},
    ("dinov2", "photo"): DINOV2 | first(30, 1, 100) | {"momentum": 0.992, "layer_decay": 0.9},
    ("dinov2", "large"): DINOV2
    | first(30, 1, 500)
    | {"momentum": 0.994, "layer_decay": 1.0, "num_prototypes": 131072, "projector_dim": 384},
    ("dinov2", "small"): DINOV2 | MASKED_SMALL | first(20, 1, 200) | {"teacher_temperature": 0.05, "layer_decay": 1.0},
    ("i_jepa", "photo"): I_JEPA | {"predictor_dim": 384, "predictor_depth": 12, "predictor_heads": 16},
    ("i_jepa", "small"): I_JEPA | {"predictor_dim": 96, "predictor_depth": 3, "predictor_heads": 4},
}

OF_PICTURES = {  # what they become is in VIEWS of test_published_details.py
    *("crop_scale", "patch_crop_scale", "global_scale", "local_scale", "flip", "grey", "grey_before_jitter", "jitter"),
    *("jitter_probability", "colour_strength", "blur", "solarise"),
}


@pytest.mark.parametrize("name, recipe", TRAINING)
def test_recipes_have_the_published_numbers(name, recipe):
    resolved = resolve_recipe(name, recipe)
    expected = TRAINING[name, recipe] | SETTINGS[name, recipe]
    assert {field.name for field in dataclasses.fields(resolved)} - OF_PICTURES == expected.keys()
    found = {field: getattr(resolved, field) for field in expected}
    wrong = {field: (value, found[field]) for field, value in expected.items() if found[field] != pytest.approx(value)}
    assert not wrong, "field: (published, recipe)"


@pytest.mark.parametrize("name", METHODS)
def test_no_recipe_is_without_its_numbers_and_the_default_is_the_first(name):
    for table in (TRAINING, SETTINGS):
        assert [recipe for method, recipe in table if method == name] == list(load(name).RECIPES)
