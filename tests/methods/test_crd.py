"""CRD: against which rows the embeddings are compared, and how the banks move."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attar.losses import nce
from attar.methods.distill.crd import RECIPES


def test_the_recipe_has_the_papers_numbers():
    small = RECIPES["small"]
    assert (small.contrast_weight, small.num_negatives, small.contrast_temperature) == (0.8, 16384, 0.07)
    assert (small.bank_momentum, small.projector_dim) == (0.5, 128)
    assert (small.ce_weight, small.kd_weight) == (1.0, 0.0) and RECIPES["small_kd"].kd_weight == 1.0
    assert RECIPES["released"] == small and RECIPES["paper"].contrast_temperature == 0.1


def test_each_side_is_compared_with_the_other_sides_bank_and_not_with_its_own_class(bench):
    bench = bench("crd", num_negatives=30)
    method, batch = bench.method.eval(), bench.batch(3)
    banks = [bank.rows.clone() for bank in (method.student_bank, method.teacher_bank)]
    output = method.step(batch, bench.progress(3))
    drawn = method.teacher_bank.draw_ids(30, 3)
    assert not torch.equal(drawn, method.teacher_bank.draw_ids(30, 0)), "each step has negatives of its own"
    by_id = dict(zip(bench.images.index.tolist(), bench.images.labels.tolist()))
    assert set(drawn.tolist()) <= set(by_id)
    same = torch.tensor([[by_id[int(i)] == by_id[int(k)] for k in drawn] for i in batch.index])
    assert same.any() and not same.all()
    s = method.student_adapter(method.backbone(batch.images))
    t = method.teacher_adapter(bench.setup.teacher.backbone(batch.images))
    expected = sum(
        nce(rows, bank[batch.index], bank[drawn], temperature=0.5, num_images=12, partition=partition, excluded=same)
        for rows, bank, partition in (
            (s, banks[1], method.teacher_bank.partition),
            (t, banks[0], method.student_bank.partition),
        )
    )
    torch.testing.assert_close(output.metrics["contrast"], expected.detach())
    assert torch.equal(method.student_bank.rows, banks[0]), "rows enter the banks after the comparison"

    method.after_step(bench.progress(3))
    moved = F.normalize(0.5 * banks[0][batch.index] + 0.5 * F.normalize(s, dim=1), dim=1)
    torch.testing.assert_close(method.student_bank.rows[batch.index], moved.detach())
    others = [i for i in range(len(banks[0])) if i not in batch.index]
    assert torch.equal(method.student_bank.rows[others], banks[0][others])


def test_the_partition_is_estimated_once(bench):
    bench = bench("crd")
    bench.train(range(1))
    first = bench.method.teacher_bank.partition.clone()
    bench.train(range(1, 3))
    assert first > 0 and torch.equal(bench.method.teacher_bank.partition, first)


def test_the_teachers_adapter_learns_and_the_teacher_does_not(bench):
    bench = bench("crd")
    bench.backward(0)
    assert all(p.grad is not None for p in bench.method.teacher_adapter.parameters())
    assert not any(p.requires_grad for p in bench.setup.teacher.backbone.parameters())
