"""CPC: what the context may see, which rows are predicted, no batch statistics."""

from __future__ import annotations

import math

import pytest
import torch

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.methods.contrastive.cpc import RECIPES, ContextNetwork, views
from tests.methods.conftest import assert_same_step


def test_the_context_sees_its_own_row_and_those_above_and_nothing_below():
    torch.manual_seed(0)
    network = ContextNetwork(4, 8, 5).double()
    z = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    for row in range(6):
        (gradient,) = torch.autograd.grad(network(z)[:, :, row, 2].sum(), z)
        seen = gradient.abs().sum(dim=(0, 1, 3)) > 0
        assert seen.tolist() == [i <= row for i in range(6)]
    (gradient,) = torch.autograd.grad(network(z)[:, :, 3, 2].sum(), z)
    assert (gradient[0, :, 3].abs().sum(0) > 0).all(), "its own row on both sides"


def test_step_is_the_loss_over_the_rows_below_written_as_a_loop(bench):
    bench = bench("cpc")  # 5 x 5 patches, rows 2, 3 and 4 ahead
    method = bench.method
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    B, G = 6, 5
    z = torch.stack([method.backbone(image.flatten(0, 1)).view(G, G, -1) for image in batch.patches])
    c = method.context(z.permute(0, 3, 1, 2))
    everything = z.flatten(0, 2)
    means = []
    for k, weight in zip((2, 3, 4), [linear.weight for linear in method.predict], strict=True):
        terms = []
        for b in range(B):
            for i in range(G - k):
                for j in range(G):
                    prediction = weight @ c[b, :, i, j]
                    terms.append((everything @ prediction).logsumexp(0) - prediction @ z[b, i + k, j])
        means.append(torch.stack(terms).mean())
        torch.testing.assert_close(output.metrics[f"rows_ahead_{k}"], means[-1].detach(), rtol=1e-4, atol=1e-5)
    assert_same_step(method, output.loss, sum(means) / 3)  # patches are trained as what is sought, too


def test_predictions_of_zero_give_the_logarithm_of_all_patches(bench):
    bench = bench("cpc")
    for linear in bench.method.predict:
        torch.nn.init.zeros_(linear.weight)
    loss = bench.method.step(bench.batch(0), bench.progress(0)).loss
    assert loss.item() == pytest.approx(math.log(6 * 25), abs=1e-5)


def test_no_patch_knows_another_through_batch_norm(bench):
    bench = bench("cpc")
    method, patches = bench.method.train(), bench.batch(0).patches
    together = method.backbone(patches.flatten(0, 2))
    alone = method.backbone(patches[2, 1, 3][None])
    torch.testing.assert_close(together[2 * 25 + 8], alone[0], rtol=1e-4, atol=1e-5)
    bench.train(range(2))
    norms = [m for m in method.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all((m.running_mean == 0).all() and (m.running_var == 1).all() for m in norms)
    assert all(m.weight.grad is not None for m in norms), "scale and shift still learn"
    assert method.context.training


def test_predicted_rows_must_exist(bench):
    with pytest.raises(RecipeError, match="reach 5 rows ahead; a grid of num_rows=5 has at most 4"):
        bench("cpc", num_predicted_rows=4)


def test_the_papers_patches():
    image = ImageSpec(size=256, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    from attar.data.images import CanvasBatch
    from attar.views.draws import Draws

    canvases = torch.randint(0, 256, (2, 3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = CanvasBatch(canvases, torch.tensor([[0.0, 0, 300, 300]] * 2), torch.arange(2))
    patches = views(RECIPES["photo"], image)(batch, Draws(0, batch.index)).patches
    assert patches.shape == (2, 7, 7, 3, 64, 64)
    assert torch.allclose(patches[:, :, :, 0], patches[:, :, :, 2], atol=1e-5), "grey"
    border = torch.ones(64, 64, dtype=torch.bool)
    border[2:62, 2:62] = False
    assert (patches[..., border] == 0).all() and (patches[..., ~border] != 0).float().mean() > 0.9
