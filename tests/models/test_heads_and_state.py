"""Heads, momentum teacher and queue against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from attar.errors import RecipeError, ShapeError
from attar.models.heads import MLP, DINOHead
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue


def test_mlp_is_built_again_from_its_spec():
    mlp = MLP([8, 16, 4], final_norm="batch_no_shift", bias=False, final_bias=False)
    again = MLP.from_spec(mlp.spec)
    again.load_state_dict(mlp.state_dict())
    x = torch.randn(6, 8)
    assert torch.equal(mlp(x), again(x)) and mlp.num_features_out == 4
    assert [type(m).__name__ for m in mlp] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


def test_final_norms_have_the_affine_part_they_say():
    shift = MLP([4, 4], final_norm="batch_no_shift")[-1]
    assert shift.weight.requires_grad and not shift.bias.requires_grad and (shift.bias == 0).all()
    assert MLP([4, 4], final_norm="batch_no_affine")[-1].weight is None
    with pytest.raises(RecipeError, match="unknown norm"):
        MLP([4, 4], final_norm="layer")
    with pytest.raises(RecipeError, match="at least an input and an output"):
        MLP([4])


def test_dino_head_is_a_weight_norm_with_unit_gain():
    head = DINOHead(6, 5, hidden_dim=8, bottleneck_dim=4)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1.0)
        reference.parametrizations.weight.original1.copy_(head.last_layer.weight)
    x = torch.randn(3, 6)
    assert torch.allclose(head(x), reference(F.normalize(head.mlp(x), dim=1)), atol=1e-6)
    assert head(x).abs().max() <= 1 + 1e-6


def test_dino_scores_are_exact_cosines_in_full_precision_under_autocast():
    head, z = DINOHead(6, 5, hidden_dim=8, bottleneck_dim=4), F.normalize(torch.randn(7, 4), dim=1)
    weight = head.last_layer.weight
    cosines = F.cosine_similarity(z[:, None].double(), weight.double(), dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, whole = head.scores(z), head(torch.randn(3, 6))
    assert scores.dtype == whole.dtype == torch.float32
    torch.testing.assert_close(scores.double(), cosines, rtol=0, atol=1e-6)
    scores.sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.any()


def test_momentum_teacher_follows_the_closed_form_over_parameters_only():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    teacher = MomentumTeacher(student)
    start = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.fill_(2.0)
        student[1].running_mean.fill_(7.0)
    for _ in range(4):
        teacher.update(student, 0.9)
    assert torch.allclose(teacher.module[0].weight, 0.9**4 * start + (1 - 0.9**4) * 2.0)
    assert (teacher.module[1].running_mean == 0).all()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(4, 3).double()).requires_grad


def test_momentum_teacher_drops_nothing_and_takes_batch_statistics_in_train_mode_only():
    block = Block(4, num_heads=2, proj_drop=0.5, attn_drop=0.5, drop_path=0.5)
    student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Unflatten(1, (2, 4)), block)
    method = nn.ModuleDict({"student": student, "teacher": MomentumTeacher(student)})
    teacher, x = method["teacher"], torch.randn(16, 8)
    for mode in (True, False, True):
        method.train(mode)
        before = teacher.module[1].running_mean.clone()
        first, second = teacher(x), teacher(x)
        assert torch.equal(first, second), "dropout or drop-path is active"
        assert torch.equal(teacher.module[1].running_mean, before) != mode
    assert not torch.equal(student(x), student(x)), "the student keeps both"
    normalised = F.batch_norm(teacher.module[0](x), None, None, training=True)
    torch.testing.assert_close(first, teacher.module[4](normalised.view(16, 2, 4)))


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 4), (7, 1), (17,), (8,), (16, 3)])
def test_queue_keeps_the_last_rows_in_order_whatever_the_batches(sizes):
    queue = FeatureQueue(8, 2)
    first = queue.rows.clone()
    rows = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    pushed = 0
    for size in sizes:
        queue.push(rows[pushed : pushed + size])
        pushed += size
    assert int(queue.pointer) == pushed % 8
    for i in range(max(pushed - 8, 0), pushed):
        assert torch.equal(queue.rows[i % 8], rows[i])
    for i in range(pushed, 8):
        assert torch.equal(queue.rows[i], first[i])


def test_queue_starts_with_unit_rows_of_its_seed_and_is_saved():
    queue = FeatureQueue(16, 4, seed=1)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(16))
    assert torch.equal(queue.rows, FeatureQueue(16, 4, seed=1).rows)
    assert not torch.equal(queue.rows, FeatureQueue(16, 4, seed=2).rows)
    queue.push(torch.ones(3, 4))
    other = FeatureQueue(16, 4, seed=9)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.rows, queue.rows) and int(other.pointer) == 3
    with pytest.raises(ShapeError, match="takes \\(B, 4\\)"):
        queue.push(torch.ones(3, 5))
