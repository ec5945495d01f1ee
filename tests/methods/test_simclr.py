"""SimCLR: the loss is on both views in one pass; the recipe's derived values."""

from __future__ import annotations

import pytest
import torch

from attar.losses import nt_xent
from attar.methods.contrastive.simclr import RECIPES


def test_recipes_are_the_papers():
    photo, small, lars = (RECIPES[name] for name in ("photo", "small", "small_lars"))
    assert photo.peak_lr == pytest.approx(4.8) and photo.temperature == 0.1
    assert small.peak_lr == pytest.approx(0.06) and lars.peak_lr == pytest.approx(2.0)
    v2 = RECIPES["v2"]
    assert v2.peak_lr == pytest.approx(6.4) and v2.projector_layers == 3 and photo.projector_layers == 2
    assert small.temperature == lars.temperature == 0.5 and small.blur == lars.blur == 0


def test_step_is_nt_xent_of_both_views_in_one_pass(bench):
    bench = bench("simclr")
    batch = bench.batch(0)
    output = bench.method.step(batch, bench.progress(0))
    z = bench.method.projector(bench.method.backbone(torch.cat([batch.view1, batch.view2])))
    torch.testing.assert_close(output.loss, nt_xent(z[:6], z[6:], temperature=0.5))
    torch.testing.assert_close(output.embeddings, z[:6].detach())
    assert not torch.equal(batch.view1, batch.view2)


def test_the_projector_of_v2_has_a_third_layer(bench):
    bench = bench("simclr", "v2")
    assert sum(isinstance(m, torch.nn.Linear) for m in bench.method.projector) == 3


def test_hidden_width_is_the_features_unless_given(bench):
    default, given = bench("simclr", projector_hidden_dim=None), bench("simclr", projector_hidden_dim=17)
    width = default.method.backbone.num_features
    shapes = lambda b: [tuple(p.shape) for p in b.method.projector.parameters() if p.ndim == 2]  # noqa: E731
    assert shapes(default) == [(width, width), (12, width)] and shapes(given) == [(17, width), (12, 17)]
