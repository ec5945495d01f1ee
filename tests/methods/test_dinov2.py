"""DINOv2: untied heads, balanced targets, KoLeo, layer-wise learning rates."""

from __future__ import annotations

import torch

from attar.losses import dino, koleo, masked_distillation, sinkhorn
from attar.models.tokens import tokens_of
from tests.methods.conftest import assert_same_step


def test_step_is_the_sum_of_its_three_terms_with_balanced_targets(bench):
    rising = dict(teacher_temperature=0.07, teacher_temperature_fraction=0.75)  # from 0.04, in 3 epochs of 4
    bench = bench("dinov2", mask_probability=0.9, koleo_weight=2.0, **rising)
    method = bench.method.eval()
    torch.nn.init.normal_(method.mask_token)
    batch = bench.batch(2)
    views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)
    assert masks.sum() > 20
    backbone, head, patch_head = method.teacher.module
    with torch.no_grad():
        whole = tokens_of(backbone, views)
        targets = sinkhorn(head(whole.cls), epsilon=0.055, iterations=3)
        patch_targets = sinkhorn(patch_head(whole.patches[masks]), epsilon=0.055, iterations=3)
    seen = tokens_of(method.backbone, views, masked=masks, mask_token=method.mask_token)
    student = [*method.head(seen.cls).chunk(2), *(method.head(method.backbone(v)) for v in batch.local_views)]
    given = dict(centre=torch.zeros(1, 24), student_temperature=0.1, teacher_temperature=1.0)
    cls = dino(student, targets.log().chunk(2), **given)
    patch = masked_distillation(method.patch_head(seen.patches[masks]), patch_targets.log(), masks, **given)
    spread = sum(koleo(view) for view in seen.cls.chunk(2))
    output = method.step(batch, bench.progress(2))  # in epoch 1
    for name, value in {"cls": cls, "patch": patch, "koleo": spread}.items():
        torch.testing.assert_close(output.metrics[name], value.detach(), rtol=1e-4, atol=1e-4)
    assert_same_step(method, output.loss, cls + patch + 2.0 * spread, atol=1e-4)


def test_the_heads_share_nothing_and_the_teacher_follows_both(bench):
    method = bench("dinov2").method
    heads = [{id(p) for p in head.parameters()} for head in (method.head, method.patch_head)]
    assert not heads[0] & heads[1]
    assert not torch.equal(method.head.last_layer.weight, method.patch_head.last_layer.weight)
    assert len(list(method.teacher.parameters())) == len(list(method.student.parameters()))
    with torch.no_grad():
        for parameter in method.patch_head.parameters():
            parameter.add_(1.0)
    before = method.teacher.module[2].last_layer.weight.clone()
    method.after_step(bench("dinov2").progress(0))
    torch.testing.assert_close(method.teacher.module[2].last_layer.weight, before + 0.01)


def test_with_softmax_two_centres_move_after_the_step_and_with_sinkhorn_none(bench):
    built = bench("dinov2", centring="softmax", centre_momentum=0.8)
    method, batch = built.method, built.batch(0)
    method.patch_centre.fill_(2.0)
    backbone, head, patch_head = method.teacher.module
    views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)
    with torch.no_grad():
        tokens = tokens_of(backbone, views)
        scores = head(tokens.cls), patch_head(tokens.patches)
    targets = method._ask_teacher(views, masks, 0.05)
    torch.testing.assert_close(targets[0], torch.softmax(scores[0] / 0.05, 1))
    torch.testing.assert_close(targets[1], torch.softmax((scores[1][masks] - 2) / 0.05, 1), rtol=1e-4, atol=1e-5)
    assert (method.centre == 0).all()
    method.after_step(built.progress(0))
    torch.testing.assert_close(method.centre[0], 0.2 * scores[0].mean(0))
    torch.testing.assert_close(method.patch_centre[0], 1.6 + 0.2 * scores[1].mean((0, 1)))
    built = bench("dinov2")
    built.train(range(1))
    assert not built.method.centre.any() and not built.method.patch_centre.any()


def test_sinkhorn_uses_all_prototypes_where_softmax_would_use_one(bench):
    method, batch = (built := bench("dinov2")).method, built.batch(0)
    views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)
    targets, _ = method._ask_teacher(views, masks, 0.05)
    assert targets.mean(0).max() < 4 / 24


def test_learning_rates_fall_towards_the_input_and_last_layers_wait(bench):
    method = bench("dinov2", layer_decay=0.5, freeze_last_layer_fraction=0.25).method
    of = {id(p): g for g in method.parameter_groups() for _, p in g["params"]}
    named = dict(method.named_parameters())
    scale = lambda name: of[id(named[name])]["lr_scale"]  # noqa: E731
    assert scale("backbone.network.norm.weight") == scale("head.mlp.0.weight") == 1.0
    assert scale("backbone.network.blocks.5.norm1.weight") == 0.5
    assert scale("backbone.network.blocks.0.mlp.fc1.weight") == 0.5**6
    assert scale("backbone.network.pos_embed") == scale("mask_token") == scale("backbone.network.cls_token") == 0.5**7
    assert scale("backbone.network.patch_embed.proj.weight") == 0.2 * 0.5**7
    waiting = {n for n, p in named.items() if id(p) in of and of[id(p)]["frozen_fraction"] == 0.25}
    assert waiting == {"head.last_layer.weight", "patch_head.last_layer.weight"}
