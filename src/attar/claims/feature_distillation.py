"""Claims about distilling from a self-supervised teacher's features: what carries the gain, and what only seems to.

The teacher is SimCLR's, trained once; all students see the same images for the same number of epochs. SimCLR alone
sees two views an image, distillation one.
"""

from __future__ import annotations

from typing import Any

from attar.claims.ablation import DISTILLING, Ablation, Arm
from attar.claims.verdict import over

TEACHER = Arm("SimCLR", "simclr")
ALONE = Arm("student, SimCLR alone", "simclr")
BINARY = "bnn_resnet8"


def _compress(what: str, temperature: float = 0.04, queue_length: int = 2048, teacher: str = "teacher") -> Arm:
    settings = {"temperature": temperature, "queue_length": queue_length}
    return Arm(what, "compress", settings, teacher=teacher)


def _binary(what: str, distillation: float = 1.0, contrastive: float = 0.0, **options: Any) -> Arm:
    settings: dict[str, Any] = {"distillation_weight": distillation, "contrastive_weight": contrastive}
    if contrastive:  # as in the recipes of these names
        settings |= {"queue_length": 2048, "weight_decay": 1e-4, "decay_bias_and_norm": True}
    return Arm(what, "s2bnn", settings, **{"backbone": BINARY, "teacher": "teacher", **options})


def _seed(what: str, student: float, teacher: float, **settings: Any) -> Arm:
    settings = {"queue_length": 2048, "include_self": False, **settings}
    settings |= {"student_temperature": student, "teacher_temperature": teacher}
    return Arm(what, "seed", settings, teacher="teacher")


CLAIMS = {
    claim.name: claim
    for claim in (
        Ablation(
            name="compress",
            sizes=DISTILLING,
            statement="CompRess' student beats the same student pretrained alone, and no sham teacher does.",
            source="Koohpayegani et al. 2020, arXiv:2010.14713, tables 1 and 2; the shams are ours",
            teacher=TEACHER,
            arms={
                "alone": ALONE,
                "compress": _compress("student, CompRess 1q"),
                "random": _compress("student, CompRess from a random teacher", teacher="random"),
                "permuted": _compress("student, CompRess with permuted targets", teacher="permuted"),
            },
            expectations=[*over("compress", "alone"), *over("alone", "random", "permuted", margin=0.03)],
        ),
        Ablation(
            name="compress_temperature",
            sizes=DISTILLING,
            statement="CompRess needs a low temperature (0.04 over 0.1 over 1) and a long memory.",
            source="Koohpayegani et al. 2020, arXiv:2010.14713, section 4, ablation",
            teacher=TEACHER,
            arms={
                f"{name}{kind}": _compress(f"temperature {temperature:g}, {length} anchors", temperature, length)
                for name, temperature in (("cold", 0.04), ("warm", 0.1), ("hot", 1.0))
                for kind, length in (("", 2048), ("_short", 64))
            },
            expectations=[*over("cold", "warm", "cold_short"), *over("warm", "hot")],
            ranked=True,
        ),
        Ablation(
            name="seed_self",
            sizes=DISTILLING,
            statement="SEED teaches more by soft targets over neighbours than by its paper's and its code's cold ones.",
            source="Fang et al. 2021, arXiv:2101.04731, with its temperatures and its code's; the claim is ours",
            teacher=TEACHER,
            arms={
                "soft": _seed("own key out, 0.04", 0.04, 0.04),
                "soft_short": _seed("own key out, 0.04, 64 anchors", 0.04, 0.04, queue_length=64),
                "softer": _seed("own key out, 0.1", 0.1, 0.1),
                "softer_short": _seed("own key out, 0.1, 64 anchors", 0.1, 0.1, queue_length=64),
                "paper": _seed("own key in, 0.2 and 0.01 (paper)", 0.2, 0.01, include_self=True),
                "paper_short": _seed("as the paper, 64 anchors", 0.2, 0.01, include_self=True, queue_length=64),
                "cold": _seed("own key in, 0.2 and 1e-4 (code)", 0.2, 1e-4, include_self=True),
                "cold_short": _seed("as the code, 64 anchors", 0.2, 1e-4, include_self=True, queue_length=64),
            },
            expectations=over("soft", "paper", "cold"),
            ranked=True,
        ),
        Ablation(
            name="s2bnn",
            sizes=DISTILLING,
            statement="A binary network learns most from distillation alone, least from contrast alone.",
            source="Shen et al. 2021, arXiv:2102.08946, table 1 (61.5, 56.0 and 52.5)",
            teacher=TEACHER,
            arms={
                "distillation": _binary("distillation only"),
                "both": _binary("distillation and contrastive", contrastive=1.0),
                "contrastive": _binary("contrastive only", distillation=0.0, contrastive=1.0),
                "random": _binary("distillation from a random teacher", teacher="random"),
                "permuted": _binary("distillation of permuted targets", teacher="permuted"),
                "real": _binary("real weights, distillation only", backbone=f"{BINARY}_real"),
                "two_steps": _binary("distillation only, from the real weights of that", init="real"),
                "longer": _binary("distillation only, twice as long, as both steps are together", epochs=2),
            },
            expectations=[*over("distillation", "both", "random", "permuted"), *over("both", "contrastive")],
            ranked=True,
        ),
        Ablation(
            name="foundation",
            sizes=DISTILLING,
            statement="The foundation recipe's student beats the same student pretrained alone, and plain regression; "
            "no sham teacher does.",
            source="Beyer et al. 2021, arXiv:2106.05237; lightly-train's distillation v3; the shams are ours",
            teacher=TEACHER,
            arms={
                "foundation": Arm("foundation", "foundation", teacher="teacher"),
                "regression": Arm("regression", "regression", teacher="teacher"),
                "random": Arm("foundation, from a random teacher", "foundation", teacher="random"),
                "permuted": Arm("foundation, with permuted targets", "foundation", teacher="permuted"),
                "alone": ALONE,
            },
            expectations=[
                *over("foundation", "alone", "regression"),
                *over("alone", "random", "permuted", margin=0.03),
            ],
        ),
    )
}
