"""The rule that decides claims: Student's t over seeds, premises, and the level that several tries share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attar.claims.base import ClaimResult
from attar.claims.verdict import Expectation, compare, judge, over


def result(**arms):
    return ClaimResult(
        name="", statement="", data="", conditions={}, arms={}, values={a: {"m": v} for a, v in arms.items()}
    )


@pytest.mark.parametrize("number", [3, 5, 12])
def test_a_difference_counts_where_the_paired_test_of_scipy_says_so(number):
    generator = np.random.default_rng(number)
    sides = set()
    for _ in range(60):
        first, second = generator.normal(0.5, 0.02, number), generator.normal(0.48, 0.02, number)
        mean, deviation, side = compare(list(first), list(second))
        assert mean == pytest.approx((first - second).mean()) and deviation == pytest.approx(
            (first - second).std(ddof=1)
        )
        sure = stats.ttest_rel(first, second).pvalue < 0.05
        assert side == ("equal" if not sure else "above" if mean > 0 else "below")
        sides.add(side)
    assert {"equal", "above"} <= sides


def test_fewer_than_three_seeds_decide_nothing():
    assert compare([0.6, 0.6], [0.5, 0.5])[2] == "equal" and compare([0.6], [0.5])[2] == "equal"
    assert compare([0.6, 0.6, 0.6], [0.5, 0.5, 0.5])[2] == "above"


def test_more_seeds_of_the_same_spread_decide_more():
    """Mean 1.5 deviations: within the doubt of three seeds, far outside that of twelve."""
    differences = [0.005, 0.015, 0.025]
    assert compare(differences, [0.0] * 3)[2] == "equal"
    assert compare(differences * 4, [0.0] * 12)[2] == "above"


def test_chance_seldom_refutes_a_claim_however_much_it_expects():
    """Eight comparisons of arms that do not differ: fewer than one claim in twenty is said not to hold."""
    generator = np.random.default_rng(0)
    expectations = [Expectation((f"a{i}",), (f"b{i}",), "a over b") for i in range(8)]
    said = []
    for _ in range(300):
        arms = {f"{arm}{i}": list(generator.normal(0.5, 0.01, 3)) for arm in "ab" for i in range(8)}
        said.append(judge(expectations, result(**arms), metrics=("m",), digits=False))
    assert np.mean(["does not hold" in text for text in said]) < 0.05
    assert not any("Verdict: holds" in text for text in said)


def test_a_clear_difference_refutes_and_an_unmet_premise_leaves_it_open():
    good, bad = [0.6, 0.61, 0.6], [0.4, 0.41, 0.4]
    arms = result(whole=good, part=bad, untrained=good)
    assert judge(over("part", "whole"), arms, metrics=("m",), digits=False).startswith("Verdict: does not hold")
    claim = [*over("whole", "part"), *over("part", "untrained", premise=True)]
    text = judge(claim, arms, metrics=("m",), digits=False)
    assert text.startswith("Verdict: undecided") and "premise: part over untrained: -20.0" in text
    assert judge(claim[:1], arms, metrics=("m",), digits=False).startswith("Verdict: holds")
    refuted = [*over("part", "whole"), *over("part", "untrained", premise=True)]
    assert judge(refuted, arms, metrics=("m",), digits=False).startswith("Verdict: undecided")


def test_the_tries_are_the_differences_of_all_metrics_without_the_premises():
    """One difference at t = -7.5, p = 0.0173: enough among two tries (0.025), not among four (0.0125)."""
    low, zero = [-0.01 - 0.00231, -0.01, -0.01 + 0.00231], [0.0] * 3
    assert compare(low, zero, tries=2)[2] == "below" and compare(low, zero, tries=4)[2] == "equal"
    arms = result(a=low, b=zero, c=[0.5, 0.51, 0.5])
    for arm in arms.values.values():
        arm["n"] = list(zero)  # another metric, by which nothing differs
    once = [Expectation(("a",), ("b",), "a over b"), *over("c", "b", metrics=("m",), premise=True)]
    assert "does not hold" in judge(once, arms, metrics=("m", "n"), digits=False)
    twice = [*once, Expectation(("b",), ("a",), "b over a")]
    assert "undecided" in judge(twice, arms, metrics=("m", "n"), digits=False)
