"""SEED (Fang et al. 2021, arXiv:2101.04731): a small student distilled from a self-supervised teacher is better than
the same student pretrained by self-supervision alone.

Arms, all with the same student, the same images and the same number of passes over them:

    alone       the student pretrained by SimCLR (it sees two views an image: twice SEED's student compute)
    seed        SEED from the SimCLR teacher
    random      SEED from the same teacher network at random initialisation: is any fixed target enough?
    permuted    SEED from the teacher's answer for another image: is it what the teacher says about *this* image?

The claim holds if seed is above alone; that it is above both sham arms is its premise (claims/verdict.py has the rule).
Measured at the last epoch on frozen features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar import stages
from attar.claims.ablation import measure
from attar.claims.base import ClaimResult
from attar.claims.images import set_up
from attar.claims.teachers import PermutedTeacher, untrained_twin
from attar.claims.verdict import judge, over

SOURCE = "Fang et al. 2021, arXiv:2101.04731, table 1"
STATEMENT = "SEED's student beats the same student pretrained alone."
ARMS = {
    "teacher": "teacher (SimCLR), for reference",
    "untrained": "student, random initialisation",
    "alone": "student, SimCLR alone",
    "seed": "student, SEED",
    "random": "student, SEED from a random teacher",
    "permuted": "student, SEED with permuted targets",
}
EXPECTATIONS = (*over("seed", "alone"), *over("seed", "random", "permuted", premise=True))


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of an experiment. images, test_images: at most so many are used."""

    images: int
    test_images: int
    image_size: int
    teacher: str
    teacher_epochs: int
    student: str
    student_epochs: int
    batch_size: int
    seeds: int
    stem: str = "standard"


SIZES = {
    "cpu": Size(
        images=10_000,
        test_images=2_000,
        image_size=16,
        teacher="resnet20",
        teacher_epochs=20,
        student="resnet8x0.5",
        student_epochs=10,
        batch_size=256,
        seeds=3,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        teacher="resnet18",
        teacher_epochs=200,
        student="resnet20",
        student_epochs=100,
        batch_size=512,
        seeds=3,
        stem="small",
    ),
}


def run_claim(
    *, data: str, test: str | None, size: str, out: Path | None, seeds: int | None, device: str
) -> ClaimResult:
    """Run what is missing of the experiment in `out`, then judge. See the module's docstring."""
    from attar.models.teachers import load_teacher

    plan, train, held_out, out = set_up("seed", SIZES, size, data=data, test=test, out=out)
    num_seeds = seeds or plan.seeds
    result = ClaimResult(
        name="seed",
        statement=STATEMENT,
        data=f"{data}: {len(train)} images to train on, {len(held_out)} to measure",
        conditions={
            "size": size,
            "teacher": f"{plan.teacher}, {plan.teacher_epochs} epochs",
            "student": f"{plan.student}, {plan.student_epochs} epochs",
            "pixels": plan.image_size,
            "seeds": num_seeds,
        },
        arms=ARMS,
    )
    common: dict[str, Any] = {
        "image_size": plan.image_size,
        "batch_size": min(plan.batch_size, len(train) // 4),
        "device": device,
    }
    teacher = out / "teacher"
    stages.pretrain(
        train, out=teacher, backbone=plan.teacher, stem=plan.stem, epochs=plan.teacher_epochs, resume=True, **common
    ).or_stop()
    untrained_twin(teacher, out / "random-teacher", train)
    measure(result, "teacher", teacher, train, held_out, device, seed=0)
    for seed in range(num_seeds):
        common |= {"seed": seed, "epochs": plan.student_epochs, "resume": True, "backbone": plan.student}
        folder = out / f"seed{seed}"
        stages.pretrain(train, out=folder / "alone", **common).or_stop()
        teachers: dict[str, Path | PermutedTeacher] = {
            "seed": teacher,
            "random": out / "random-teacher",
            "permuted": PermutedTeacher(load_teacher(teacher)),
        }
        for arm, taught_by in teachers.items():
            stages.distill(train, teacher=taught_by, out=folder / arm, **common).or_stop()
        for arm in ("alone", "seed", "random", "permuted"):
            untrained = "untrained" if arm == "alone" else ""
            measure(result, arm, folder / arm, train, held_out, device, seed=seed, untrained=untrained)
        result.verdict = judge(EXPECTATIONS, result, digits=data == "digits")
        result.save(out)
    return result


CLAIM = run_claim
