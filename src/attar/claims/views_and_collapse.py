"""Claims about contrastive and siamese methods: which parts keep them from collapsing, and which make them good."""

from __future__ import annotations

from typing import Any

from attar.claims.ablation import Ablation, Arm
from attar.claims.verdict import Expectation, over

ARMS = "attar.claims.arms"
# The spread of normalised embeddings, 1 for a healthy cloud, must fall by half of that at least
COLLAPSE: dict[str, Any] = {"margin": -0.5, "metrics": ("embedding std",), "where": " in the spread of embeddings"}


CLAIMS = {
    claim.name: claim
    for claim in (
        Ablation(
            name="simsiam_collapse",
            statement="SimSiam collapses without its stop-gradient, and without its predictor.",
            source="Chen and He 2021, arXiv:2011.10566, section 4",
            arms={
                "simsiam": Arm("SimSiam", "simsiam"),
                "without_stop_gradient": Arm("without stop-gradient", f"{ARMS}.simsiam_without_stop_gradient"),
                "without_predictor": Arm("without predictor", f"{ARMS}.simsiam_without_predictor"),
            },
            expectations=[
                *over("simsiam", "without_stop_gradient", "without_predictor"),
                *over("simsiam", "without_stop_gradient", "without_predictor", **COLLAPSE),
            ],
        ),
        Ablation(
            name="byol_collapse",
            statement="BYOL collapses without its stop-gradient, its predictor, and batch norm in its heads.",
            source="Grill et al. 2020, arXiv:2006.07733, table 5; Fetterman and Albrecht 2020; stop-gradient: as in "
            "Chen and He 2021, arXiv:2011.10566",
            arms={
                "byol": Arm("BYOL", "byol"),
                "without_stop_gradient": Arm("without stop-gradient and teacher", f"{ARMS}.byol_without_stop_gradient"),
                "without_predictor": Arm("without predictor", f"{ARMS}.byol_without_predictor"),
                "without_batch_norm": Arm("without batch norm in the heads", f"{ARMS}.byol_without_batch_norm"),
            },
            expectations=[
                *over("byol", "without_stop_gradient", "without_predictor", "without_batch_norm"),
                *over("byol", "without_stop_gradient", "without_predictor", "without_batch_norm", **COLLAPSE),
            ],
        ),
        Ablation(
            name="moco_queue",
            statement="MoCo's queue makes it better than the same method whose negatives are the last batch.",
            source="He et al. 2020, arXiv:1911.05722, figure 3",
            arms={
                "queue": Arm("queue of 2048 keys", "moco", {"queue_length": 2048}),
                "last_batch": Arm("queue of one batch", "moco", {"queue_length": "batch_size"}),
            },
            expectations=over("queue", "last_batch"),
        ),
        Ablation(
            name="simclr_parts",
            statement="SimCLR's projection head and its colour jitter are each needed.",
            source="Chen et al. 2020, arXiv:2002.05709, sections 3.1 and 4.2",
            arms={
                "simclr": Arm("SimCLR", "simclr"),
                "without_head": Arm("without projection head", f"{ARMS}.simclr_without_head"),
                "without_colour": Arm("without colour jitter", "simclr", {"colour_strength": 0.0}),
            },
            expectations=over("simclr", "without_head", "without_colour"),
        ),
        Ablation(
            name="swav_multi_crop",
            statement="SwAV is better with small extra crops than with two full views, and than these at equal work.",
            source="Caron et al. 2020, arXiv:2006.09882, section 4; the longer control is ours",
            arms={
                "multi_crop": Arm("2 views of 32 px and 4 of 16 px", "swav", {"num_local_views": 4}),
                "two_views": Arm("2 views of 32 px", "swav", {"num_local_views": 0}),
                "longer": Arm(
                    "2 views of 32 px, as many pixels as with crops", "swav", {"num_local_views": 0}, epochs=1.5
                ),
            },
            expectations=over("multi_crop", "two_views", "longer"),
        ),
        Ablation(
            name="byol_views",
            statement="BYOL loses less than SimCLR when its views are crops only.",
            source="Grill et al. 2020, arXiv:2006.07733, section 5, figure 3b",
            arms={
                "byol": Arm("BYOL", "byol"),
                "byol_crops": Arm("BYOL, crops only", f"{ARMS}.byol_crops_only"),
                "simclr": Arm("SimCLR", "simclr"),
                "simclr_crops": Arm("SimCLR, crops only", f"{ARMS}.simclr_crops_only"),
            },
            expectations=[
                Expectation(("byol_crops", "simclr"), ("byol", "simclr_crops"), "SimCLR's loss minus BYOL's loss")
            ],
        ),
        Ablation(
            name="dino_centring",
            statement="DINO needs both the centring and the sharpening of its teacher.",
            source="Caron et al. 2021, arXiv:2104.14294, section 5.3, figure 7",
            arms={
                "dino": Arm("DINO", "dino"),
                "without_centring": Arm("without centring", "dino", {"centre_momentum": 1.0}),
                "without_sharpening": Arm(
                    "without sharpening", "dino", {"teacher_temperature": 0.1, "teacher_temperature_start": 0.1}
                ),
            },
            expectations=over("dino", "without_centring", "without_sharpening"),
        ),
        Ablation(
            name="moco_v3_patches",
            statement="MoCo v3 is better with a frozen random patch projection, and loses little without positions.",
            source="Chen et al. 2021, arXiv:2104.02057, sections 4.2 and 5.1, tables 4 and 5",
            network="vit",
            arms={
                "frozen": Arm("MoCo v3, frozen patch projection", "moco_v3", recipe="small_vit"),
                "trained": Arm("trained patch projection", "moco_v3", {"freeze_patches": False}, "small_vit"),
                "without_positions": Arm(
                    "no position embeddings", f"{ARMS}.moco_v3_without_positions", recipe="small_vit"
                ),
            },
            expectations=[
                Expectation(("frozen",), ("trained",), "frozen over trained patches"),
                Expectation(("without_positions",), ("frozen",), "without over with positions", margin=0.03),
            ],
        ),
        Ablation(
            name="inst_disc_nce",
            statement="InstDisc's NCE approximation is not as good as the full softmax it stands for.",
            source="Wu et al. 2018, arXiv:1805.01978, table 1",
            arms={
                "softmax": Arm("non-parametric softmax over all images", "inst_disc"),
                "nce": Arm("NCE with 512 negatives", "inst_disc", {"objective": "nce", "num_negatives": 512}),
            },
            expectations=[*over("softmax", "nce"), *over("nce", "untrained", premise=True)],
        ),
    )
}
