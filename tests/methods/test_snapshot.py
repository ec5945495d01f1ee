"""Snapshot distillation: the teacher is the network at the end of the cycle before, and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attar.methods.base import resolve_recipe
from attar.train.schedules import learning_rate


def copied(method) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.teacher.module.state_dict().items()}


def test_the_recipe_restarts_its_learning_rate():
    paper = resolve_recipe("snapshot", "paper")
    assert (paper.num_cycles, paper.schedule, paper.teacher_temperature) == (5, "cosine", 2.0)
    rates = [learning_rate(paper, epoch, 300) for epoch in range(300)]
    assert [epoch for epoch in range(1, 300) if rates[epoch] > rates[epoch - 1]] == [60, 120, 180, 240]


def test_the_teacher_moves_at_the_end_of_a_cycle_only_and_is_then_the_network(bench):
    bench = bench("snapshot", num_cycles=2)  # eight steps: the first cycle ends with step 3
    method = bench.method
    start = copied(method)
    bench.train(range(3))
    assert all(torch.equal(v, start[k]) for k, v in copied(method).items())
    bench.train(range(3, 4))
    now = method.network.state_dict()
    assert all(torch.equal(v, now[k]) for k, v in copied(method).items())
    assert any("running_var" in k for k in now) and int(now["0.network.body.stem.1.num_batches_tracked"]) == 4
    kept = copied(method)
    bench.train(range(4, 8))
    assert all(torch.equal(v, kept[k]) for k, v in copied(method).items())
    assert not method.teacher.module.training and method.backbone.training
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_only_later_cycles_are_taught_and_only_the_teacher_is_softened(bench):
    bench = bench("snapshot", num_cycles=2, teacher_temperature=3.0, distillation_weight=0.5)
    method = bench.method.eval()
    for p in method.teacher.parameters():
        p.add_(0.1)
    batch = bench.batch(0)
    logits = method.classifier(method.backbone(batch.images))
    hard = F.cross_entropy(logits, batch.labels)
    first = method.step(batch, bench.progress(3))
    torch.testing.assert_close(first.loss, hard)
    assert "teacher_cross_entropy" not in first.metrics
    targets = torch.softmax(method.teacher(batch.images) / 3, dim=1)
    soft = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(method.step(batch, bench.progress(4)).loss, hard + 0.5 * soft)


def test_the_copy_answers_in_full_precision_whatever_the_network_computes_in(bench):
    bench = bench("snapshot", num_cycles=2)
    bench.train(range(5))
    images = bench.batch(0).images
    exact = bench.method.teacher(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench.method.network(images).dtype == torch.bfloat16
        assert torch.equal(bench.method.teacher(images), exact) and exact.dtype == torch.float32


def test_resuming_after_a_restart_is_bit_equal(bench):
    """The contract resumes before the first cycle ends; here the copy is in use."""
    straight = bench("snapshot", num_cycles=4)
    straight.train(range(5))
    state = {k: v.clone() for k, v in straight.method.state_dict().items()}
    assert any(k.startswith("teacher.module.1.") for k in state)
    resumed = bench("snapshot", num_cycles=4)
    resumed.method.load_state_dict(state)
    progress = straight.progress(5)
    losses = [each.method.eval().step(each.batch(5), progress).loss for each in (straight, resumed)]
    assert torch.equal(*losses)
