"""LeJEPA: centre of the global views, SIGReg on all views, directions of the step."""

from __future__ import annotations

import torch

from attar.losses import sigreg
from attar.methods.siamese.lejepa import RECIPES, views
from attar.models.momentum import MomentumTeacher
from tests.methods.conftest import assert_same_step


def embeddings(bench, batch) -> list[torch.Tensor]:
    method = bench.method
    return [method.projector(method.backbone(view)) for view in [*batch.global_views, *batch.local_views]]


def test_step_is_prediction_of_the_global_centre_and_sigreg_of_every_view(bench):
    bench = bench("lejepa", num_global_views=2, sigreg_weight=0.3)
    bench.method.eval()  # batch statistics would tie the views together
    batch = bench.batch(0)
    assert [v.shape[-1] for v in [*batch.global_views, *batch.local_views]] == [32, 32, 16, 16]
    output = bench.method.step(batch, bench.progress(0))
    z = embeddings(bench, batch)
    centre = (z[0] + z[1]) / 2
    prediction = sum((v - centre).square().mean() for v in z) / 4
    directions = bench.method.directions(bench.progress(0))
    gaussian = sum(sigreg(v, directions) for v in z) / 4
    torch.testing.assert_close(output.metrics["prediction"], prediction.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.metrics["sigreg"], gaussian.detach(), rtol=1e-4, atol=1e-6)
    assert_same_step(bench.method, output.loss, 0.7 * prediction + 0.3 * gaussian, atol=1e-6)


def test_the_centre_is_trained_too(bench):
    """No stop-gradient: with the centre held fixed the gradient differs."""
    bench = bench("lejepa", num_global_views=2, sigreg_weight=0.0)
    bench.method.eval()
    batch = bench.batch(0)
    bench.method.step(batch, bench.progress(0)).loss.backward()
    found = bench.method.projector[0].weight.grad.clone()
    for detached in (False, True):
        bench.method.zero_grad()
        z = torch.stack(embeddings(bench, batch))
        centre = z[:2].mean(0).detach() if detached else z[:2].mean(0)
        (z - centre).square().mean().backward()
        assert torch.allclose(found, bench.method.projector[0].weight.grad, rtol=1e-3, atol=1e-7) is not detached


def test_directions_are_new_in_every_step_and_depend_on_seed_and_step_alone(bench):
    one, two = bench("lejepa").method, bench("lejepa").method
    progress = bench("lejepa").progress
    torch.manual_seed(5)
    first = one.directions(progress(3))
    assert first.shape == (256, 12)
    assert torch.equal(first, two.directions(progress(3)))
    assert not torch.equal(first, one.directions(progress(4)))
    two.seed = 1
    assert not torch.equal(first, two.directions(progress(3)))


def test_nothing_but_the_loss_prevents_a_collapse(bench):
    method = bench("lejepa").method
    assert not any(isinstance(module, MomentumTeacher) for module in method.modules())
    assert not hasattr(method, "predictor") and not any("queue" in name for name in method.state_dict())


def test_all_views_have_the_same_colours(bench):
    maker = views(RECIPES["photo"], bench("lejepa").setup.image)
    for view in [*maker.global_views, *maker.local_views]:
        assert (view.blur, view.solarise, view.jitter, view.grey) == (0.5, 0.2, (0.4, 0.4, 0.2, 0.1), 0.2)
    assert len(maker.global_views) == 2 and len(maker.local_views) == 6
