"""SimCLR: the loss is on both views in one pass; the memory of v2."""

from __future__ import annotations

import torch

from attar.losses import nt_xent
from tests.methods.conftest import assert_same_step


def test_step_is_nt_xent_of_both_views_in_one_pass(bench):
    bench = bench("simclr")
    batch = bench.batch(0)
    output = bench.method.step(batch, bench.progress(0))
    z = bench.method.projector(bench.method.backbone(torch.cat([batch.view1, batch.view2])))
    assert_same_step(bench.method, output.loss, nt_xent(z[:6], z[6:], temperature=0.5))
    torch.testing.assert_close(output.embeddings, z[:6].detach())
    assert not torch.equal(batch.view1, batch.view2)


def test_the_projector_of_v2_has_a_third_layer(bench):
    bench = bench("simclr", "v2")
    assert sum(isinstance(m, torch.nn.Linear) for m in bench.method.projector) == 3


def test_v2_trains_a_backbone_with_selective_kernels(bench):
    built = bench("simclr", "v2", network="skresnet18")
    assert any("selective" in type(m).__name__.lower() for m in built.method.backbone.modules())
    before = [p.clone() for p in built.method.backbone.parameters()]
    built.train(range(1))
    assert all(not torch.equal(p, old) for p, old in zip(built.method.backbone.parameters(), before, strict=True))


def test_hidden_width_is_the_features_unless_given(bench):
    default, given = bench("simclr", projector_hidden_dim=None), bench("simclr", projector_hidden_dim=17)
    width = default.method.backbone.num_features
    shapes = lambda b: [tuple(p.shape) for p in b.method.projector.parameters() if p.ndim == 2]  # noqa: E731
    assert shapes(default) == [(width, width), (12, width)] and shapes(given) == [(17, width), (12, 17)]


def test_a_memory_holds_what_the_copy_says_of_second_views_after_the_step(bench):
    bench = bench("simclr", memory_length=10, memory_momentum=0.5)
    method, batch, before = bench.method, bench.batch(0), bench.method.memory.rows.clone()
    said = torch.nn.functional.normalize(method.teacher(batch.view2), dim=1).detach()
    output = method.step(batch, bench.progress(0))
    assert torch.equal(method.memory.rows, before)  # none is a negative of its own step
    z = method.projector(method.backbone(torch.cat([batch.view1, batch.view2])))
    assert_same_step(method, output.loss, nt_xent(z[:6], z[6:], temperature=0.5, memory=before))
    first = next(method.teacher.parameters()).clone()
    with torch.no_grad():
        next(method.backbone.parameters()).add_(1.0)
    method.after_step(bench.progress(7))  # the momentum is the same at every step
    torch.testing.assert_close(method.memory.rows[:6], said)
    assert torch.equal(method.memory.rows[6:], before[6:])
    torch.testing.assert_close(next(method.teacher.parameters()), first + 0.5)


def test_without_a_memory_there_is_no_copy(bench):
    assert not hasattr(bench("simclr").method, "teacher")
