"""SEED (Fang et al. 2021, arXiv:2101.04731): a small student distilled from a self-supervised teacher is better than
the same student pretrained by self-supervision alone.

Arms, all with the same student, the same images and the same number of passes over them:

    alone       the student pretrained by SimCLR (it sees two views an image: twice SEED's student compute)
    seed        SEED from the SimCLR teacher
    random      SEED from the same teacher network at random initialisation: is any fixed target enough?
    permuted    SEED from the teacher's answer for another image: is it what the teacher says about *this* image?

The claim holds if seed is above alone, by more than two standard deviations of the paired differences over the seeds,
and both sham arms are not above alone. Measured at the last epoch on frozen features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar import stages
from attar.claims.ablation import METRICS, measure
from attar.claims.base import ClaimResult, compare, few_seeds
from attar.claims.images import set_up
from attar.claims.teachers import PermutedTeacher, untrained_twin

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
        result.verdict = judge(result, digits=data == "digits")
        result.save(out)
    return result


def judge(result: ClaimResult, *, digits: bool) -> str:
    """holds / does not hold / undecided, with the figures that say so."""
    lines, outcomes = [], []
    for metric in METRICS:
        alone = result.values["alone"][metric]
        found = {arm: compare(result.values[arm][metric], alone) for arm in ("seed", "random", "permuted")}
        shams_fine = all(found[arm][2] != "above" for arm in ("random", "permuted"))
        gain, deviation, side = found["seed"]
        outcomes.append(
            {"above": "holds" if shams_fine else "undecided", "below": "does not hold"}.get(side, "undecided")
        )
        shams = ", ".join(f"{arm} {100 * found[arm][0]:+.1f}" for arm in ("random", "permuted"))
        known = f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else ""
        lines.append(f"{metric}: SEED {100 * gain:+.1f}{known} points against alone (shams: {shams})")
    verdict = outcomes[0] if len(set(outcomes)) == 1 else "undecided"
    worth = (
        " These are 8-pixel digits: easy for every arm, so this run shows that the experiment works, and says little "
        "about the claim. Give --data with natural images, e.g. CIFAR-10."
        if digits
        else ""
    )
    return f"Verdict: {verdict} at this size. {'; '.join(lines)}.{few_seeds(len(result.values['alone']['knn']))}{worth}"


CLAIM = run_claim
