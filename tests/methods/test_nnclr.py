"""NNCLR: neighbours instead of positives, order of the queue, where the gradient flows."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

from attar.losses import info_nce
from tests.methods.conftest import assert_same_step


def test_the_neighbour_is_the_row_with_the_largest_cosine(bench):
    method = bench("nnclr").method
    z = 5 * torch.randn(6, 12)
    by_hand = [max(method.queue.rows, key=lambda row: float(F.cosine_similarity(row, query, dim=0))) for query in z]
    assert torch.equal(method.nearest(z), torch.stack(by_hand))


def test_step_meets_the_neighbours_of_one_view_with_predictions_of_the_other(bench):
    bench = bench("nnclr")
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    z1, z2 = (method.projector(method.backbone(view)) for view in (batch.view1, batch.view2))
    neighbours = lambda z: method.queue.rows[(z @ method.queue.rows.T).argmax(dim=1)]  # noqa: E731
    logits = lambda z, p: neighbours(z) @ F.normalize(method.predictor(p), dim=1).T / 0.5  # noqa: E731
    target = torch.arange(6)
    expected = (F.cross_entropy(logits(z1, z2), target) + F.cross_entropy(logits(z2, z1), target)) / 2
    assert_same_step(method, output.loss, expected)


def test_the_neighbour_gets_no_gradient(bench):
    """The same gradient as with neighbours that are plain numbers; every prediction is trained as a negative too."""
    bench = bench("nnclr")
    method = bench.method.eval()
    batch = bench.batch(0)
    with torch.no_grad():
        neighbours = [method.nearest(method.projector(method.backbone(v))).clone() for v in (batch.view1, batch.view2)]
    method.step(batch, bench.progress(0)).loss.backward()
    found = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    for neighbour, view in zip(neighbours, (batch.view2, batch.view1)):
        prediction = method.predictor(method.projector(method.backbone(view)))
        (info_nce(neighbour, prediction, temperature=0.5) / 2).backward()
    for gradient, parameter in zip(found, method.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_embeddings_of_the_first_view_enter_the_queue_after_the_step(bench):
    bench = bench("nnclr")
    queue = bench.method.queue.rows.clone()
    output = bench.backward(0)
    assert torch.equal(bench.method.queue.rows, queue)
    bench.method.after_step(bench.progress(0))
    new = bench.method.queue.rows
    changed = (new != queue).any(dim=1)
    assert changed.sum() == 6
    torch.testing.assert_close(new[changed], F.normalize(output.embeddings, dim=1))


def test_the_queue_wraps_around(bench):
    bench = bench("nnclr")  # 16 places, 6 rows a step
    first = bench.method.queue.rows.clone()
    bench.train(range(2))
    assert (bench.method.queue.rows != first).any(dim=1).sum() == 12
    bench.train(range(2, 3))
    assert (bench.method.queue.rows != first).any(dim=1).all()


def test_a_queue_longer_than_the_data_is_said(bench, caplog):
    with caplog.at_level(logging.WARNING, logger="attar"):
        bench("nnclr", queue_length=64)
    assert "queue of 64 embeddings is longer than the data (12 images)" in caplog.text
