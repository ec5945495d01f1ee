"""Barlow Twins: the loss on both views, the learning rate of biases, the projector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.losses import barlow_twins
from attar.methods.siamese.barlow_twins import RECIPES, views
from attar.train.optimisers import build_optimiser, set_rates
from tests.methods.conftest import assert_same_step


def test_step_is_the_loss_of_both_views(bench):
    bench = bench("barlow_twins", loss_scale=0.5, redundancy_weight=0.3)
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    z1, z2 = (method.projector(method.backbone(view)) for view in (batch.view1, batch.view2))
    assert_same_step(method, output.loss, 0.5 * barlow_twins(z1, z2, redundancy_weight=0.3))
    torch.testing.assert_close(output.embeddings, z1.detach())
    torch.testing.assert_close(output.positives, z2.detach())
    terms = output.metrics["invariance"] + 0.3 * output.metrics["redundancy"]
    torch.testing.assert_close(output.loss.detach(), 0.5 * terms)


def test_both_views_are_trained(bench):
    """No stop-gradient: the loss with the second view held fixed has another gradient."""
    bench = bench("barlow_twins", loss_scale=1.0)
    method = bench.method.eval()
    batch = bench.batch(0)
    method.step(batch, bench.progress(0)).loss.backward()
    found = method.projector[0].weight.grad.clone()
    for fixed in (False, True):
        method.zero_grad()
        z1, z2 = method.encoder(batch.view1), method.encoder(batch.view2)
        barlow_twins(z1, z2.detach() if fixed else z2, redundancy_weight=0.005).backward()
        assert torch.allclose(found, method.projector[0].weight.grad, rtol=1e-3, atol=1e-5) is not fixed


def test_biases_and_norms_learn_at_their_own_rate_without_decay_or_adaptation(bench):
    bench = bench("barlow_twins", recipe="photo")
    method, recipe = bench.method, RECIPES["photo"]
    optimiser = build_optimiser(method, recipe)
    set_rates(optimiser, recipe, bench.progress(0))
    for group in optimiser.param_groups:
        narrow = all(p.ndim <= 1 for p in group["params"])
        assert narrow or all(p.ndim > 1 for p in group["params"])
        assert group["lr"] == pytest.approx(0.0384 if narrow else 1.6)
        assert group["weight_decay"] == (0.0 if narrow else 1e-6) and group["adapt"] is not narrow


def test_the_projector_has_no_bias_and_no_norm_at_its_end(bench):
    projector = bench("barlow_twins", recipe="photo").method.projector
    assert [type(m).__name__ for m in projector] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(m.bias is None for m in projector if isinstance(m, nn.Linear))


def test_views_are_byols(bench):
    maker = views(RECIPES["photo"], bench("barlow_twins").setup.image)
    assert (maker.first.blur, maker.first.solarise) == (1.0, 0.0)
    assert (maker.second.blur, maker.second.solarise) == (0.1, 0.2)
