"""Claims about distilling from a self-supervised teacher's features: what carries the gain, and what only seems to.

The teacher is SimCLR's, trained once; all students see the same images for the same number of epochs. SimCLR alone
sees two views an image, distillation one.
"""

from __future__ import annotations

from attar.claims.ablation import Ablation, Arm, over

TEACHER = Arm("teacher, SimCLR", "simclr")
ALONE = Arm("student, SimCLR alone", "simclr")
BINARY = "bnn_resnet20"


def _compress(what: str, temperature: float = 0.04, queue_length: int = 2048) -> Arm:
    settings = {"temperature": temperature, "queue_length": queue_length}
    return Arm(what, "compress", settings, teacher="teacher")


CLAIMS = {
    claim.name: claim
    for claim in (
        Ablation(
            name="compress",
            statement="CompRess' student beats the same student pretrained alone, and no sham teacher does.",
            source="Koohpayegani et al. 2020, arXiv:2010.14713, tables 1 and 2; the shams are ours",
            teacher=TEACHER,
            arms={
                "alone": ALONE,
                "compress": _compress("student, CompRess 1q"),
                "random": Arm("student, CompRess from a random teacher", "compress", teacher="random"),
                "permuted": Arm("student, CompRess with permuted targets", "compress", teacher="permuted"),
            },
            expectations=[*over("compress", "alone"), *over("alone", "random", "permuted")],
        ),
        Ablation(
            name="compress_temperature",
            statement="CompRess needs a low temperature (0.04 over 0.1 over 1) and a long memory.",
            source="Koohpayegani et al. 2020, arXiv:2010.14713, section 4, ablation",
            teacher=TEACHER,
            arms={
                "cold": _compress("temperature 0.04, 2048 anchors"),
                "warm": _compress("temperature 0.1, 2048 anchors", temperature=0.1),
                "hot": _compress("temperature 1, 2048 anchors", temperature=1.0),
                "short": _compress("temperature 0.04, 64 anchors", queue_length=64),
            },
            expectations=[*over("cold", "warm"), *over("warm", "hot"), *over("cold", "short")],
        ),
        Ablation(
            name="seed_self",
            statement="SEED teaches more by soft targets over neighbours than by its code's cold ones.",
            source="Fang et al. 2021, arXiv:2101.04731, with the temperatures of its code; the claim is ours",
            teacher=TEACHER,
            arms={
                "soft": Arm("own key out, 0.04", "seed", {"queue_length": 2048}, teacher="teacher"),
                "cold": Arm(
                    "own key in, 0.2 and 1e-4",
                    "seed",
                    {
                        "queue_length": 2048,
                        "include_self": True,
                        "student_temperature": 0.2,
                        "teacher_temperature": 1e-4,
                    },
                    teacher="teacher",
                ),
            },
            expectations=over("soft", "cold"),
        ),
        Ablation(
            name="s2bnn",
            statement="A binary network learns most from distillation alone, least from contrast alone.",
            source="Shen et al. 2021, arXiv:2102.08946, table 1 (61.5, 56.0 and 52.5)",
            teacher=TEACHER,
            arms={
                "distillation": Arm("distillation only", "s2bnn", backbone=BINARY, teacher="teacher"),
                "both": Arm(
                    "distillation and contrastive",
                    "s2bnn",
                    {"contrastive_weight": 1.0, "queue_length": 2048},
                    backbone=BINARY,
                    teacher="teacher",
                ),
                "contrastive": Arm(
                    "contrastive only",
                    "s2bnn",
                    {"distillation_weight": 0.0, "contrastive_weight": 1.0, "queue_length": 2048},
                    backbone=BINARY,
                    teacher="teacher",
                ),
            },
            expectations=[*over("distillation", "both"), *over("both", "contrastive")],
        ),
        Ablation(
            name="foundation",
            statement="The foundation recipe's student beats the same student pretrained alone, and plain regression.",
            source="Beyer et al. 2021, arXiv:2106.05237; lightly-train's distillation v3",
            teacher=TEACHER,
            arms={
                "foundation": Arm("foundation", "foundation", teacher="teacher"),
                "regression": Arm("regression", "regression", teacher="teacher"),
                "alone": ALONE,
            },
            expectations=over("foundation", "alone", "regression"),
        ),
    )
}
