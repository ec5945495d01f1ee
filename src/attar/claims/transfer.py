"""Claims about pretext tasks and about knowledge transfer by clusters (Noroozi et al. 2018, arXiv:1805.00385).

An arm is a network that is measured on frozen features: either one trained on a pretext task, or a small one trained
from scratch to name clusters of another network's features. Within a claim all networks that are measured see the same
images equally often (a pretext task may use several views of one in a step: rotation four, jigsaw nine tiles), with the
same batch; last epoch. Pretext networks are trained once a seed and shared by the arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attar import stages
from attar.claims.ablation import Ablation, measure
from attar.claims.ablation import Arm as Method
from attar.claims.base import ClaimResult
from attar.claims.images import set_up
from attar.claims.teachers import untrained_twin
from attar.claims.verdict import Expectation, judge, over
from attar.models.clusters import Clusters, Named

if TYPE_CHECKING:
    from attar.data.images import Images


@dataclass(frozen=True)
class Arm:
    """what: in words, for the table. pretext: a method, "untrained" or "hog". network: which solves the pretext task.

    settings: fields of the recipe to replace. taught: is a small network taught by clusters measured, or the pretext
    network itself? images: those the clusters are made of. shuffled: labels are dealt out at random.
    """

    what: str
    pretext: str = "rotation"
    recipe: str = "small"
    settings: tuple[tuple[str, Any], ...] = ()
    network: Literal["deep", "small"] = "deep"
    taught: bool = True
    images_a_cluster: int = 50  # on average
    layer: str = "features"
    images: Literal["own", "other"] = "own"
    shuffled: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim: what is said, by whom, and what must be seen. halves: arms are trained and measured on the first half of
    the classes; the images of the second half are the others."""

    name: str
    statement: str
    source: str
    arms: Mapping[str, Arm]
    expectations: Sequence[Expectation]
    halves: bool = False

    def __call__(self, **asked: Any) -> ClaimResult:
        return run_transfer(self, **asked)


@dataclass(frozen=True)
class Layers:
    """A claim about the layers of the deep pretext network; its arms are these, by the protocol `layers`."""

    name: str
    statement: str
    source: str
    expectations: Sequence[Expectation]
    pretext: Arm = Arm("rotation", taught=False)

    def __call__(self, **asked: Any) -> ClaimResult:
        return run_layers(self, **asked)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of an experiment. images, test_images: at most so many are used. values: of a layer, for `layers`."""

    images: int
    test_images: int
    image_size: int
    deep: str
    small: str
    epochs: int
    batch_size: int
    seeds: int
    values: int = 2000


SIZES = {
    "cpu": Size(
        images=5_000,
        test_images=2_000,
        image_size=32,
        deep="resnet20",
        small="resnet8x0.5",
        epochs=20,
        batch_size=128,
        seeds=3,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        deep="resnet56x2",
        small="resnet20",
        epochs=100,
        batch_size=256,
        seeds=3,
        values=9000,
    ),
}


@dataclass(frozen=True)
class _Experiment:
    """One seed of a claim: its images and where its runs lie."""

    plan: Size
    train: Images
    other: Images
    out: Path
    seed: int
    device: str

    def common(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "image_size": plan.image_size,
            "epochs": plan.epochs,
            "batch_size": min(plan.batch_size, max(len(self.train) // 4, 2)),
            "seed": self.seed,
            "device": self.device,
            "resume": True,
            "progress": False,
        }

    def pretext(self, arm: Arm) -> Path | str:
        """The network that solves the arm's pretext task: a run, or a name."""
        if arm.pretext == "hog":
            return "hog"
        if arm.pretext == "untrained":
            trained = self.pretext(Arm("", network=arm.network))
            return untrained_twin(Path(trained), self.out / f"untrained-{arm.network}", self.train, seed=self.seed)
        changed = [f"{name}={value}" for name, value in arm.settings]
        run = self.out / "-".join([arm.pretext, arm.recipe, *changed, arm.network])
        network = self.plan.deep if arm.network == "deep" else self.plan.small
        stages.pretrain(
            self.train,
            out=run,
            method=arm.pretext,
            recipe=arm.recipe,
            settings=dict(arm.settings),
            backbone=network,
            **self.common(),
        ).or_stop()
        return run

    def taught(self, key: str, arm: Arm) -> Path:
        """The small network that has learnt the clusters."""
        run = self.out / key
        stages.distill(
            self.train,
            teacher=self.clusters(arm),  # type: ignore[arg-type]
            out=run,
            method="cluster_transfer",
            recipe="small",
            backbone=self.plan.small,
            **self.common(),
        ).or_stop()
        return run

    def clusters(self, arm: Arm) -> Clusters:
        import torch

        from attar.models.clusters import ClusterSettings, find_clusters
        from attar.models.teachers import load_teacher

        images = self.other if arm.images == "other" else self.train
        teacher = load_teacher(
            self.pretext(arm), output="features", image_size=self.plan.image_size, channels=images.channels
        )
        num_clusters = max(len(images) // arm.images_a_cluster, 2)
        settings = ClusterSettings(num_clusters=num_clusters, layer=arm.layer, seed=self.seed)
        found = find_clusters(teacher, images, settings, folder=self.out / "cache", device=torch.device("cpu"))
        return Shuffled(found) if arm.shuffled else found


class Shuffled(Clusters):
    """Clusters whose labels are dealt out to the images at random: as many of each, without meaning."""

    def __init__(self, of: Clusters):
        super().__init__(of.teacher, of.settings, of.projection, of.centroids, of.numbers)
        self.digest = f"shuffled {of.digest}"

    def assign(self, images: Images, **where: Any) -> Named:
        named = super().assign(images, **where)
        order = np.random.default_rng(self.settings.seed).permutation(len(images))
        return Named(named.cluster[order], named.distance[order], named.num_clusters)


def run_transfer(
    claim: Claim, *, data: str, test: str | None, size: str, out: Path | None, seeds: int | None, device: str
) -> ClaimResult:
    """Run what is missing of the experiment in `out`, then judge."""
    plan, train, held_out, out = set_up(claim.name, SIZES, size, data=data, test=test, out=out)
    other = train
    if claim.halves:
        (train, other), (held_out, _) = _halves(train), _halves(held_out)
    result = _result(claim, plan, data, train, held_out, seeds)
    result.arms = {"untrained": "small network, untrained", **{key: arm.what for key, arm in claim.arms.items()}}
    beside = next(key for key, arm in claim.arms.items() if arm.taught or arm.network == "small")
    for seed in range(result.conditions["seeds"]):
        experiment = _Experiment(plan, train, other, out / f"seed{seed}", seed, device)
        for key, arm in claim.arms.items():
            run = experiment.taught(key, arm) if arm.taught else Path(experiment.pretext(arm))
            untrained = "untrained" if key == beside else ""
            measure(result, key, run, train, held_out, device, seed=seed, untrained=untrained)
        result.verdict = judge(claim.expectations, result, digits=data == "digits")
        result.save(out)
    return result


def run_layers(
    claim: Layers, *, data: str, test: str | None, size: str, out: Path | None, seeds: int | None, device: str
) -> ClaimResult:
    """The pretext network beside its untrained twin, layer by layer."""
    plan, train, held_out, out = set_up(claim.name, SIZES, size, data=data, test=test, out=out)
    result = _result(claim, plan, data, train, held_out, seeds)
    for seed in range(result.conditions["seeds"]):
        run = _Experiment(plan, train, train, out / f"seed{seed}", seed, device).pretext(claim.pretext)
        measured = stages.evaluate(
            run,
            train,
            test=held_out,
            protocols=(f"layers:{plan.values}",),
            controls=("random_init",),
            num_untrained=1,
            seed=seed,
            device=device,
            progress=False,
        )
        for row in sorted(measured.rows, key=lambda row: row["settings"]["depth"]):
            if row["metric"] == "top1":
                arm = f"{'untrained ' if row['subject'] == 'random_init' else ''}{row['settings']['variant']}"
                result.arms[arm] = arm
                result.values.setdefault(arm, {}).setdefault("layers", []).append(row["value"])
        result.verdict = judge(claim.expectations, result, digits=data == "digits", metrics=("layers",))
        result.save(out)
    return result


def _result(
    claim: Claim | Layers, plan: Size, data: str, train: Images, held_out: Images, seeds: int | None
) -> ClaimResult:
    conditions = {name: getattr(plan, name) for name in ("deep", "small", "image_size", "epochs")}
    return ClaimResult(
        name=claim.name,
        statement=f"{claim.statement} ({claim.source})",
        data=f"{data}: {len(train)} images to train on, {len(held_out)} to measure",
        conditions={**conditions, "seeds": seeds or plan.seeds},
        arms={},
    )


def _halves(images: Images) -> tuple[Images, Images]:
    """The images of the even classes and those of the odd ones."""
    assert images.labels is not None
    odd = images.labels % 2 == 1
    return images.subset(~odd), images.subset(odd)


LITTLE = 0.03  # what a claim of "little" may cost, top-1

NOROOZI = "Noroozi et al. 2018, arXiv:1805.00385"
TWINS = {  # what each task's features must beat; colorization's network sees lightness only
    **dict.fromkeys(("exemplar", "relative_position", "jigsaw", "inpainting", "rotation"), "untrained"),
    "colorization": "untrained colorization",
}
WITHOUT_PLUS_PLUS = ("max_foreign", 0), ("grey", 0.3)  # the same tiles and permutations, as Jigsaw shows them
ROTATION = Arm("taught by clusters of the deep network's features (rotation)")
CLAIMS: dict[str, Claim | Layers | Ablation] = {
    claim.name: claim
    for claim in (
        Claim(
            name="cluster_transfer",
            statement="A small network taught by clusters of a deeper pretext network is better than the same network "
            "trained on the pretext task itself.",
            source=NOROOZI,
            arms={
                "deep": Arm("deep network, rotation, for reference", taught=False),
                "alone": Arm("small network, rotation itself", network="small", taught=False),
                "transfer": ROTATION,
                "hog": Arm("taught by clusters of HOG", "hog"),
                "random_network": Arm("taught by clusters of the deep network, untrained", "untrained"),
                "random_labels": Arm("taught by the same clusters, dealt out at random", shuffled=True),
            },
            expectations=over("transfer", "alone", "random_network", "random_labels"),
        ),
        Claim(
            name="jigsaw_plus_plus",
            statement="Jigsaw++ is better than Jigsaw where a deeper network solves it, and transfer between equal "
            "networks gains little.",
            source=NOROOZI,
            arms={
                "jigsaw": Arm(
                    "taught by clusters of the deep network, Jigsaw", "jigsaw", "small_plus_plus", WITHOUT_PLUS_PLUS
                ),
                "plus_plus": Arm("taught by clusters of the deep network, Jigsaw++", "jigsaw", "small_plus_plus"),
                "equal": Arm(
                    "taught by clusters of its own kind, Jigsaw++", "jigsaw", "small_plus_plus", network="small"
                ),
                "alone": Arm(
                    "small network, Jigsaw++ itself", "jigsaw", "small_plus_plus", network="small", taught=False
                ),
            },
            expectations=[*over("plus_plus", "jigsaw"), *over("alone", "equal", margin=LITTLE)],
        ),
        Claim(
            name="number_of_clusters",
            statement="The number of clusters matters little over a wide range.",
            source=NOROOZI,
            arms={
                "few": Arm("a cluster for 150 images", images_a_cluster=150),
                "usual": Arm("a cluster for 50 images"),
                "many": Arm("a cluster for 15 images", images_a_cluster=15),
            },
            expectations=[
                *over("few", "usual", "many", margin=LITTLE),
                *over("usual", "few", "many", margin=LITTLE),
                *over("many", "few", "usual", margin=LITTLE),
            ],
        ),
        Claim(
            name="clusters_of_others",
            statement="Clusters of one data set label another with a small loss.",
            source=NOROOZI,
            arms={
                "own": Arm("clusters of the images it is trained on"),
                "other": Arm("clusters of images of other classes", images="other"),
                "random_labels": Arm("the former, dealt out at random", images="other", shuffled=True),
            },
            expectations=[*over("other", "own", margin=LITTLE), *over("other", "random_labels")],
            halves=True,
        ),
        Layers(
            name="best_layer",
            statement="The last layer of a pretext network is not the one that transfers best.",
            source="Gidaris et al. 2018, arXiv:1803.07728, table 1; Kolesnikov et al. 2019, "
            "arXiv:1901.09005, section 4.5, find it for VGG, and not for residual networks",
            expectations=[*over("stage2", "stage3"), *over("stage2", "untrained stage2")],
        ),
        Ablation(
            name="pretext_tasks",
            statement="Each pretext task makes better features than random initialisation, at an equal budget.",
            source="the papers of the tasks",
            arms={
                name: Method(
                    name.replace("_", " "), name, own_twin=twin != "untrained", may_be_refused=name == "colorization"
                )
                for name, twin in TWINS.items()
            },
            expectations=[
                Expectation((name,), (twin,), name.replace("_", " "), metrics=("linear",))
                for name, twin in TWINS.items()
            ],
            ranked=True,
        ),
    )
}
