"""InvaSpread: one network, both views in one pass, nothing kept."""

from __future__ import annotations

import torch

from attar.losses import inva_spread
from attar.methods.contrastive.inva_spread import RECIPES
from tests.methods.conftest import assert_same_step


def test_the_step_is_the_loss_of_both_views_in_one_pass(bench):
    bench = bench("inva_spread")
    batch = bench.batch(0)
    z1, z2 = bench.method.projector(bench.method.backbone(torch.cat([batch.view1, batch.view2]))).chunk(2)
    output = bench.method.step(batch, bench.progress(0))
    assert_same_step(bench.method, output.loss, inva_spread(z1, z2, temperature=0.1))
    torch.testing.assert_close(output.embeddings, z1.detach())
    torch.testing.assert_close(output.positives, z2.detach())


def test_nothing_but_weights_and_batch_statistics_is_kept(bench):
    method = bench("inva_spread").method
    kept = set(method.state_dict()) - {n for n, _ in method.named_parameters()}
    assert all(name.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked") for name in kept)


def test_both_views_are_cropped_coloured_and_flipped_but_not_blurred(bench):
    from attar.methods.contrastive.inva_spread import views

    made = views(RECIPES["small"], bench("inva_spread").setup.image)
    assert made.second is None and made.first.blur == 0 and made.first.flip == 0.5 and made.first.grey == 0.2
    assert made.first.jitter_probability == 1 and not made.first.grey_before_jitter
