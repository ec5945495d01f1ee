"""SimCLR v2 (Chen et al. 2020, arXiv:2006.10029): with few labels, a small network learns most from what a fine-tuned
large one says of unlabelled images; and that one is best fine-tuned from the first layer of a three-layer projector.

The large network is pretrained once, by SimCLR, on all images. Then for each seed, which also draws the labelled share:

    layer1, layer0    the large network fine-tuned from the first layer of its projector, and from its features
    labels            the small network, untrained at first, on the labelled share alone
    own               the small network, pretrained as the large one was, then fine-tuned as layer1 was
    on_labelled       distilled from layer1 on the images of the labelled share alone
    on_all            distilled from layer1 on all images, without a label
    both              the same, and half of the weight on the labels

Distilled and labelled arms of the small network take about as many optimiser steps of the same batch; those that are
fine-tuned take as many as each other. Measured at the last epoch: top-1 of the run's own classifier on images of which
nothing was trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar import stages
from attar.claims.base import ClaimResult
from attar.claims.images import set_up
from attar.claims.verdict import Expectation, judge
from attar.data.splits import labelled_share

if TYPE_CHECKING:
    from attar.data.images import Images

SOURCE = "Chen et al. 2020, arXiv:2006.10029, section 4"
STATEMENT = "Distilling on unlabelled images carries the gain; fine-tuning starts best inside the projector."
ARMS = {
    "layer1": "large, fine-tuned from the projector's first layer (the teacher)",
    "layer0": "large, fine-tuned from its features",
    "labels": "small, on the labels alone",
    "own": "small, pretrained itself and fine-tuned from the projector's first layer",
    "on_labelled": "small, distilled on the labelled images",
    "on_all": "small, distilled on all images",
    "both": "small, distilled on all images, with labels",
}
EXPECTATIONS = (
    Expectation(("on_all",), ("labels",), "unlabelled images beside labels alone"),
    Expectation(("on_all",), ("own",), "the large network's answers beside pretraining the small one"),
    Expectation(("on_all",), ("on_labelled",), "unlabelled images beside distilling on the labelled ones"),
    Expectation(("layer1",), ("layer0",), "first layer of the projector beside the features"),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of an experiment. images, test_images: at most so many; epochs: over all images."""

    images: int
    test_images: int
    image_size: int
    large: str
    small: str
    stem: str
    label_fraction: float
    pretraining_epochs: int
    finetuning_steps: int
    epochs: int
    batch_size: int
    seeds: int


SIZES = {
    "cpu": Size(
        images=10_000,
        test_images=2_000,
        image_size=16,
        large="resnet20",
        small="resnet8x0.5",
        stem="standard",
        label_fraction=0.01,  # 10 of each class of CIFAR-10
        pretraining_epochs=10,
        finetuning_steps=500,
        epochs=10,
        batch_size=64,
        seeds=3,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        large="resnet50",
        small="resnet18",
        stem="small",
        label_fraction=0.01,
        pretraining_epochs=200,
        finetuning_steps=2_000,
        epochs=100,
        batch_size=256,
        seeds=3,
    ),
}


def run_claim(
    *, data: str, test: str | None, size: str, out: Path | None, seeds: int | None, device: str
) -> ClaimResult:
    """Run what is missing of the experiment in `out`, then judge. See the module's docstring."""
    plan, train, held_out, out = set_up("simclr_v2", SIZES, size, data=data, test=test, out=out)
    share = labelled_share(train, plan.label_fraction)
    result = ClaimResult(
        name="simclr_v2",
        statement=f"{STATEMENT} ({SOURCE})",
        data=f"{data}: {len(train)} images to train on, {len(share)} of them labelled, {len(held_out)} to measure",
        conditions={
            "large": f"{plan.large}, {plan.pretraining_epochs} epochs",
            "small": f"{plan.small}, {plan.epochs} epochs",
            "label_fraction": plan.label_fraction,
            "seeds": seeds or plan.seeds,
        },
        arms=ARMS,
    )
    common: dict[str, Any] = {"image_size": plan.image_size, "stem": plan.stem, "device": device, "resume": True}
    batch = min(plan.batch_size, len(train) // 4)
    for name, backbone in (("large", plan.large), ("small", plan.small)):
        stages.pretrain(
            train,
            out=out / name,
            method="simclr",
            recipe="small",
            backbone=backbone,
            epochs=plan.pretraining_epochs,
            batch_size=min(2 * batch, len(train) // 4),
            settings={"projector_layers": 3},
            **common,
        ).or_stop()
    for seed in range(seeds or plan.seeds):
        _train_arms(plan, train, out, seed, batch, common)
        for arm in ARMS:
            measured = stages.evaluate(
                out / f"seed{seed}" / arm,
                train,
                test=held_out,
                protocols=("classifier",),
                controls=False,
                device=device,
                progress=False,
            )
            result.add_compute(arm, out / f"seed{seed}" / arm)
            for metric in ("top1", "ece"):
                row = result.values.setdefault(arm, {}).setdefault(metric, [])
                row.append(measured.value("classifier", metric))
        result.verdict = judge(EXPECTATIONS, result, metrics=("top1",), digits=data == "digits")
        result.save(out)
    return result


def _train_arms(plan: Size, train: Images, out: Path, seed: int, batch: int, common: dict[str, Any]) -> None:
    """The runs of a seed; few images are passed over so often that the number of steps is about the same."""
    folder = out / f"seed{seed}"
    few = train.subset(labelled_share(train, plan.label_fraction, seed))
    small_batch = min(batch, max(len(few) // 2, 2))
    steps = plan.epochs * (len(train) // batch)
    repeated = math.ceil(steps / (len(few) // small_batch))
    share = {"label_fraction": plan.label_fraction, "label_seed": seed}
    tuning = {"method": "finetune", "recipe": "small", "seed": seed, "batch_size": small_batch, **common}
    epochs = math.ceil(plan.finetuning_steps / (len(few) // small_batch))
    for arm, init, layer in (("layer1", "large", 1), ("layer0", "large", 0), ("own", "small", 1)):
        stages.pretrain(
            train,
            out=folder / arm,
            init=out / init,
            backbone=getattr(plan, init),
            epochs=epochs,
            settings={**share, "from_layer": layer},
            **tuning,
        ).or_stop()
    stages.pretrain(
        train,
        out=folder / "labels",
        backbone=plan.small,
        epochs=repeated,
        settings={**share, "from_layer": 0},
        **tuning,
    ).or_stop()
    arms: dict[str, tuple[Images, int, int, dict[str, Any]]] = {
        "on_labelled": (few, repeated, small_batch, {}),
        "on_all": (train, plan.epochs, batch, {}),
        "both": (train, plan.epochs, batch, {**share, "label_weight": 0.5}),
    }
    for arm, (images, epochs, batch_size, settings) in arms.items():
        stages.distill(
            images,
            teacher=folder / "layer1",
            out=folder / arm,
            method="simclr_v2",
            recipe="small",
            backbone=plan.small,
            epochs=epochs,
            batch_size=batch_size,
            settings=settings,
            seed=seed,
            **common,
        ).or_stop()


CLAIM = run_claim
