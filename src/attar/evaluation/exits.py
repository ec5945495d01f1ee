"""Early exits: how well each exit of a run names the classes, and what leaving at the first sure one costs and brings.

An image leaves at the first exit whose largest class probability reaches the threshold, else it goes to the end. What
was computed on the way counts: the branches of the exits it did not leave at.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attar.errors import RecipeError
from attar.evaluation.classifier import OwnClassifier
from attar.evaluation.subject import Outcome, Protocol, Subject
from attar.models.backbones import evaluation_mode

REPEATS = 15  # of measuring the latency


@dataclass(frozen=True)
class Cost:
    """Of one image: multiply-additions, and median milliseconds on the device of the evaluation."""

    work: float
    latency: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.work + other.work, self.latency + other.latency)


@dataclass(frozen=True)
class Exits(Protocol):
    """thresholds: probabilities at which to leave, each a point of the curve of accuracy against work."""

    thresholds: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)

    name = "exits"
    bare = "thresholds"
    learns = False

    def metrics(self, usual: Sequence[str]) -> list[str]:
        return [*usual[:1], "nll", "ece"]

    def reason_to_skip(self, subject: Subject) -> str | None:
        return None if subject.name == "model" else ""

    def run(self, subject: Subject) -> list[Outcome]:
        """The whole network first, then each exit from the shallowest, then each threshold."""
        if not all(0 < t <= 1 for t in self.thresholds):
            raise RecipeError(f"exits: thresholds={self.thresholds} are not accepted; give numbers in (0, 1].")
        if not subject.exits:
            raise RecipeError("exits: this network has none; train it by a method that keeps them (byot).")
        places = {**subject.exits, "whole": subject}  # in the order an image comes by
        scores = [OwnClassifier().run(replace(place, teacher=None))[0].scores[0] for place in places.values()]
        alone = [_cost(place.backbone, subject) for place in places.values()]
        passed = Cost(0.0, 0.0)  # the branches on the way
        costs = []
        for place, cost in zip(places.values(), alone, strict=True):
            costs.append(cost + passed)
            if place is not subject:
                passed = passed + _branch_cost(place.backbone, subject)
        outcomes = []
        for name, values, cost in zip(places, scores, alone, strict=True):
            settings = {"work": cost.work, "share_of_work": cost.work / alone[-1].work, "latency_ms": cost.latency}
            settings["num_parameters"] = sum(p.numel() for p in places[name].backbone.parameters())
            outcomes.append(Outcome([values], settings, name))
        curve = [_cascade(threshold, scores, costs, list(places), alone[-1]) for threshold in self.thresholds]
        return [outcomes[-1], *outcomes[:-1], *curve]


def _cascade(threshold: float, scores: list[np.ndarray], costs: list[Cost], names: list[str], whole: Cost) -> Outcome:
    """Every image with the answer of the exit it leaves at."""
    left = leaves_at(scores, threshold)  # (M,)
    shares = [float((left == k).mean()) for k in range(len(scores))]
    work = sum(share * cost.work for share, cost in zip(shares, costs, strict=True))
    settings: dict[str, Any] = {
        "work": work,
        "share_of_work": work / whole.work,
        "latency_ms": sum(share * cost.latency for share, cost in zip(shares, costs, strict=True)),
        "leave": dict(zip(names, shares, strict=True)),
    }
    answers = np.stack(scores)[left, np.arange(len(left))]
    return Outcome([answers], settings, f"threshold {threshold:g}")


def leaves_at(scores: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """Number of the first of the exits that is sure enough, the last where none is. K times (M, N) -> (M,).

    Compared in float32, as what is exported does.
    """
    sure = np.stack([s.max(axis=1).astype(np.float32) >= np.float32(threshold) for s in scores])  # (K, M)
    sure[-1] = True
    return sure.argmax(axis=0)


def _cost(network: nn.Module, subject: Subject) -> Cost:
    size, channels = subject.image.size, subject.image.channels
    image = torch.zeros(1, channels, size, size, device=subject.task.device)
    return _measured(network.to(image.device), lambda: network(image))


def _branch_cost(backbone: Any, subject: Subject) -> Cost:
    size, channels = subject.image.size, subject.image.channels
    image = torch.zeros(1, channels, size, size, device=subject.task.device)
    with evaluation_mode(backbone), torch.no_grad():
        feature_map = backbone.network.forward_features(image)
    return _measured(backbone, lambda: backbone.network.branch(feature_map))


def _measured(network: nn.Module, run: Callable[[], object]) -> Cost:
    times = []
    with evaluation_mode(network), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            run()
        for _ in range(REPEATS):
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return Cost(counter.get_total_flops() / 2, round(1000 * statistics.median(times), 3))
