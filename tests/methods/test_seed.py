"""SEED: what is compared with what, and what the metrics say about the teacher."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.losses import similarity_distillation
from attar.methods.base import Setup
from attar.methods.distill.seed import METHOD, RECIPES


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_step_is_the_loss_against_the_queue_before_this_step(bench, recipe):
    bench = bench("seed", recipe, num_local_views=0)
    queue = bench.method.queue.rows.clone()
    output = bench.backward(0)
    r = bench.method.recipe
    expected = similarity_distillation(
        output.embeddings,
        output.positives,
        queue,
        student_temperature=r.student_temperature,
        teacher_temperature=r.teacher_temperature,
        include_self=r.include_self,
    )
    torch.testing.assert_close(output.loss.detach(), expected)
    assert torch.equal(bench.method.queue.rows, queue), "keys enter the queue after the comparison"
    bench.method.after_step(bench.progress(0))
    changed = (bench.method.queue.rows != queue).any(dim=1)
    torch.testing.assert_close(bench.method.queue.rows[changed], F.normalize(output.positives, dim=1))


def test_both_see_the_same_view(bench):
    bench = bench("seed", num_local_views=0)
    batch = bench.batch(0)
    bench.method.eval()
    output = bench.method.step(batch, bench.progress(0))
    teacher = bench.setup.teacher(batch.images, batch.index, bench.setup.image)
    torch.testing.assert_close(output.positives, teacher)


def test_a_cold_teacher_with_itself_among_the_anchors_only_says_itself(bench):
    """The trap of the released temperature: the soft part is gone, and the metrics show it."""
    released = bench("seed", "released", num_local_views=0).backward(0)
    assert released.metrics["teacher_p_self"] == pytest.approx(1.0)
    assert released.metrics["teacher_entropy"] == pytest.approx(0.0, abs=1e-4)
    logits = torch.cat(
        [
            F.cosine_similarity(released.embeddings, released.positives)[:, None],
            F.normalize(released.embeddings, dim=1) @ bench("seed", "released").method.queue.rows.T,
        ],
        dim=1,
    )
    info_nce = F.cross_entropy(logits / 0.2, torch.zeros(len(logits), dtype=torch.long))
    torch.testing.assert_close(released.loss.detach(), info_nce, rtol=1e-4, atol=1e-5)
    soft = bench("seed", "soft", num_local_views=0).backward(0)
    assert "teacher_p_self" not in soft.metrics
    assert 0 < soft.metrics["teacher_entropy"] < math.log(16)


def test_the_projector_is_as_wide_as_the_teacher_and_has_no_batch_norm(bench):
    bench = bench("seed", projector_hidden_dim=None)
    width = bench.method.backbone.num_features
    shapes = [tuple(p.shape) for p in bench.method.projector.parameters() if p.ndim == 2]
    assert shapes == [(width, width), (bench.setup.teacher.num_features_out, width)]
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in bench.method.projector.modules())


def test_small_patches_have_their_own_term_and_queue(bench):
    bench = bench("seed", "small_patches", num_local_views=2)
    method, batch = bench.method.eval(), bench.batch(0)
    queue, local_queue = method.queue.rows.clone(), method.local_queue.rows.clone()
    assert not torch.equal(queue, local_queue)
    output = method.step(batch, bench.progress(0))
    settings = dict(student_temperature=0.2, teacher_temperature=0.01, include_self=True)
    crops = torch.cat(batch.local_views)
    assert crops.shape[-1] < batch.global_views[0].shape[-1]
    t = bench.setup.teacher(crops, batch.index.repeat(2), bench.setup.image)
    local = similarity_distillation(method.projector(method.backbone(crops)), t, local_queue, **settings)
    whole = similarity_distillation(output.embeddings, output.positives, queue, **settings)
    torch.testing.assert_close(output.loss, whole + local)
    method.after_step(bench.progress(0))
    changed = (method.local_queue.rows != local_queue).any(dim=1)
    assert int(changed.sum()) == len(batch.index), "one small crop of each image enters its queue"
    torch.testing.assert_close(method.local_queue.rows[changed], F.normalize(t[: len(batch.index)], dim=1))


def test_a_cache_of_one_view_is_refused_with_small_patches(bench):
    with pytest.raises(RecipeError, match="teacher_views keeps the answers to one view"):
        bench("seed", "small_patches", teacher_views=1)


def test_without_a_teacher_it_says_so(bench, backbone):
    built = bench("seed")
    with pytest.raises(RecipeError, match="seed: it distils and needs a teacher"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
