"""Claims about distilling with labels: what SSKD adds to KD, when its compute is counted, and what its parts are for.

One teacher, trained with all labels, and one self-supervised head for each task are shared by all arms and seeds; in
the claims of few and wrong labels it is the student's that are few or wrong. Arms are measured by their own classifier
on images that are never touched; last epoch. Each arm says how often the student saw an image: SSKD sees four views of
it where KD sees one.

A size named TEACHER-STUDENT is a pair of networks at its published length, for CIFAR-100 on a GPU; its table has the
published figures in a column of their own:

    attar reproduce sskd --size wrn_40_2-wrn_16_2 --data torchvision:CIFAR100:train --test torchvision:CIFAR100:test
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attar import stages
from attar.claims.base import ClaimResult
from attar.claims.images import set_up
from attar.claims.verdict import Expectation, judge, over

if TYPE_CHECKING:
    from attar.data.images import Images

METRIC = "classifier"
SSKD = "Xu et al. 2020, arXiv:2006.07114"


@dataclass(frozen=True)
class Arm:
    """A student. times: its epochs, as a multiple of the size's. options: label_fraction, label_noise.

    network: "student", or "other", of another family than the teacher.
    """

    what: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Literal["student", "other"] = "student"

    @property
    def task(self) -> str:
        """Of the self-supervised head that its teacher needs; "" if it needs none."""
        return self.settings.get("task", "contrastive") if self.method == "sskd" else ""

    @property
    def views(self) -> int:
        """That the student sees of an image in an epoch."""
        return 4 if self.method == "sskd" else 1


@dataclass(frozen=True)
class Claim:
    """A claim: what is said, by whom, and what must be seen. ranked: the verdict also names the arms in order."""

    name: str
    statement: str
    source: str
    arms: Mapping[str, Arm]
    expectations: Sequence[Expectation]
    ranked: bool = False

    def __call__(self, **asked: Any) -> ClaimResult:
        return run_claim(self, **asked)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of an experiment. teacher_epochs: with labels; head_epochs: of its self-supervised head, a quarter of
    these as in the paper. teacher_stem: as `--stem`. student_settings: of every student. published: top-1 by arm, as
    others printed it."""

    images: int
    test_images: int
    image_size: int
    teacher: str
    student: str
    other: str
    teacher_epochs: int
    epochs: int
    head_epochs: int
    batch_size: int
    seeds: int
    teacher_stem: str = "standard"
    student_settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)


# for a batch of 256: 0.01 for 64, a fifth of the others' rate, as published for MobileNets and ShuffleNets
SLOW = {"base_lr": 0.04}

SIZES = {
    "cpu": Size(
        images=5_000,
        test_images=2_000,
        image_size=16,
        teacher="resnet20",
        student="resnet8x0.5",
        other="mobilenetv2_smallx0.25",
        teacher_epochs=30,
        epochs=20,
        head_epochs=8,
        batch_size=64,
        seeds=3,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        teacher="resnet32x4",
        student="resnet8x4",
        other="shufflenetv1_small",
        teacher_epochs=60,
        epochs=60,
        head_epochs=15,
        batch_size=256,
        seeds=3,
    ),
}

# (teacher, student): top-1 on CIFAR-100 that the authors of SSKD print (repository xuguodong03/SSKD, README). Their KD
# row is that of Tian et al. 2020, whose teachers were others; they chose epochs by test images, ours is the last.
PUBLISHED = {
    ("wrn_40_2", "wrn_16_2"): (76.46, 73.64, 74.92, 75.75, 75.28, 75.40, 76.04, 76.04),
    ("wrn_40_2", "wrn_40_1"): (76.46, 72.24, 73.54, 74.12, 74.45, 73.87, 75.52, 76.13),
    ("resnet56", "resnet20"): (73.44, 69.63, 70.66, 71.60, 71.78, 71.48, 71.68, 71.49),
    ("resnet32x4", "resnet8x4"): (79.63, 72.51, 73.33, 74.31, 74.26, 74.47, 75.90, 76.20),
    ("vgg13_small", "vgg8_small"): (75.38, 70.68, 72.98, 73.54, 73.62, 73.72, 74.06, 75.33),
    ("vgg13_small", "mobilenetv2_smallx0.5"): (75.38, 65.79, 67.37, 68.58, 69.34, 68.50, 68.49, 71.53),
    ("resnet50", "mobilenetv2_smallx0.5"): (79.10, 65.79, 67.35, 68.54, 69.28, 68.46, 70.32, 72.57),
    ("resnet50", "vgg8_small"): (79.10, 70.68, 73.81, 73.84, 73.45, 73.73, 74.42, 75.76),
    ("resnet32x4", "shufflenetv1_small"): (79.63, 70.77, 74.07, 74.82, 74.76, 74.20, 75.46, 78.44),
    ("resnet32x4", "shufflenetv2_small"): (79.63, 73.12, 74.45, 75.11, 75.30, 75.74, 75.72, 78.61),
    ("wrn_40_2", "shufflenetv1_small"): (76.46, 70.77, 74.83, 75.55, 75.61, 75.45, 75.96, 77.40),
}
PUBLISHED_ARMS = ("teacher", "alone", "kd", "fitnet", "attention", "relational", "crd", "sskd")


def _pair(teacher: str, student: str) -> Size:
    """The published length of a published pair, for a GPU and CIFAR-100."""
    return replace(
        SIZES["gpu"],
        teacher=teacher,
        student=student,
        teacher_epochs=240,
        epochs=240,
        head_epochs=60,
        batch_size=64,
        teacher_stem="small" if teacher == "resnet50" else "standard",  # timm's, made for photographs
        student_settings=SLOW if student.startswith(("mobile", "shuffle")) else {},
        published=dict(zip(PUBLISHED_ARMS, PUBLISHED[teacher, student], strict=True)),
    )


SIZES |= {f"{teacher}-{student}": _pair(teacher, student) for teacher, student in PUBLISHED}


def run_claim(
    claim: Claim, *, data: str, test: str | None, size: str, out: Path | None, seeds: int | None, device: str
) -> ClaimResult:
    """Run what is missing of the experiment in `out`, then judge."""
    plan, train, held_out, out = set_up(claim.name, SIZES, size, data=data, test=test, out=out)
    experiment = _Experiment(plan, train, held_out, out, device)
    shown = ("teacher", "student", "other", "image_size", "teacher_epochs", "epochs", "head_epochs", "batch_size")
    stem = {} if plan.teacher_stem == "standard" else {"teacher_stem": plan.teacher_stem}
    result = ClaimResult(
        name=claim.name,
        statement=f"{claim.statement} ({claim.source})",
        data=f"{data}: {len(train)} images to train on, {len(held_out)} to measure",
        conditions={name: getattr(plan, name) for name in shown} | stem | {"seeds": seeds or plan.seeds},
        arms={
            "teacher": f"teacher ({plan.teacher}), for reference",
            **{
                key: f"{arm.what}; {arm.times * arm.views * plan.epochs} views an image"
                for key, arm in claim.arms.items()
            },
        },
    )
    experiment.measure(result, "teacher", experiment.teacher(), seed=0)
    for seed in range(result.conditions["seeds"]):
        for key, arm in claim.arms.items():
            experiment.measure(result, key, experiment.student(key, arm, seed), seed=seed)
        result.verdict = judge(
            claim.expectations, result, metrics=(METRIC,), ranked=claim.ranked, digits=data == "digits"
        )
        result.save(out)
    return result


@dataclass(frozen=True)
class _Experiment:
    """Trainings of one size; each is done once."""

    plan: Size
    train: Images
    held_out: Images
    out: Path
    device: str

    def teacher(self, task: str = "") -> Path:
        """The teacher, or the teacher with a head for that task."""
        plain = self.out / "teacher"
        if not task:
            shared = self._shared(self.plan.teacher, self.plan.teacher_epochs, seed=0)
            stem = self.plan.teacher_stem
            stages.pretrain(self.train, out=plain, method="supervised", stem=stem, **shared).or_stop()
            return plain
        run, settings = self.out / f"teacher-{task}", {"task": task}
        shared = self._shared(self.plan.teacher, self.plan.head_epochs, seed=0)
        taught_by = self.teacher()
        stages.distill(
            self.train,
            teacher=taught_by,
            out=run,
            method="sskd_teacher",
            stem=self.plan.teacher_stem,
            settings=settings,
            **shared,
        ).or_stop()
        return run

    def student(self, key: str, arm: Arm, seed: int) -> Path:
        run = self.out / f"seed{seed}" / key
        shared = self._shared(getattr(self.plan, arm.network), arm.times * self.plan.epochs, seed)
        settings = self.plan.student_settings
        options = {"out": run, "method": arm.method, "settings": {**settings, **arm.settings}, **shared, **arm.options}
        if arm.method == "supervised":
            stages.pretrain(self.train, **options).or_stop()
        else:
            stages.distill(self.train, teacher=self.teacher(arm.task), **options).or_stop()
        return run

    def _shared(self, backbone: str, epochs: int, seed: int) -> dict[str, Any]:
        return {
            "backbone": backbone,
            "recipe": "small",
            "image_size": self.plan.image_size,
            "epochs": epochs,
            "batch_size": min(self.plan.batch_size, max(len(self.train) // 8, 2)),
            "seed": seed,
            "device": self.device,
            "resume": True,
        }

    def measure(self, result: ClaimResult, arm: str, run: Path, *, seed: int) -> None:
        """Add its classifier's top-1, how far its probabilities are off (ece), and its agreement with the teacher."""
        measured = stages.evaluate(
            run,
            self.train,
            test=self.held_out,
            protocols=("classifier",),
            controls=False,
            teacher=None if arm == "teacher" else self.out / "teacher",
            seed=seed,
            device=self.device,
            progress=False,
        )
        result.add_compute(arm, run)
        named = {"top1": METRIC, "ece": "ece", "agreement": "agreement with the teacher"}
        for row in measured.rows:
            if row["subject"] == "model" and row["metric"] in named:
                result.values.setdefault(arm, {}).setdefault(named[row["metric"]], []).append(row["value"])
        if arm in self.plan.published:
            result.values[arm]["published"] = [self.plan.published[arm] / 100]


ALONE = Arm("labels alone", "supervised")
KD = Arm("KD", "kd")
FULL = Arm("SSKD", "sskd")


def _keeping(share: float) -> Arm:
    return Arm(f"{share:.0%} of the teacher's errors", "sskd", {"keep_wrong": share})


def _with(arm: Arm, what: str, **options: Any) -> Arm:
    return replace(arm, what=f"{arm.what}, {what}", options=options)


# tau of rotation and jigsaw, whose scores are logits
LOGITS = {"self_supervision_temperature": 4.0}

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            name="kd",
            statement="A student learns more from a teacher's soft classes than from labels, smoothed or not.",
            source="Hinton et al. 2015, arXiv:1503.02531; the control with smoothed labels is ours",
            arms={
                "alone": ALONE,
                "smoothed": Arm("labels alone, smoothed by 0.1", "supervised", {"label_smoothing": 0.1}),
                "kd": KD,
            },
            expectations=over("kd", "alone", "smoothed"),
        ),
        Claim(
            name="crd",
            statement="CRD is better than KD, and KD better than hints, attention and relations.",
            source="Tian et al. 2020, arXiv:1910.10699, table 1",
            arms={
                "alone": ALONE,
                "kd": KD,
                "crd": Arm("CRD", "crd"),
                "fitnet": Arm("FitNet hints", "fitnet"),
                "attention": Arm("attention transfer", "attention_transfer"),
                "relational": Arm("relational KD", "relational_kd"),
            },
            expectations=[*over("crd", "kd"), *over("kd", "fitnet", "attention", "relational")],
            ranked=True,
        ),
        Claim(
            name="sskd",
            statement="SSKD is better than KD, than KD on rotated images too, and than KD with as much compute.",
            source=f"{SSKD}, table 2; the last two controls are ours",
            arms={
                "alone": ALONE,
                "kd": KD,
                "kd_longer": Arm("KD, four times the steps", "kd", times=4),
                "rotated": Arm("SSKD without self-supervision", "sskd", {"self_supervision_weight": 0.0}),
                "sskd": FULL,
            },
            expectations=over("sskd", "kd", "rotated", "kd_longer"),
        ),
        Claim(
            name="sskd_tasks",
            statement="Contrastive prediction serves SSKD better than exemplar, jigsaw and rotation.",
            source=f"{SSKD}, section 4.1",
            arms={
                "contrastive": Arm("contrastive", "sskd"),
                "exemplar": Arm("exemplar", "sskd", {"task": "exemplar"}),
                "jigsaw": Arm("jigsaw", "sskd", {"task": "jigsaw", **LOGITS}),
                "rotation": Arm("rotation", "sskd", {"task": "rotation", **LOGITS}),
            },
            expectations=over("contrastive", "exemplar", "jigsaw", "rotation"),
            ranked=True,
        ),
        Claim(
            name="sskd_errors",
            statement="SSKD should pass on most of its teacher's errors in self-supervision, but not all.",
            source=f"{SSKD}, section 4.1",
            arms={f"keep_{round(100 * share)}": _keeping(share) for share in (0.0, 0.5, 0.75, 1.0)},
            expectations=over("keep_75", "keep_0", "keep_100"),
            ranked=True,
        ),
        Claim(
            name="sskd_few_labels",
            statement="SSKD's gain over KD is larger when the student has a quarter of the labelled images.",
            source=f"{SSKD}, section 4.3",
            arms={
                "kd": KD,
                "sskd": FULL,
                **{
                    f"{arm.method}_{name}": _with(arm, f"{share:.0%} of the images", label_fraction=share)
                    for name, share in (("quarter", 0.25), ("half", 0.5), ("most", 0.75))
                    for arm in (KD, FULL)
                },
            },
            expectations=[
                *over("sskd_quarter", "kd_quarter"),
                Expectation(("sskd_quarter", "kd"), ("kd_quarter", "sskd"), "the gain with few minus that with all"),
            ],
        ),
        Claim(
            name="sskd_wrong_labels",
            statement="SSKD loses less than KD when half of the student's labels are wrong.",
            source=f"{SSKD}, section 4.3",
            arms={
                "kd": KD,
                "sskd": FULL,
                "kd_wrong": _with(KD, "half of the labels wrong", label_noise="symmetric:0.5"),
                "sskd_wrong": _with(FULL, "half of the labels wrong", label_noise="symmetric:0.5"),
            },
            expectations=[Expectation(("sskd_wrong", "kd"), ("kd_wrong", "sskd"), "KD's loss minus SSKD's loss")],
        ),
        Claim(
            name="sskd_families",
            statement="SSKD's gain over KD is larger when teacher and student are of different families.",
            source=f"{SSKD}, tables 2 and 3",
            arms={
                "kd": KD,
                "sskd": FULL,
                "kd_other": replace(KD, what="KD, student of another family", network="other", settings=SLOW),
                "sskd_other": replace(FULL, what="SSKD, student of another family", network="other", settings=SLOW),
            },
            expectations=[
                *over("sskd_other", "kd_other"),
                Expectation(("sskd_other", "kd"), ("kd_other", "sskd"), "the gain across families minus that within"),
            ],
        ),
    )
}
