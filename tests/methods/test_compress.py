"""CompRess: one queue or two, what is compared with what, and when the queues move."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.losses import similarity_distillation
from attar.methods.base import Setup
from attar.methods.distill.compress import METHOD, RECIPES


def test_the_numbers_of_the_paper():
    r = RECIPES["2q"]
    assert (r.temperature, r.queue_length, r.momentum) == (0.04, 128000, 0.999)
    assert (r.epochs, r.batch_size, r.peak_lr, r.weight_decay, r.sgd_momentum) == (130, 256, 0.01, 1e-4, 0.9)
    assert [round(drop * r.epochs) for drop in r.lr_drops] == [90, 120] and r.lr_drop_factor == 0.2
    assert [r.own_queue for r in RECIPES.values()][:2] == [True, False]


@pytest.mark.parametrize("recipe", ["1q", "2q"])
def test_step_is_the_loss_against_the_queues_before_this_step(bench, recipe):
    bench = bench("compress", recipe)
    method = bench.method
    queue = method.teacher_queue.rows.clone()
    own = None if recipe == "1q" else method.student_queue.rows.clone()
    output = bench.backward(0)
    batch = bench.batch(0)
    t = bench.setup.teacher(batch.images, batch.index, bench.setup.image)
    expected = similarity_distillation(
        output.embeddings,
        t,
        queue,
        student_temperature=0.04,
        teacher_temperature=0.04,
        include_self=False,
        student_anchors=own,
    )
    torch.testing.assert_close(output.loss.detach(), expected)
    assert output.metrics["kl"] >= 0
    assert torch.equal(method.teacher_queue.rows, queue), "embeddings enter the queues after the comparison"
    method.after_step(bench.progress(0))
    changed = (method.teacher_queue.rows != queue).any(dim=1)
    torch.testing.assert_close(method.teacher_queue.rows[changed], F.normalize(t, dim=1))


def test_row_a_of_both_queues_is_the_same_image(bench):
    """More than once around, with a queue that the batch does not divide."""
    bench = bench("compress", "2q", queue_length=16)
    method, seen = bench.method, []
    for step in range(4):
        output = bench.backward(step)
        batch = bench.batch(step)
        seen.append((output.positives, bench.setup.teacher(batch.images, batch.index, bench.setup.image)))
        method.after_step(bench.progress(step))
    last = [F.normalize(torch.cat(rows)[-16:], dim=1) for rows in zip(*seen)]
    for own, teacher in zip(*last):
        place = (method.teacher_queue.rows - teacher).norm(dim=1).argmin()
        torch.testing.assert_close(method.teacher_queue.rows[place], teacher)
        torch.testing.assert_close(method.student_queue.rows[place], own)


def test_the_queue_of_the_student_is_filled_by_the_slow_one(bench):
    bench = bench("compress", "2q", momentum=0.5)
    bench.train(range(2))
    method = bench.method
    slow, fast = method.slow_student.module, method.backbone
    assert not all(torch.equal(a, b) for a, b in zip(slow.parameters(), fast.parameters()))
    method.eval()
    batch = bench.batch(2)
    pushed = method.step(batch, bench.progress(2)).positives
    assert torch.equal(pushed, slow(batch.images)) and not torch.allclose(pushed, fast(batch.images))
    method._new_keys.clear()
    before = [p.clone() for p in slow.parameters()]
    method._new_keys.append((torch.randn(6, method.teacher_queue.rows.shape[1]), torch.randn(6, fast.num_features)))
    method.after_step(bench.progress(2))
    for was, now, student in zip(before, slow.parameters(), fast.parameters()):
        torch.testing.assert_close(now, 0.5 * was + 0.5 * student)


def test_one_queue_needs_a_linear_layer_and_two_need_none(bench):
    one, two = bench("compress", "1q").method, bench("compress", "2q").method
    assert [tuple(p.shape) for p in one.projector.parameters()] == [(32, 32), (32,)]
    assert two.projector is None and two.student is two.backbone


def test_a_student_that_is_the_teacher_has_nothing_to_learn(bench):
    """1q with the teacher's own weights and an identity as its linear layer: KL 0, gradient 0."""
    bench = bench("compress", "1q")
    method = bench.method.eval()
    method.backbone.load_state_dict(bench.setup.teacher.network.state_dict())
    with torch.no_grad():
        method.projector[0].weight.copy_(torch.eye(32))
        method.projector[0].bias.zero_()
    output = method.step(bench.batch(0), bench.progress(0))
    output.loss.backward()
    assert float(output.metrics["kl"]) == pytest.approx(0, abs=1e-5)
    assert float(output.metrics["top1_agreement"]) == 1
    assert max(float(p.grad.abs().max()) for p in method.parameters() if p.grad is not None) < 1e-4


def test_without_a_teacher_it_says_so(bench, backbone):
    built = bench("compress")
    with pytest.raises(RecipeError, match="compress: it distils and needs a teacher"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))


def test_the_state_of_two_queues_is_saved_whole(bench):
    """A method that loads what was saved continues bit for bit."""
    straight, resumed = bench("compress", "2q"), bench("compress", "2q")
    straight.train(range(2))
    resumed.method.load_state_dict(straight.method.state_dict())
    resumed.optimiser.load_state_dict(copy.deepcopy(straight.optimiser.state_dict()))
    assert resumed.train(range(2, 4)) == straight.train(range(2, 4))
    final = straight.method.state_dict()
    assert all(torch.equal(v, final[k]) for k, v in resumed.method.state_dict().items())
