"""SimSiam: stop-gradient, heads, the predictor's constant learning rate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from attar.losses import negative_cosine
from attar.methods.siamese.simsiam import RECIPES, views
from attar.models.momentum import MomentumTeacher
from attar.train.optimisers import build_optimiser, set_rates
from tests.methods.conftest import assert_same_step


def test_each_prediction_meets_the_other_views_embedding(bench):
    bench = bench("simsiam")
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    z1, z2 = (method.projector(method.backbone(view)) for view in (batch.view1, batch.view2))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    assert_same_step(method, output.loss, (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2)
    torch.testing.assert_close(output.embeddings, z1.detach())
    assert -1 <= output.loss <= 1


def test_the_gradient_flows_through_predictions_only(bench):
    """The same gradient as with targets that are plain numbers."""
    bench = bench("simsiam")
    method = bench.method.eval()
    batch = bench.batch(0)
    method.step(batch, bench.progress(0)).loss.backward()
    found = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    with torch.no_grad():
        targets = [method.encoder(view).clone() for view in (batch.view2, batch.view1)]
    for view, target in zip((batch.view1, batch.view2), targets):
        p = nn.functional.normalize(method.predictor(method.encoder(view)), dim=1)
        (-(p * nn.functional.normalize(target, dim=1)).sum(1).mean() / 2).backward()
    for gradient, parameter in zip(found, method.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_there_is_no_teacher(bench):
    assert not any(isinstance(module, MomentumTeacher) for module in bench("simsiam").method.modules())


def test_only_the_predictors_learning_rate_stays(bench):
    bench = bench("simsiam")
    method, recipe = bench.method, replace(bench.method.recipe, lr=0.1)
    optimiser = build_optimiser(method, recipe)
    set_rates(optimiser, recipe, bench.progress(7))
    rate = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert {rate[id(p)] for p in method.predictor.parameters()} == {0.1}
    assert all(rate[id(p)] < 0.01 for p in method.encoder.parameters())


def test_views_are_those_of_moco_v2(bench):
    maker = views(RECIPES["photo"], bench("simsiam").setup.image)
    assert maker.second is None and maker.first.scale == (0.2, 1.0)
    assert maker.first.jitter == (0.4, 0.4, 0.4, 0.1) and maker.first.blur == 0.5
