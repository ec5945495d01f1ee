"""Colour cross-entropy: closed form, what the weights do, shapes."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import ShapeError
from attar.losses import colour_cross_entropy

NUMBERS = torch.tensor([3, 0]).view(1, 2, 1, 1).expand(2, 2, 4, 4)
SHARES = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1).expand(2, 2, 4, 4)


def test_equal_logits_give_the_logarithm_of_the_number_of_bins():
    loss = colour_cross_entropy(torch.zeros(2, 313, 4, 4), NUMBERS, SHARES, torch.ones(2, 4, 4))
    assert loss.item() == pytest.approx(5.746203, abs=1e-5)


def test_logits_of_the_shares_give_their_entropy_and_weights_scale_it():
    logits = torch.full((2, 5, 4, 4), -math.inf)
    logits[:, 3], logits[:, 0] = math.log(0.7), math.log(0.3)
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    weights = torch.zeros(2, 4, 4)
    assert colour_cross_entropy(logits, NUMBERS, SHARES, weights) == 0
    weights[1] = 3.0
    assert colour_cross_entropy(logits, NUMBERS, SHARES, weights).item() == pytest.approx(1.5 * entropy, rel=1e-6)


def test_half_precision_is_raised_and_wrong_shapes_are_refused():
    logits = torch.randn(2, 5, 4, 4).bfloat16()
    assert colour_cross_entropy(logits, NUMBERS, SHARES, torch.ones(2, 4, 4)).dtype == torch.float32
    with pytest.raises(ShapeError, match="twice"):
        colour_cross_entropy(logits, NUMBERS[:, :, :2], SHARES, torch.ones(2, 4, 4))
    with pytest.raises(ShapeError, match=r"weights have shape \(2, 4\)"):
        colour_cross_entropy(logits, NUMBERS, SHARES, torch.ones(2, 4))
