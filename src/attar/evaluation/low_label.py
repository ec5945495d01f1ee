"""Few labels: the linear probe fitted on a part of the labelled images, over several draws of that part.

Features are standardised with the statistics of all training images: they need no labels, and those of a handful of
images would be too noisy. The parts depend on the seed only, so every subject is fitted on the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from attar.data.splits import label_fraction, subset_per_class
from attar.errors import AttarError
from attar.evaluation.linear import Standardiser, linear_probe
from attar.evaluation.subject import Outcome, Protocol, Subject

USUAL_SHOTS = (1, 5, 10)


@dataclass(frozen=True)
class LowLabel(Protocol):
    """fractions: shares of the labelled training images, each in (0, 1]. num_seeds: draws of each; all is one."""

    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    num_seeds: int = 5

    name = "low_label"
    bare = "fractions"

    def run(self, subject: Subject) -> list[Outcome]:
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise AttarError(f"low_label: fractions={self.fractions} is not accepted; give shares in (0, 1], e.g. 0.1.")
        labels = subject.task.train_labels
        return [
            _outcome(
                subject,
                lambda seed, f=fraction: label_fraction(labels, f, seed),  # type: ignore[misc]
                num_seeds=_num_seeds(self) if fraction < 1 else 1,
                name="fraction",
                value=fraction,
                variant=f"{100 * fraction:g} %",
            )
            for fraction in self.fractions
        ]


@dataclass(frozen=True)
class FewShot(Protocol):
    """shots: labelled images of each class; None takes those of 1, 5 and 10 that every class has.

    num_seeds: draws of each.
    """

    shots: tuple[int, ...] | None = None
    num_seeds: int = 5

    name = "few_shot"
    bare = "shots"

    def run(self, subject: Subject) -> list[Outcome]:
        labels = subject.task.train_labels
        smallest = int(np.bincount(labels).min())
        shots = tuple(k for k in USUAL_SHOTS if k <= smallest) if self.shots is None else self.shots
        if not shots or min(shots) < 1 or max(shots) > smallest:
            rarest = subject.task.classes[int(np.bincount(labels).argmin())]
            raise AttarError(
                f"few_shot: shots={shots} is not accepted: class {rarest!r} has {smallest} training images. "
                f"Give numbers from 1 to {smallest}."
            )
        return [
            _outcome(
                subject,
                lambda seed, k=k: subset_per_class(labels, k, seed),  # type: ignore[misc]
                num_seeds=_num_seeds(self),
                name="shots",
                value=k,
                variant=f"{k}-shot",
            )
            for k in shots
        ]


def _num_seeds(protocol: LowLabel | FewShot) -> int:
    if protocol.num_seeds < 1:
        raise AttarError(f"{protocol.name}: num_seeds={protocol.num_seeds} is not accepted; give 1 or more, e.g. 5.")
    return protocol.num_seeds


def _outcome(
    subject: Subject, draw: Callable[[int], np.ndarray], *, num_seeds: int, name: str, value: float, variant: str
) -> Outcome:
    values, labels = subject.train.values, subject.train_labels
    standardise = Standardiser.of(values)
    scores, num_labelled = [], 0
    for number in range(num_seeds):
        seed = subject.task.seed + number
        rows = torch.as_tensor(draw(seed), device=values.device)
        probe = linear_probe(
            values[rows], labels[rows], num_classes=subject.task.num_classes, seed=seed, standardise=standardise
        )
        scores.append(probe.scores(subject.test.values))
        num_labelled = len(rows)
    return Outcome(scores, {name: value, "num_labelled": num_labelled, "num_seeds": num_seeds}, variant)
