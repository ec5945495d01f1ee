"""SwAV: pairs of crops, unit and frozen prototypes, the late queue."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from attar.data.images import ImageSpec
from attar.losses import sinkhorn, swapped_prediction
from attar.methods.clustering.swav import MOST_PROTOTYPES, RECIPES, views
from attar.train.optimisers import build_optimiser, drop_frozen_gradients
from tests.methods.conftest import assert_same_step


def test_step_is_the_loss_of_the_scores_and_only_global_crops_are_assigned(bench):
    bench = bench("swav", num_local_views=2)
    method = bench.method.eval()  # batch statistics would tie the rows together
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    prototypes = method.prototypes.weight  # of unit length by now; the gradient is not that of their direction
    torch.testing.assert_close(prototypes, F.normalize(prototypes, dim=1))
    crops = batch.global_views + batch.local_views
    assert [crop.shape[-1] for crop in crops] == [32, 32, 16, 16]
    scores = [F.normalize(method.projector(method.backbone(crop)), dim=1) @ prototypes.T for crop in crops]
    assigned = [sinkhorn(s.detach(), epsilon=0.05, iterations=3) for s in scores[:2]]
    assert_same_step(method, output.loss, swapped_prediction(scores, assigned, temperature=0.1))
    torch.testing.assert_close(output.embeddings @ prototypes.T, scores[0], rtol=1e-4, atol=1e-5)


def test_prototypes_have_unit_length_in_every_forward_pass(bench):
    bench = bench("swav")
    bench.train(range(2))  # an update has moved them off the sphere
    moved = bench.method.prototypes.weight.norm(dim=1)
    assert (moved - 1).abs().max() > 1e-4
    bench.backward(2)
    torch.testing.assert_close(bench.method.prototypes.weight.norm(dim=1), torch.ones(24))


def test_prototypes_learn_through_the_predictions_and_not_in_the_first_part_of_training(bench):
    bench = bench("swav", freeze_prototypes_fraction=0.25, optimiser="sgd")
    method = bench.method
    optimiser = build_optimiser(method, method.recipe)
    names = {id(p): n for n, p in method.named_parameters()}
    frozen = [g for g in optimiser.param_groups if g["frozen_fraction"]]
    assert [names[id(p)] for g in frozen for p in g["params"]] == ["prototypes.weight"]
    for step, learns in ((0, False), (1, False), (2, True)):  # of 8
        bench.backward(step)
        assert method.prototypes.weight.grad.any()
        drop_frozen_gradients(optimiser, bench.progress(step))
        assert (method.prototypes.weight.grad is not None) == learns


def test_the_queue_starts_late_fills_and_only_then_joins_the_assignment(bench, monkeypatch):
    bench = bench("swav", queue_length=16, queue_start_fraction=0.25)  # from step 2 of 8; 6 images a step
    rows_assigned = []
    from attar.methods.clustering import swav

    monkeypatch.setattr(swav, "sinkhorn", lambda s, **kw: rows_assigned.append(len(s)) or sinkhorn(s, **kw))
    pushed = []
    for step in range(8):
        before = bench.method.queues[0].rows.clone()
        bench.backward(step)
        assert torch.equal(bench.method.queues[0].rows, before), "embeddings must not meet themselves"
        bench.optimiser.step()
        bench.method.after_step(bench.progress(step))
        pushed.append(int((bench.method.queues[0].rows != before).any(dim=1).sum()))
    assert pushed == [0, 0, 6, 6, 6, 6, 6, 6]
    assert rows_assigned == [6, 6] * 5 + [22, 22] * 3  # 18 pushed before step 5


def test_queues_hold_unit_embeddings_of_their_own_crop_and_are_scored_by_current_prototypes(bench):
    bench = bench("swav", queue_length=6, queue_start_fraction=0.0)
    output = bench.backward(0)
    bench.method.after_step(bench.progress(0))
    torch.testing.assert_close(bench.method.queues[0].rows, output.embeddings)
    torch.testing.assert_close(bench.method.queues[1].rows, output.positives)
    method = bench.method.eval()
    with torch.no_grad():
        method.prototypes.weight.copy_(torch.randn_like(method.prototypes.weight))
    output = method.step(bench.batch(1), bench.progress(1))
    prototypes = method.prototypes.weight
    own = output.embeddings @ prototypes.T
    joined = sinkhorn(torch.cat([own, method.queues[0].rows @ prototypes.T]), epsilon=0.05, iterations=3)[:6]
    torch.testing.assert_close(method._assign(0, own, bench.progress(1)), joined)
    assert (joined - sinkhorn(own, epsilon=0.05, iterations=3)).abs().max() > 0.01


@pytest.mark.parametrize("queue_length, said", [(0, True), (1, True), (2, False)])  # 6 images
def test_more_than_four_prototypes_an_image_are_said(bench, caplog, queue_length, said):
    with caplog.at_level(logging.WARNING, logger="attar"):
        bench("swav", num_prototypes=30, queue_length=queue_length)
    text = f"swav: 30 prototypes share a batch of 6 and a queue of {queue_length}"
    assert (text in caplog.text) == said and ("-s queue_length=2" in caplog.text) == said


def test_no_recipe_has_too_many_prototypes_for_its_own_batch():
    assert all(r.num_prototypes <= MOST_PROTOTYPES * (r.batch_size + r.queue_length) for r in RECIPES.values())


def test_seers_crops_have_160_and_96_pixels():
    image = ImageSpec(size=160, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    maker = views(RECIPES["seer"], image)
    assert [v.view_size for v in [*maker.global_views, *maker.local_views]] == [160] * 2 + [96] * 4
