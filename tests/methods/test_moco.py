"""MoCo: order of the queue and the teacher, groups of the batch norm."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from tests.methods.conftest import assert_same_step


def test_keys_enter_the_queue_after_the_step_and_are_no_negatives_of_it(bench):
    bench = bench("moco")
    method, batch = bench.method.eval(), bench.batch(0)  # batch statistics would depend on the groups
    queue = method.queue.rows.clone()
    output = method.step(batch, bench.progress(0))
    assert torch.equal(method.queue.rows, queue)
    q = F.normalize(method.projector(method.backbone(batch.view1)), dim=1)
    k = F.normalize(method.teacher(batch.view2), dim=1)
    torch.testing.assert_close(F.normalize(output.embeddings, dim=1), q.detach())
    torch.testing.assert_close(F.normalize(output.positives, dim=1), k)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / method.recipe.temperature
    assert_same_step(method, output.loss, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))
    method.after_step(bench.progress(0))
    new = bench.method.queue.rows
    changed = (new != queue).any(dim=1)
    assert changed.sum() == 6
    torch.testing.assert_close(new[changed], k)


def test_the_queue_wraps_around(bench):
    bench = bench("moco")  # 16 places, 6 keys a step
    first = bench.method.queue.rows.clone()
    bench.train(range(2))
    assert (bench.method.queue.rows != first).any(dim=1).sum() == 12
    bench.train(range(2, 3))
    assert (bench.method.queue.rows != first).any(dim=1).all()


@pytest.mark.parametrize("step", [0, 7])
def test_the_teacher_moves_by_a_constant_momentum_and_starts_equal(bench, step):
    bench = bench("moco", momentum=0.75)
    teacher, student = list(bench.method.teacher.parameters()), list(bench.method.encoder.parameters())
    assert all(torch.equal(t, s) for t, s in zip(teacher, student))
    bench.backward(0)
    bench.optimiser.step()
    old = [t.clone() for t in teacher]
    bench.method.after_step(bench.progress(step))
    for t, o, s in zip(bench.method.teacher.parameters(), old, student):
        torch.testing.assert_close(t, 0.75 * o + 0.25 * s)


def test_a_query_and_its_key_do_not_share_batch_statistics(bench):
    """Forward passes of 3: queries of consecutive images, keys of every second one."""
    bench = bench("moco", bn_group_size=3)
    seen: dict[str, list] = {"queries": [], "keys": []}
    bench.method.backbone.register_forward_pre_hook(lambda m, inputs: seen["queries"].append(inputs[0]))
    bench.method.teacher.register_forward_pre_hook(lambda m, inputs: seen["keys"].append(inputs[0]))
    batch = bench.batch(0)
    bench.method.step(batch, bench.progress(0))
    for got, expected in zip(
        seen["queries"] + seen["keys"], [*batch.view1.chunk(2), batch.view2[::2], batch.view2[1::2]]
    ):
        assert torch.equal(got, expected)
    assert len(seen["queries"]) == len(seen["keys"]) == 2


def test_a_queue_longer_than_the_data_is_said(bench, caplog):
    with caplog.at_level(logging.WARNING, logger="attar"):
        bench("moco", queue_length=64)
    assert "queue of 64 keys is longer than the data (12 images)" in caplog.text
