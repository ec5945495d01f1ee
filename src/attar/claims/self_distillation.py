"""Claims about networks that teach themselves or each other, against what is cheaper: label smoothing, the same work
without the teacher, and deep supervision alone.

Measured is each run's own classifier; DoGo, which has none, by kNN and linear probe. All arms of a claim share the
schedule: a cosine, SGD with Nesterov momentum at 0.1 for a batch of 128, weight decay 5e-4.
"""

from __future__ import annotations

from attar.claims.ablation import DISTILLING, Ablation, Arm
from attar.claims.verdict import over

SAME = {"schedule": "cosine", "weight_decay": 5e-4, "nesterov": True}
CLASSIFIER = ("classifier",)
ACCURACY, CALIBRATION = ("classifier",), ("ece",)
PLAIN = Arm("plain training", "supervised", SAME)
SMOOTHED = Arm("label smoothing 0.1", "supervised", {**SAME, "label_smoothing": 0.1})
_ADAMW = {"optimiser": "adamw", "base_lr": 1e-3, "lr_scaling": "none", "weight_decay": 1e-6, "warmup_fraction": 0.02}


CLAIMS = {
    claim.name: claim
    for claim in (
        Ablation(
            name="ddgsd",
            sizes=DISTILLING,
            statement="Two distorted views that teach each other are better than the same two views without that, and "
            "than label smoothing.",
            source="Xu and Liu 2019, DOI 10.1609/aaai.v33i01.33015565",
            arms={
                "plain": PLAIN,
                "smoothed": SMOOTHED,
                "two_views": Arm(
                    "two views a step, cross-entropy alone",
                    "ddgsd",
                    {**SAME, "distillation_weight": 0.0, "discrepancy_weight": 0.0},
                ),
                "mutual": Arm("and KL both ways", "ddgsd", {**SAME, "discrepancy_weight": 0.0}),
                "ddgsd": Arm("and the discrepancy: DDGSD", "ddgsd", SAME),
            },
            expectations=over("ddgsd", "plain", "smoothed", "two_views", "mutual"),
            protocols=CLASSIFIER,
        ),
        Ablation(
            name="byot",
            sizes=DISTILLING,
            statement="A network whose deepest classifier teaches the shallow ones is better than one with the same "
            "classifiers and no teacher, and than label smoothing.",
            source="Zhang et al. 2019, arXiv:1905.08094",
            arms={
                "plain": PLAIN,
                "smoothed": SMOOTHED,
                "deep_supervision": Arm("classifiers at every stage, labels alone", "byot", SAME, "supervised_only"),
                "without_hint": Arm("and KL from the deepest", "byot", {**SAME, "hint_weight": 0.0}),
                "byot": Arm("and the hint: BYOT", "byot", SAME),
            },
            expectations=over("byot", "plain", "smoothed", "deep_supervision", "without_hint"),
            protocols=CLASSIFIER,
        ),
        Ablation(
            name="pskd",
            sizes=DISTILLING,
            statement="Targets mixed with the network's own earlier predictions make it more accurate and better "
            "calibrated than label smoothing does.",
            source="Kim et al. 2021, arXiv:2006.12000, table 1",
            arms={"plain": PLAIN, "smoothed": SMOOTHED, "pskd": Arm("PS-KD", "pskd", SAME)},
            expectations=[
                *over("pskd", "plain", "smoothed", metrics=ACCURACY),
                *over("pskd", "plain", "smoothed", metrics=CALIBRATION, where=" in calibration error"),
            ],
            protocols=CLASSIFIER,
        ),
        Ablation(
            name="born_again",
            sizes=DISTILLING,
            statement="A third generation is better than one training of the same total length, and than label "
            "smoothing; snapshots of one training do as well.",
            source="Furlanello et al. 2018, arXiv:1805.04770; Yang et al. 2019, arXiv:1812.00123",
            arms={
                "plain": PLAIN,
                "smoothed": SMOOTHED,
                "long": Arm("plain training, three times as long", "supervised", SAME, epochs=3),
                "long_smoothed": Arm(
                    "label smoothing, three times as long", "supervised", {**SAME, "label_smoothing": 0.1}, epochs=3
                ),
                "second": Arm(
                    "second generation, taught by plain training", "born_again", SAME, teacher="plain", generation=1
                ),
                "third": Arm("third generation", "born_again", SAME, teacher="second", generation=2),
                "cwtm": Arm(
                    "second generation, weights only (CWTM)",
                    "born_again",
                    {**SAME, "teacher_weight": 0.0, "weighted_by_confidence": True},
                    teacher="plain",
                    generation=1,
                ),
                "dkpp": Arm(
                    "second generation, permuted (DKPP)",
                    "born_again",
                    {**SAME, "label_weight": 0.0, "permuted": True},
                    teacher="plain",
                    generation=1,
                ),
                "snapshot": Arm("three snapshot cycles, three times as long", "snapshot", SAME, epochs=3),
            },
            expectations=[
                *over("second", "plain", "smoothed", "cwtm", "dkpp"),
                *over("third", "long", "long_smoothed"),
                *over("snapshot", "long"),
            ],
            protocols=CLASSIFIER,
        ),
        Ablation(
            name="dogo",
            sizes=DISTILLING,
            statement="A small network that is trained together with a larger one, each learning from the other, is "
            "better than when both are trained side by side, and than when it is trained alone for the same work.",
            source="Bhat et al. 2021, arXiv:2104.09866",
            arms={
                "dogo": Arm("DoGo", "dogo", {"peer": "teacher", "peer_stem": "stem"}),
                "independent": Arm(
                    "both networks, neither learns from the other",
                    "dogo",
                    {
                        "peer": "teacher",
                        "peer_stem": "stem",
                        "distillation_weight": 0.0,
                        "peer_distillation_weight": 0.0,
                    },
                ),
                "alone": Arm(
                    "alone, four times as long (the work of both)",
                    "simclr",
                    {**_ADAMW, "projector_hidden_dim": 512, "crop_scale": (0.2, 1.0)},
                    epochs=4,
                ),
            },
            expectations=over("dogo", "independent", "alone"),
        ),
    )
}
