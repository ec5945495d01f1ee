from __future__ import annotations

import torch

from attar.views.draws import Draws


def test_numbers_depend_on_seed_epoch_and_sample_only():
    index = torch.tensor([7, 3, 11, 3])
    first = Draws(1, index, epoch=2).uniform(shape=(5,))
    assert torch.equal(first, Draws(1, index, epoch=2).uniform(shape=(5,)))
    assert torch.equal(first[[2, 0]], Draws(1, index[[2, 0]], epoch=2).uniform(shape=(5,)))
    assert torch.equal(first[1], first[3])
    assert not torch.equal(first, Draws(2, index, epoch=2).uniform(shape=(5,)))
    assert not torch.equal(first, Draws(1, index, epoch=3).uniform(shape=(5,)))


def test_consecutive_draws_are_fresh_and_uniform():
    draws = Draws(0, torch.arange(20_000))
    a, b = draws.uniform(), draws.uniform()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.003
    assert a.min() >= 0 and a.max() < 1
    normal = draws.normal()
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03


def test_derived_draws_keep_their_ranges():
    draws = Draws(0, torch.arange(3_000))
    assert draws.bernoulli(1.0).all() and not draws.bernoulli(0.0).any()
    assert draws.integers(4).unique().tolist() == [0, 1, 2, 3]
    orders = draws.permutation(3)
    assert (orders.sort(dim=1).values == torch.arange(3)).all()
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 400
