"""Schedules against their closed forms."""

import math
from dataclasses import replace

import pytest

from attar.errors import RecipeError
from attar.methods.base import Recipe, resolve_recipe
from attar.train.schedules import cosine, learning_rate, weight_decay

RECIPE = Recipe(epochs=10, batch_size=512, optimiser="sgd", base_lr=0.3, warmup_fraction=0.1)


def test_linear_scaling_and_override():
    assert RECIPE.peak_lr == pytest.approx(0.6)
    assert replace(RECIPE, lr_scaling="sqrt", base_lr=0.075, batch_size=4096).peak_lr == pytest.approx(4.8)
    assert replace(RECIPE, lr=0.05).peak_lr == 0.05


def test_warm_up_is_linear_and_learns_from_the_first_step():
    rates = [learning_rate(RECIPE, step, 100) for step in range(10)]
    assert rates == pytest.approx([0.06 * (i + 1) for i in range(10)])


def test_cosine_runs_from_peak_to_final():
    recipe = replace(RECIPE, warmup_fraction=0.0, final_lr=0.01)
    assert learning_rate(recipe, 0, 100) == pytest.approx(0.6)
    assert learning_rate(recipe, 50, 100) == pytest.approx((0.6 + 0.01) / 2)
    assert learning_rate(recipe, 99, 100) == pytest.approx(0.01 + 0.59 * 0.5 * (1 + math.cos(math.pi * 0.99)))


def test_step_schedule_drops_at_fractions():
    recipe = replace(RECIPE, schedule="step", lr_drops=(0.6, 0.8), warmup_fraction=0.0)
    assert [learning_rate(recipe, s, 10) for s in (5, 6, 8)] == pytest.approx([0.6, 0.06, 0.006])


def test_linear_runs_straight_from_peak_to_final():
    recipe = replace(RECIPE, schedule="linear", warmup_fraction=0.0, final_lr=0.1)
    assert [learning_rate(recipe, s, 10) for s in (0, 5, 9)] == pytest.approx([0.6, 0.35, 0.15])


def test_weight_decay_follows_a_cosine_only_when_asked():
    recipe = replace(RECIPE, weight_decay=0.04)
    assert weight_decay(recipe, 70, 100) == 0.04
    assert weight_decay(replace(recipe, weight_decay_end=0.4), 50, 100) == pytest.approx(0.22)
    assert cosine(0.04, 0.4, 1.0) == pytest.approx(0.4)


def test_cycles_start_at_the_peak_again_and_follow_warm_up():
    recipe = replace(RECIPE, warmup_fraction=0.1, num_cycles=3)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[40:70] == pytest.approx(rates[10:40]) and rates[70:] == pytest.approx(rates[10:40])
    assert rates[10] == pytest.approx(0.6) and rates[39] < 0.01
    assert [recipe.cycle(step, 100)[0] for step in (0, 39, 40, 69, 70, 99, 100)] == [0, 0, 1, 1, 2, 2, 2]
    once = replace(recipe, num_cycles=1)
    assert [learning_rate(once, s, 100) for s in (10, 55, 100)] == pytest.approx([0.6, 0.3, 0.0])


def test_cycles_of_another_schedule_are_refused():
    with pytest.raises(RecipeError, match="num_cycles would be ignored: schedule is 'step'"):
        resolve_recipe("supervised", "small", {"num_cycles": 3})
