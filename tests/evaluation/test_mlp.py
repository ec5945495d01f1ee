"""The non-linear probe: what no line can tell apart, the rate that is chosen, and settings that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.errors import AttarError
from attar.evaluation.linear import Linear
from attar.evaluation.mlp import FALLBACK_RATE, Mlp

SMALL = dict(hidden=32, epochs=10, batch_size=32)


def exclusive_or(n, seed):
    """Class 1 where two signs differ: each feature alone, and any line, is at chance."""
    values = np.random.default_rng(seed).uniform(-1, 1, (n, 4)).astype(np.float32)
    return 100 + 7 * values, (values[:, 0] * values[:, 1] < 0).astype(np.int64)


def accuracy(outcome, labels):
    return float((outcome.scores[0].argmax(axis=1) == labels).mean())


def test_it_solves_what_the_linear_probe_cannot(make_subject):
    train, test = exclusive_or(400, 0), exclusive_or(200, 1)
    subject = make_subject(*train, *test)
    (outcome,) = Mlp(**SMALL).run(subject)
    assert accuracy(outcome, test[1]) > 0.9
    assert accuracy(Linear().run(subject)[0], test[1]) < 0.65
    assert outcome.scores[0].shape == (200, 2) and np.allclose(outcome.scores[0].sum(axis=1), 1)


def test_labels_at_random_stay_at_chance(make_subject, clusters):
    values, _ = clusters(200, apart=0.0)
    labels = np.random.default_rng(3).permutation(np.arange(200) % 2)
    (outcome,) = Mlp(**SMALL).run(make_subject(values[:100], labels[:100], values[100:], labels[100:]))
    assert 0.3 < accuracy(outcome, labels[100:]) < 0.7


def test_the_rate_that_learns_is_chosen_and_the_seed_decides_the_rest(make_subject):
    train, test = exclusive_or(200, 0), exclusive_or(50, 1)
    subject = make_subject(*train, *test)
    protocol = Mlp(**SMALL, learning_rates=(1e-7, 1e-2, 1e4))
    state = torch.random.get_rng_state()
    (first,), (second,) = protocol.run(subject), protocol.run(subject)
    assert first.settings["learning_rate"] == 1e-2
    assert np.array_equal(first.scores[0], second.scores[0])
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator was moved"


def test_a_single_image_of_a_class_leaves_nothing_to_choose_by(make_subject, clusters):
    values, labels = clusters(9)
    labels[0] = 3
    subject = make_subject(values, labels, values, labels)
    assert Mlp(**SMALL).run(subject)[0].settings["learning_rate"] == FALLBACK_RATE


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"dropout": 1.0}, {"learning_rates": ()}, {"learning_rates": (0.0,)}])
def test_refusals(make_subject, clusters, wrong):
    subject = make_subject(*clusters(9), *clusters(6))
    with pytest.raises(AttarError, match="mlp: "):
        Mlp(**wrong).run(subject)
