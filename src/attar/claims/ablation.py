"""Claims of the form "this part is needed": a method as it is beside the same with one part changed.

An arm is a method (of the catalogue, or one of claims/arms) with settings; what must be seen of the arms, and the rule
that decides, are in claims/verdict.py. All arms see the same images for the same number of epochs, unless they say
otherwise, with the same backbone and batch; last epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attar import stages
from attar.claims.base import ClaimResult
from attar.claims.images import set_up
from attar.claims.teachers import PermutedTeacher, copy_of, untrained_twin
from attar.claims.verdict import METRICS, Expectation, judge
from attar.errors import BackboneError, RecipeError
from attar.evaluation.metrics import LOWER_IS_BETTER
from attar.train.log import read_json_lines

if TYPE_CHECKING:
    from attar.data.images import Images


@dataclass(frozen=True)
class Arm:
    """A method with settings; what: in words, for the table. A setting of "batch_size", "teacher" or "stem" takes the
    batch, the teacher network or the stem of the size.

    backbone: another network than the size's. own_twin: also measure this arm's network untrained, as "untrained ARM",
    for arms whose method builds another one (of lightness only, of tokens). teacher: for methods that distil: "teacher"
    is the claim's own, "random" the same network untrained, "permuted" the teacher's answers for another image; or an
    earlier arm, of the same seed. init: an earlier arm, of the same seed, whose weights this one starts from.
    epochs: times those of the size. generation: of networks that teach the next; a thousand each is added to the seed,
    so that every one has new weights and views of its own. may_be_refused: its method needs what not all images have
    (colours); where it refuses them, the arm is left out, and the result says why.
    """

    what: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "small"
    backbone: str = ""
    own_twin: bool = False
    teacher: str = ""
    init: str = ""
    generation: int = 0
    epochs: float = 1.0
    may_be_refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of an experiment. images, test_images: at most so many are used."""

    images: int
    test_images: int
    image_size: int
    convnet: str
    stem: str
    vit: str
    teacher: str
    epochs: int
    batch_size: int
    seeds: int


SIZES = {
    "cpu": Size(
        images=5_000,
        test_images=2_000,
        image_size=32,
        convnet="resnet8",
        stem="standard",
        vit="vit_micro_p8",
        teacher="resnet20",
        epochs=20,
        batch_size=128,
        seeds=3,
    ),
    "photo": Size(  # of 64 px; for --teacher: a student that is a fortieth of EfficientNet-Lite0
        images=2_000,
        test_images=1_000,
        image_size=64,
        convnet="resnet8",
        stem="standard",
        vit="vit_micro_p8",
        teacher="resnet18",
        epochs=10,
        batch_size=64,
        seeds=3,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        convnet="resnet18",
        stem="small",
        vit="vit_tiny_p4",
        teacher="resnet50",
        epochs=200,
        batch_size=512,
        seeds=3,
    ),
}
# of 16 px on a CPU: distilling trains a teacher, and many students
DISTILLING = SIZES | {"cpu": replace(SIZES["cpu"], image_size=16)}


@dataclass(frozen=True)
class Ablation:
    """A claim: what is said, by whom, and what must be seen.

    network: which of the size's networks all arms train. ranked: the verdict also names the arms from best to worst.
    teacher: trained once, for arms that distil, on the size's teacher network for as many epochs as the arms.
    protocols: what every arm is measured by; "classifier" is its own. sizes: by name, what --size takes.
    """

    name: str
    statement: str
    source: str
    arms: Mapping[str, Arm]
    expectations: Sequence[Expectation]
    network: Literal["convnet", "vit"] = "convnet"
    ranked: bool = False
    teacher: Arm | None = None
    protocols: tuple[str, ...] = METRICS
    sizes: Mapping[str, Size] = field(default_factory=lambda: SIZES)


def run_ablation(
    claim: Ablation,
    *,
    data: str,
    test: str | None,
    size: str,
    out: Path | None,
    seeds: int | None,
    device: str,
    teacher: str | None = None,
) -> ClaimResult:
    """Run what is missing of the experiment in `out`, then judge. teacher: instead of the one the claim trains."""
    if teacher is not None and claim.teacher is None:
        raise RecipeError(f"--teacher would be ignored: no arm of {claim.name} is taught by a network. Leave it out.")
    plan, train, held_out, out = set_up(claim.name, claim.sizes, size, data=data, test=test, out=out)
    if teacher is not None:
        out = copy_of(teacher, out, image_size=plan.image_size, channels=train.channels)
    taught_by = out / "teacher"
    batch_size = min(plan.batch_size, max(len(train) // 4, 2))
    vit = claim.network == "vit"
    backbone, stem = (plan.vit, "standard") if vit else (plan.convnet, plan.stem)
    result = ClaimResult(
        name=claim.name,
        statement=f"{claim.statement} ({claim.source})",
        data=f"{data}: {len(train)} images to train on, {len(held_out)} to measure",
        conditions={
            "backbone": ", ".join(dict.fromkeys(arm.backbone or backbone for arm in claim.arms.values())),
            "image_size": plan.image_size,
            "epochs": plan.epochs,
        },
        arms={key: arm.what for key, arm in claim.arms.items()},
    )
    probed = "knn" in claim.protocols
    if probed:
        twins = {f"untrained {key}": f"untrained: {arm.what}" for key, arm in claim.arms.items() if arm.own_twin}
        result.arms = {"untrained": "untrained backbone", **result.arms, **twins}
    num_seeds = seeds or plan.seeds
    result.conditions |= {"batch_size": batch_size, "seeds": num_seeds}
    common: dict[str, Any] = {
        "plan": plan,
        "image_size": plan.image_size,
        "epochs": plan.epochs,
        "batch_size": batch_size,
        "device": device,
        "resume": True,
    }
    if claim.teacher is not None:
        common["taught_by"] = taught_by
        result.arms["teacher"] = f"teacher, {teacher or f'{claim.teacher.what} ({plan.teacher})'}, for reference"
        if teacher is None:
            _train(claim.teacher, train, out=taught_by, backbone=plan.teacher, stem=plan.stem, seed=0, **common)
        measure(result, "teacher", taught_by, train, held_out, device, seed=0, protocols=claim.protocols)
    for seed in range(num_seeds):
        for key, arm in dict(claim.arms).items():
            run = out / f"seed{seed}" / key
            network: dict[str, Any] = (
                {"backbone": arm.backbone} if arm.backbone else {"backbone": backbone, "stem": stem}
            )
            try:
                _train(arm, train, out=run, seed=seed, **network, **common)
            except (BackboneError, RecipeError) as error:
                if not arm.may_be_refused:
                    raise
                claim = _without(claim, key)
                del result.arms[key]
                result.arms.pop(f"untrained {key}", None)
                result.conditions["left out"] = f"{arm.what} ({error})"
                continue
            first = key == next(name for name, arm in claim.arms.items() if not arm.own_twin)
            twin = f"untrained {key}" if arm.own_twin else "untrained" if first and probed else ""
            measured: dict[str, Any] = {"untrained": twin, "protocols": claim.protocols}
            measure(result, key, run, train, held_out, device, seed=seed, **measured)
        result.verdict = judge(
            claim.expectations, result, metrics=claim.protocols, ranked=claim.ranked, digits=data == "digits"
        )
        result.save(out)
    return result


def _without(claim: Ablation, arm: str) -> Ablation:
    """The claim without an arm, and without what was expected of it."""
    arms = {key: value for key, value in claim.arms.items() if key != arm}
    kept = [e for e in claim.expectations if arm not in (*e.better, *e.worse)]
    return replace(claim, arms=arms, expectations=kept)


def _train(arm: Arm, train: Images, *, out: Path, plan: Size, taught_by: Path | None = None, **options: Any) -> None:
    options |= {"method": arm.method, "recipe": arm.recipe, "epochs": max(round(arm.epochs * plan.epochs), 1)}
    of_size = {"batch_size": options["batch_size"], "teacher": plan.teacher, "stem": plan.stem}
    options["settings"] = {k: of_size.get(v, v) if isinstance(v, str) else v for k, v in arm.settings.items()}
    options["seed"] += 1000 * arm.generation
    if arm.init:
        options["init"] = out.parent / arm.init
    if not arm.teacher:
        stages.pretrain(train, out=out, **options).or_stop()
        return
    teacher: Any = taught_by
    if arm.teacher == "random":
        teacher = untrained_twin(teacher, teacher.with_name("random-teacher"), train)
    elif arm.teacher == "permuted":
        from attar.methods.base import resolve_recipe
        from attar.models.teachers import load_teacher

        recipe = resolve_recipe(arm.method, arm.recipe, options["settings"])
        teacher = PermutedTeacher(load_teacher(teacher, output=recipe.teacher_output))  # type: ignore[attr-defined]
    elif arm.teacher != "teacher":
        teacher = out.parent / arm.teacher
    stages.distill(train, teacher=teacher, out=out, **options).or_stop()


def measure(
    result: ClaimResult,
    arm: str,
    run: Path,
    train: Images,
    held_out: Images,
    device: str,
    *,
    seed: int,
    untrained: str = "",
    protocols: Sequence[str] = METRICS,
) -> None:
    """Add an arm's values: top-1 by each protocol, calibration where there is one, and how spread out its last
    embeddings are (0 is a collapse)."""
    measured = stages.evaluate(
        run,
        train,
        test=held_out,
        protocols=protocols,
        controls=("random_init",) if untrained else (),
        num_untrained=1 if untrained else None,
        seed=seed,
        device=device,
        progress=False,
    )
    arm_of = {"model": arm, "random_init": untrained}
    for row in measured.rows:
        if row["metric"] in ("top1", *LOWER_IS_BETTER) and row["subject"] in arm_of:
            values = result.values.setdefault(arm_of[row["subject"]], {})
            name = row["protocol"] if row["metric"] == "top1" else row["metric"]
            values.setdefault(name, []).append(row["value"])
    result.add_compute(arm, run)
    health = read_json_lines(run / "health.jsonl")
    if health:
        result.values[arm].setdefault("embedding std", []).append(health[-1]["embedding_std"])
