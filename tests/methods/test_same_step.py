"""The comparison that the tests of steps rely on sees a wrong gradient under an equal value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.methods.conftest import assert_same_step


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))


def test_equal_values_with_other_gradients_are_told_apart():
    method = Product()
    expected = (method.first * method.second).sum()
    assert_same_step(method, (method.second * method.first).sum(), expected)
    missing = (method.first * method.second.detach()).sum()
    for one, other in ((missing, expected), (expected, missing)):
        with pytest.raises(AssertionError, match="second: (no|a) gradient"):
            assert_same_step(method, one, other)
    scaled = expected + 0.01 * (method.first - method.first.detach()).sum()
    with pytest.raises(AssertionError, match="first: "):
        assert_same_step(method, scaled, expected)
    with pytest.raises(AssertionError, match="Scalars are not close"):
        assert_same_step(method, expected + 1, expected)
