"""iBOT: who sees what, the two terms, the two centres."""

from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError
from attar.losses import dino, masked_distillation
from attar.methods.base import Setup
from attar.methods.masked.ibot import IBOT, RECIPES, views
from attar.models.backbones import build_backbone
from attar.models.tokens import tokens_of
from tests.methods.conftest import assert_same_step


def test_step_is_dino_on_class_tokens_plus_distillation_of_masked_patches(bench):
    rising = dict(teacher_temperature=0.07, teacher_temperature_fraction=0.75)  # from 0.04, in 3 epochs of 4
    bench = bench("ibot", mask_probability=0.9, **rising)
    method = bench.method.eval()
    for seed, centre in enumerate((method.centre, method.patch_centre)):
        centre.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.1)
    torch.nn.init.normal_(method.mask_token)
    batch = bench.batch(2)
    assert sum(m.sum() for m in batch.masks) > 20
    seen = [tokens_of(method.backbone, v, masked=m, mask_token=method.mask_token) for v, m in zip(*_global(batch))]
    whole = [tokens_of(method.teacher.module[0], v) for v in batch.global_views]
    student = [method.head(t.cls) for t in seen] + [method.head(method.backbone(v)) for v in batch.local_views]
    teacher_head = method.teacher.module[1]
    given = dict(student_temperature=0.1, teacher_temperature=0.055)
    cls = dino(student, [teacher_head(t.cls) for t in whole], centre=method.centre, **given)
    patch = [
        masked_distillation(
            method.head(s.patches[m]), teacher_head(t.patches[m]), m, centre=method.patch_centre, **given
        )
        for s, t, m in zip(seen, whole, batch.masks)
    ]
    output = method.step(batch, bench.progress(2))  # in epoch 1
    torch.testing.assert_close(output.metrics["cls"], cls.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.metrics["patch"], sum(patch).detach() / 2, rtol=1e-4, atol=1e-4)
    assert_same_step(method, output.loss, cls + sum(patch) / 2, atol=1e-4)


def _global(batch):
    return batch.global_views, batch.masks


def test_the_teacher_sees_whole_views_and_gets_no_gradient(bench):
    bench = bench("ibot", mask_probability=1.0)
    torch.nn.init.normal_(bench.method.mask_token)  # would show in the teacher's scores
    batch = bench.batch(0)
    views, masks = torch.cat(batch.global_views), torch.cat(batch.masks)
    asked = bench.method._ask_teacher(views, masks)
    again = bench.method._ask_teacher(views, torch.zeros_like(masks))
    assert torch.equal(asked[0], again[0]) and not asked[1].requires_grad
    assert asked[1].shape == (int(masks.sum()), 24) and again[1].shape == (0, 24)


def test_both_centres_are_running_means_of_raw_scores_over_all_tokens(bench):
    bench = bench("ibot", centre_momentum=0.8)
    method, batch = bench.method, bench.batch(0)
    method.centre.fill_(1.0), method.patch_centre.fill_(2.0)
    backbone, head = method.teacher.module
    with torch.no_grad():
        tokens = tokens_of(backbone, torch.cat(batch.global_views))
        cls, patch = head(tokens.cls).mean(0), head(tokens.patches.flatten(0, 1)).mean(0)
    method(batch, bench.progress(0))
    assert (method.centre == 1).all() and (method.patch_centre == 2).all()
    method.after_step(bench.progress(0))
    torch.testing.assert_close(method.centre[0], 0.8 + 0.2 * cls)
    torch.testing.assert_close(method.patch_centre[0], 1.6 + 0.2 * patch)


def test_without_any_masked_patch_only_the_class_term_is_left(bench):
    bench = bench("ibot", mask_probability=0.0)
    output = bench.method(bench.batch(0), bench.progress(0))
    assert output.metrics["patch"] == 0 and output.loss == output.metrics["cls"]
    output.loss.backward()
    assert bench.method.mask_token.grad is not None  # in the graph, as DistributedDataParallel needs


def test_local_views_and_the_least_block_fit_the_patches(bench):
    image = bench("ibot").setup.image
    assert views(RECIPES["small"], image, 4).local_views[0].view_size == 16
    large = image.__class__(size=224, channels=3, mean=image.mean, std=image.std)
    photo = views(RECIPES["photo"], large, 16)
    assert photo.local_views[0].view_size == 96 and len(photo.local_views) == 10 and photo.grid == 14
    assert photo.smallest == 16 and views(RECIPES["photo"], large, 14).smallest == 25  # (grid // 3)^2
    assert views(RECIPES["photo"], large, 14).local_views[0].view_size == 98


def test_the_class_token_is_needed(bench):
    built = bench("ibot")
    backbone = build_backbone("vit_micro_p8_gap", image_size=32)
    with pytest.raises(BackboneError, match="ibot trains the class token"):
        IBOT(built.method.recipe, backbone, Setup(image=built.setup.image, images=built.images))


def test_groups_and_recipe_are_the_published_ones(bench):
    method = bench("ibot").method
    others, last = method.parameter_groups()
    assert {id(p) for p in last["params"]} == {id(p) for p in method.head.last_layer.parameters()}
    assert last["frozen_fraction"] == 1 / 200
    assert {id(p) for g in (others, last) for p in g["params"]} == {id(p) for p in method.parameters()}
    photo = RECIPES["photo"]
    assert photo.peak_lr == pytest.approx(2e-3) and photo.num_prototypes == 8192 and photo.mask_ratio == (0.1, 0.5)
    assert photo.global_scale == (0.25, 1.0) and photo.clip_per_parameter and photo.weight_decay_end == 0.4
