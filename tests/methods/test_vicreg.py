"""VICReg: the loss on both views, embeddings as they are, the projector."""

from __future__ import annotations

import torch
from torch import nn

from attar.losses import vicreg
from attar.methods.siamese.vicreg import RECIPES, views
from tests.methods.conftest import assert_same_step

WEIGHTS = dict(similarity_weight=3.0, variance_weight=5.0, covariance_weight=2.0)


def test_step_is_the_loss_of_both_views(bench):
    bench = bench("vicreg", **WEIGHTS)
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    method.projector[-1].weight.data.mul_(30)  # spreads embeddings so far that each of the three terms counts
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    assert min(output.metrics.values()) > 0.05
    z1, z2 = (method.projector(method.backbone(view)) for view in (batch.view1, batch.view2))
    assert_same_step(method, output.loss, vicreg(z1, z2, **WEIGHTS))
    m = output.metrics
    total = 3.0 * m["similarity"] + 5.0 * m["variance"] + 2.0 * m["covariance"]
    torch.testing.assert_close(output.loss.detach(), total)


def test_embeddings_are_not_normalised(bench):
    """The variance term looks at their scale: ten times the last layer leaves no dimension short of spread."""
    bench = bench("vicreg")
    method = bench.method.eval()
    batch = bench.batch(0)
    before = method.step(batch, bench.progress(0))
    torch.testing.assert_close(before.embeddings, method.encoder(batch.view1).detach())
    method.projector[-1].weight.data.mul_(1e4)
    after = method.step(batch, bench.progress(0))
    assert before.metrics["variance"] > 0.1 and after.metrics["variance"] < 0.01
    assert after.metrics["similarity"] > 100 * before.metrics["similarity"]


def test_the_projectors_last_layer_has_neither_bias_nor_norm(bench):
    projector = bench("vicreg", recipe="photo").method.projector
    assert [type(m).__name__ for m in projector] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [m.bias is None for m in projector if isinstance(m, nn.Linear)] == [False, False, True]


def test_views_are_byols(bench):
    maker = views(RECIPES["photo"], bench("vicreg").setup.image)
    assert (maker.first.blur, maker.first.solarise) == (1.0, 0.0)
    assert (maker.second.blur, maker.second.solarise) == (0.1, 0.2)
