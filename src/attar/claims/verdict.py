"""What must be seen for a claim to hold, and the rule that decides it.

A claim holds if all that is expected of its arms is seen, by every metric that it names: kNN and linear probes where it
names none. Differences are paired by seed, and decided by Student's t over at least three seeds:

- an expectation is met if its difference is above zero at 95 %. All must be met, so chance alone hardly makes a claim
  hold, and nothing is corrected for their number;
- one that is clearly not met is enough to say "does not hold". Chance has a try with each, so they share the level: of
  k differences, each must be below zero at 1 - 0.05 / k;
- anything else is undecided, and so is a claim one of whose premises (`Expectation.premise`) is not met.

The doubt is that of the seeds; all arms are measured on the same test images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from attar.claims.base import ClaimResult
from attar.evaluation.metrics import LOWER_IS_BETTER

METRICS = ("knn", "linear")
LEVEL = 0.05
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Expectation:
    """The sum over `better`, plus the margin, is above the sum over `worse`; in words.

    margin: for claims that something costs little: at most so much top-1, as a share; negative: the difference must be
    that large at least. metrics: on which alone it is judged; empty: on all protocols of the claim. Of nll and ece, the
    lower is the better. premise: no part of what is claimed; without it nothing follows about that.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    what: str
    margin: float = 0.0
    metrics: tuple[str, ...] = ()
    premise: bool = False


def over(
    better: str,
    *worse: str,
    margin: float = 0.0,
    metrics: tuple[str, ...] = (),
    where: str = "",
    premise: bool = False,
) -> list[Expectation]:
    """One arm is above each of the others; with a margin, not much below; with a negative one, by that much.

    where: added to the words.
    """
    between = "is not much below" if margin > 0 else "over"
    return [
        Expectation((better,), (arm,), f"{better} {between} {arm}{where}".replace("_", " "), margin, metrics, premise)
        for arm in worse
    ]


def compare(better: Sequence[float], worse: Sequence[float], *, tries: int = 1) -> tuple[float, float, str]:
    """Mean and standard deviation of the paired differences, and what they say: "above", "below" or "equal".

    tries: how many differences have a chance to be below, see the module's docstring.
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(better, worse, strict=True)]
    mean, number = statistics.mean(differences), len(differences)
    deviation = statistics.stdev(differences) if number > 1 else math.inf
    if number < LEAST_SEEDS:
        return mean, deviation, "equal"
    level = LEVEL if mean > 0 else LEVEL / tries
    sure = abs(mean) > t.ppf(1 - level / 2, number - 1) * deviation / math.sqrt(number)
    return mean, deviation, "equal" if not sure else "above" if mean > 0 else "below"


def judge(
    expectations: Sequence[Expectation],
    result: ClaimResult,
    *,
    digits: bool,
    metrics: Sequence[str] = METRICS,
    ranked: bool = False,
) -> str:
    """holds / does not hold / undecided, with the figures that say so.

    metrics: what is judged where an expectation does not say. ranked: the arms are also named from best to worst.
    """
    tries = sum(len(e.metrics or metrics) for e in expectations if not e.premise)
    lines: list[str] = []
    outcomes: list[str] = []
    premises: list[str] = []
    for expectation in expectations:
        found = []
        for metric in expectation.metrics or metrics:
            better, worse = (_sums(result, arms, metric) for arms in (expectation.better, expectation.worse))
            if metric in LOWER_IS_BETTER:
                better, worse = worse, better
            mean, deviation, side = compare([value + expectation.margin for value in better], worse, tries=tries)
            known = f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else ""
            found.append(f"{100 * (mean - expectation.margin):+.1f}{known} {metric}")
            decided = {"above": "holds", "below": "does not hold"}.get(side, "undecided")
            (premises if expectation.premise else outcomes).append(decided)
        premise = "premise: " if expectation.premise else ""
        lines.append(f"{premise}{expectation.what}: {', '.join(found)}{_in_words(expectation.margin)}")
    verdict = "undecided"
    if all(outcome == "holds" for outcome in premises):
        if "does not hold" in outcomes:
            verdict = "does not hold"
        elif all(outcome == "holds" for outcome in outcomes):
            verdict = "holds"
    worth = " On 8-pixel digits this shows that the experiment works, and little more; give --data." if digits else ""
    ranks = ranking(result, metrics[-1]) if ranked else ""
    return f"Verdict: {verdict} at this size. {'; '.join(lines)}.{ranks}{_few_seeds(len(better))}{worth}"


def _few_seeds(number: int) -> str:
    """Why fewer than three seeds are never decisive; "" for more."""
    return "" if number >= LEAST_SEEDS else f" {number} of the three seeds that a decision needs: --seeds 3."


def ranking(result: ClaimResult, metric: str) -> str:
    """The arms from best to worst, by their means over seeds."""
    means = {arm: statistics.mean(values[metric]) for arm, values in result.values.items()}
    ranked = sorted(means, key=lambda arm: -means[arm])
    return f" Ranking, {metric}: " + ", ".join(f"{arm} {100 * means[arm]:.1f}" for arm in ranked) + "."


def _in_words(margin: float) -> str:
    if not margin:
        return ""
    return f" (a loss of {100 * margin:g} counts as little)" if margin > 0 else f" (by {-100 * margin:g} at least)"


def _sums(result: ClaimResult, arms: Sequence[str], metric: str) -> list[float]:
    return [sum(values) for values in zip(*(result.values[arm][metric] for arm in arms), strict=True)]
