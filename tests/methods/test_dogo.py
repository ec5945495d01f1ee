"""DoGo: two losses by hand, views of its own for each network, no gradient across, and a peer that is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attar
from attar.errors import BackboneError
from attar.losses import negative_cosine, nt_xent
from attar.methods.base import resolve_recipe
from attar.models.saved import load_backbone, load_head
from tests.methods.conftest import make_images

PEER = {"peer": "resnet14x0.5"}


def probabilities(first, second, t):
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (first, second)]
    return torch.softmax(unit[0] @ unit[1].T / t, dim=1)


def kl(p, q):
    return (p * (p / q).log()).sum(dim=1).mean()


def test_the_recipe_is_the_template_of_the_published_code():
    code = resolve_recipe("dogo", "released")
    assert (code.optimiser, code.peak_lr, code.weight_decay, code.schedule) == ("adamw", 3e-4, 1e-6, "constant")
    assert code.distillation_weight * code.batch_size == 100 and code.peer_distillation_weight * 256 == 1
    assert (code.similarity_temperature, code.temperature, code.projector_dim) == (0.1, 0.5, 128)
    assert resolve_recipe("dogo", "paper") == replace(code, schedule="cosine"), "what the code means, and does not do"


def test_both_losses_by_hand_with_nt_xent(bench):
    bench = bench("dogo", distillation_weight=0.7, peer_distillation_weight=0.3, **PEER)
    method = bench.method.eval()
    batch = bench.batch(0)
    views = batch.global_views
    assert len(views) == 4 and all(not torch.equal(views[0], v) for v in views[1:])
    own = [method.projector(method.backbone(v)) for v in views[:2]]
    peer = [method.peer_projector(method.peer(v)) for v in views[2:]]
    p, q = probabilities(*own, 0.1), probabilities(*peer, 0.1)
    expected = nt_xent(*own, temperature=0.5) + nt_xent(*peer, temperature=0.5) + 0.7 * kl(q, p) + 0.3 * kl(p, q)
    torch.testing.assert_close(method.step(batch, bench.progress(0)).loss, expected)


def test_with_simsiam_predictions_are_taught_by_embeddings(bench):
    bench = bench("dogo", recipe="small_simsiam", distillation_weight=0.7, peer_distillation_weight=0.3, **PEER)
    method = bench.method.eval()
    batch = bench.batch(0)
    z = [method.projector(method.backbone(v)) for v in batch.global_views[:2]]
    y = [method.peer_projector(method.peer(v)) for v in batch.global_views[2:]]
    p, q = ([predict(v) for v in e] for predict, e in ((method.predictor, z), (method.peer_predictor, y)))
    own, peer = ((negative_cosine(a[0], b[1]) + negative_cosine(a[1], b[0])) / 2 for a, b in ((p, z), (q, y)))
    from_peer = kl(probabilities(*y, 0.1), probabilities(*p, 0.1))
    to_peer = kl(probabilities(*z, 0.1), probabilities(*q, 0.1))
    loss = method.step(batch, bench.progress(0)).loss
    torch.testing.assert_close(loss, own + 0.7 * from_peer + peer + 0.3 * to_peer)


@pytest.mark.parametrize("recipe", ["small", "small_simsiam"])
def test_no_gradient_crosses_to_the_other_network(bench, recipe):
    """What one network is taught changes nothing for the other: as two optimisers and two losses would have it."""
    taught = bench("dogo", recipe=recipe, distillation_weight=5.0, peer_distillation_weight=0.0, **PEER)
    alone = bench("dogo", recipe=recipe, distillation_weight=0.0, peer_distillation_weight=0.0, **PEER)
    for each in (taught, alone):
        each.backward(0)
    for (name, p), q in zip(taught.method.named_parameters(), alone.method.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6) or not name.startswith("peer"), name
    stem = [each.method.backbone.network.body["stem"][0].weight.grad for each in (taught, alone)]
    assert not torch.allclose(*stem, rtol=1e-3)


def test_views_can_be_shared(bench):
    bench = bench("dogo", own_views=False, **PEER)
    assert len(bench.batch(0).global_views) == 2
    assert torch.isfinite(bench.backward(0).loss)


def test_the_run_keeps_the_peer(tmp_path):
    attar.pretrain(
        make_images(16), out=tmp_path / "run", method="dogo", backbone="resnet8x0.5", settings=PEER, epochs=1,
        batch_size=8, device="cpu", progress=False,
    )  # fmt: skip
    peer, image, provenance = load_backbone(tmp_path / "run" / "peer")
    assert peer.spec.name == "resnet14x0.5" and provenance["part"] == "peer"
    assert load_head(tmp_path / "run" / "peer", "projector").num_features_out == 128
    own, own_image, _ = load_backbone(tmp_path / "run")
    assert own.spec.name == "resnet8x0.5" and own_image == image and own.num_features == peer.num_features


def test_an_unknown_peer_is_named(bench):
    with pytest.raises(BackboneError, match="'resnet_18'"):
        bench("dogo", peer="resnet_18")
