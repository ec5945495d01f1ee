"""I-JEPA: context and targets, the teacher's normalised features, linear momentum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.losses import masked_smooth_l1
from attar.methods.base import resolve_recipe
from attar.methods.masked.i_jepa import views
from attar.models.tokens import Tokens, embed, run_blocks, tokens_of
from tests.methods.conftest import assert_same_step


def test_step_is_the_loss_image_by_image_and_target_by_target_without_padding(bench):
    bench = bench("i_jepa", min_context=3)
    method, batch = bench.method.eval(), bench.batch(0)
    torch.nn.init.uniform_(method.teacher.module.network.norm.weight, 0.2, 3.0)  # the target is normalised once more
    assert len(set(batch.context.sum(1).tolist())) > 1, "contexts of several sizes, or padding is not tested"
    terms = []
    for b in range(6):
        image = batch.images[b : b + 1]
        whole = tokens_of(method.teacher.module, image).patches.detach()
        target = (whole - whole.mean(2, keepdim=True)) / (whole.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        seen = batch.context[b].nonzero().T
        prefix, patches = embed(method.backbone, image)
        z = run_blocks(method.backbone, Tokens(prefix, patches[:, seen[0]]))
        for block in batch.targets[b]:
            places = block.nonzero().T
            prediction = method.predictor(z, seen, places)
            terms.append(F.smooth_l1_loss(prediction, target[:, places[0]]))
    output = method.step(batch, bench.progress(0))
    assert_same_step(method, output.loss, torch.stack(terms).mean())


def test_the_student_sees_the_context_only_and_the_teacher_everything(bench):
    bench = bench("i_jepa", min_context=3)
    batch = bench.batch(0)
    seen, asked = [], []
    bench.method.predictor.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].patches))
    original = bench.method._ask_teacher
    bench.method._ask_teacher = lambda images: asked.append(images) or original(images)
    bench.method(batch, bench.progress(0))
    outside = ~batch.context.view(6, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch.images = batch.images + outside * 5.0
    bench.method(batch, bench.progress(0))
    valid = torch.arange(seen[0].shape[1]) < batch.context.sum(1)[:, None]
    valid = valid.repeat_interleave(4, dim=0)
    torch.testing.assert_close(seen[0][valid], seen[1][valid])
    assert not torch.equal(asked[0], asked[1])


def test_targets_have_no_gradient_and_unit_scale(bench):
    bench = bench("i_jepa")
    torch.nn.init.uniform_(bench.method.teacher.module.network.norm.weight, 0.2, 3.0)
    target, features = bench.method._ask_teacher(bench.batch(0).images)
    assert not target.requires_grad and not features.requires_grad and features.shape == (6, 128)
    torch.testing.assert_close(target.mean(2), torch.zeros(6, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.std(2, unbiased=False), torch.ones(6, 16), atol=1e-3, rtol=0)
    zero = masked_smooth_l1(torch.zeros_like(target), target, torch.ones(6, 16, dtype=torch.bool))
    assert 0.3 < zero < 0.5  # what predicting nothing costs: at most half the variance


def test_momentum_rises_linearly(bench):
    bench = bench("i_jepa", momentum=0.9)
    with torch.no_grad():
        for parameter in bench.method.backbone.parameters():
            parameter.add_(1.0)
    before = bench.method.teacher.module.network.pos_embed.clone()
    bench.method.after_step(bench.progress(2))  # a quarter of 8 steps: 0.925
    torch.testing.assert_close(bench.method.teacher.module.network.pos_embed, before + 0.075)


def test_recipe_and_views_are_the_published_ones(bench):
    photo = resolve_recipe("i_jepa")
    assert photo.peak_lr == pytest.approx(1e-3) and (photo.weight_decay, photo.weight_decay_end) == (0.04, 0.4)
    assert (photo.predictor_dim, photo.predictor_depth, photo.num_targets, photo.min_context) == (384, 12, 4, 10)
    assert photo.predictor_heads == 16
    maker = views(photo, bench("i_jepa").setup.image, 4)
    assert maker.view.flip == 0 and maker.view.jitter is None and maker.view.scale == (0.3, 1.0) and maker.grid == 8
