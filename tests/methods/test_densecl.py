"""DenseCL: which cell meets which, two queues, one teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import BackboneError, RecipeError
from attar.losses import info_nce
from attar.methods.contrastive.densecl import DenseCL, nearest_cells
from tests.methods.conftest import assert_same_step


def test_a_cell_meets_the_cell_of_largest_cosine_in_the_same_image():
    cells = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
    keys = 5 * cells.gather(1, order[..., None].expand_as(cells))  # key cell s shows query cell order[s]
    assert torch.equal(nearest_cells(cells, keys), order.argsort(dim=1))
    random_keys = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1))
    cosine = lambda a, b: float(F.cosine_similarity(a, b, dim=0))  # noqa: E731
    by_hand = [
        [max(range(4), key=lambda t, q=q, of=of: cosine(q, of[t])) for q in own] for own, of in zip(cells, random_keys)
    ]
    assert nearest_cells(cells, random_keys).tolist() == by_hand


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_the_step_is_both_terms_cell_by_cell(bench, weight):
    bench = bench("densecl", dense_weight=weight)
    method, batch = bench.method.eval(), bench.batch(0)
    features, feature_map = method.backbone.features_and_map(batch.view1)
    cells = feature_map.flatten(2).transpose(1, 2)
    q, q_cells = method.projector(features), method.dense_projector(cells)
    k, k_cells, key_cells = method.teacher(batch.view2)
    assert q_cells.shape == (6, 64, 12) and cells.shape == (6, 64, 32)
    match, t = nearest_cells(cells.detach(), key_cells), method.recipe.temperature
    images = info_nce(q, k, temperature=t, negatives=method.queue.rows)
    others = method.dense_queue.rows
    dense = torch.stack(
        [
            info_nce(q_cells[b, s : s + 1], k_cells[b, match[b, s]][None], temperature=t, negatives=others)
            for b in range(6)
            for s in range(64)
        ]
    ).mean()
    output = method.step(batch, bench.progress(0))
    assert_same_step(method, output.loss, (1 - weight) * images + weight * dense)


def test_a_query_and_its_key_do_not_share_batch_statistics(bench):
    """Forward passes of 3: queries of consecutive images, keys of every second one."""
    bench = bench("densecl", bn_group_size=3)
    method, batch, seen = bench.method, bench.batch(0), {"queries": [], "keys": []}
    for kind, network in (("queries", method.backbone), ("keys", method.teacher)):
        first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_pre_hook(lambda m, inputs, kind=kind: seen[kind].append(inputs[0]))
    method.step(batch, bench.progress(0))
    expected = {"queries": batch.view1.chunk(2), "keys": (batch.view2[::2], batch.view2[1::2])}
    for kind, groups in expected.items():
        assert all(torch.equal(one, other) for one, other in zip(seen[kind], groups, strict=True)), kind


def test_a_linear_on_cells_is_a_1x1_convolution_on_the_map(bench):
    method, images = bench("densecl").method.eval(), torch.randn(2, 3, 32, 32)
    _, feature_map = method.backbone.features_and_map(images)
    first, _, last = method.dense_projector
    hidden = F.conv2d(feature_map, first.weight[..., None, None], first.bias).relu()
    expected = F.conv2d(hidden, last.weight[..., None, None], last.bias)  # (B, E, H, W)
    torch.testing.assert_close(method.encoder(images)[1], expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_keys_enter_the_queues_after_the_step_the_dense_ones_pooled(bench):
    bench = bench("densecl")
    method, batch = bench.method.eval(), bench.batch(0)
    before = method.queue.rows.clone(), method.dense_queue.rows.clone()
    assert not torch.equal(*before)
    k, k_cells, _ = method.teacher(batch.view2)
    method.step(batch, bench.progress(0))
    assert torch.equal(method.queue.rows, before[0]) and torch.equal(method.dense_queue.rows, before[1])
    method.after_step(bench.progress(0))
    torch.testing.assert_close(method.queue.rows[:6], F.normalize(k, dim=1))
    torch.testing.assert_close(method.dense_queue.rows[:6], F.normalize(k_cells.mean(dim=1), dim=1))
    assert torch.equal(method.queue.rows[6:], before[0][6:]) and torch.equal(method.dense_queue.rows[6:], before[1][6:])


@pytest.mark.parametrize("step", [0, 7])
def test_the_teacher_follows_backbone_and_both_projectors_by_a_constant_momentum(bench, step):
    bench = bench("densecl", momentum=0.75)
    teacher, student = list(bench.method.teacher.parameters()), list(bench.method.encoder.parameters())
    assert len(student) == len([p for p in bench.method.parameters() if p.requires_grad])
    bench.backward(0)
    bench.optimiser.step()
    old = [t.clone() for t in teacher]
    bench.method.after_step(bench.progress(step))
    for t, o, s in zip(teacher, old, student):
        torch.testing.assert_close(t, 0.75 * o + 0.25 * s)


def test_networks_without_a_map_are_refused(bench):
    from attar.models.backbones import build_backbone

    built = bench("densecl")
    with pytest.raises(RecipeError, match=r"resnet18 makes \(512, 1, 1\) of an image of 32 px"):
        DenseCL(built.method.recipe, build_backbone("resnet18", image_size=32), built.setup)
    with pytest.raises(RecipeError, match="needs a convnet"):
        DenseCL(built.method.recipe, build_backbone("vit_tiny_patch16_224", image_size=32), built.setup)
    with pytest.raises(BackboneError, match="shows no map"):
        DenseCL(built.method.recipe, build_backbone("hog", image_size=32), built.setup)
