"""MoCo v3: the factor 2t, both directions, no gradient to keys, cosine momentum, the frozen patch projection."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.methods.contrastive.moco_v3 import METHOD
from attar.methods.momentum import cosine_to_one
from attar.models.backbones import build_backbone
from tests.methods.conftest import assert_same_step


def test_the_loss_is_two_t_times_both_directions_over_the_keys_of_the_batch(bench):
    bench = bench("moco_v3", temperature=0.3)
    method = bench.method.eval()  # batch statistics would depend on the order of passes
    with torch.no_grad():
        for own in method.teacher.parameters():
            own.add_(0.1 * torch.randn_like(own))  # keys that differ from the student's embeddings
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    views = (batch.view1, batch.view2)
    q = [F.normalize(method.predictor(method.projector(method.backbone(view))), dim=1) for view in views]
    k = [F.normalize(method.teacher(view), dim=1) for view in views]
    expected = torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i in range(6):
            logits = [(q[a][i] @ k[b][j]) / 0.3 for j in range(6)]  # own view's keys are no negatives
            expected = expected - 2 * 0.3 / 6 * (logits[i] - torch.stack(logits).logsumexp(0))
    assert_same_step(method, output.loss, expected)
    assert output.metrics["view_1_to_2"] != output.metrics["view_2_to_1"]


def test_equal_embeddings_give_four_t_log_b(bench):
    bench = bench("moco_v3", temperature=0.3)
    bench.method.predictor.register_forward_hook(lambda m, i, output: torch.ones_like(output))
    bench.method.teacher.register_forward_hook(lambda m, i, output: torch.ones_like(output))
    loss = bench.method.step(bench.batch(0), bench.progress(0)).loss
    assert loss.item() == pytest.approx(4 * 0.3 * math.log(6), abs=1e-5)


def test_the_teacher_follows_backbone_and_projector_by_a_cosine_but_not_the_predictor(bench):
    bench = bench("moco_v3", momentum=0.9)
    bench.backward(0)
    bench.optimiser.step()
    old = [p.clone() for p in bench.method.teacher.parameters()]
    assert len(old) == len(list(bench.method.encoder.parameters()))
    bench.method.after_step(bench.progress(4))  # half of 8 steps
    m = cosine_to_one(0.9, bench.progress(4))
    assert m == pytest.approx(0.95)
    for t, o, s in zip(bench.method.teacher.parameters(), old, bench.method.encoder.parameters()):
        torch.testing.assert_close(t, m * o + (1 - m) * s)


def test_a_vits_patch_projection_keeps_its_random_weights_and_everything_else_learns(bench):
    built = bench("moco_v3", "vit")
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", image_size=32)
    built.method = METHOD(built.method.recipe, backbone, built.setup).train()
    built.__post_init__()  # an optimiser for the new method
    names = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert names == ["network.patch_embed.proj.weight", "network.patch_embed.proj.bias"]
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    built.train(range(2))
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in names), name
    teacher = built.method.teacher.module[0].network.patch_embed.proj.weight
    assert torch.equal(teacher, before[names[0]])


def test_a_convnet_is_trained_whole_and_a_vit_if_told_so(bench):
    built = bench("moco_v3", "vit", freeze_patches=False)
    vit = METHOD(built.method.recipe, build_backbone("vit_micro_p8", image_size=32), built.setup)
    for method in (bench("moco_v3").method, vit):
        assert all(p.requires_grad for p in method.backbone.parameters())
