"""Batch norm over two processes equals one process on the joined batch: value, gradients, statistics."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from attar.models.batch_norm import in_groups, num_groups, synchronise_batch_norm
from tests.distributed_helper import run_two

CASES = {
    "1d": (lambda: nn.BatchNorm1d(3), (8, 3)),
    "2d": (lambda: nn.BatchNorm2d(3, momentum=0.3), (8, 3, 4, 4)),
    "timm": (lambda: BatchNormAct2d(3), (8, 3, 4, 4)),
    "no affine": (lambda: nn.BatchNorm1d(3, affine=False), (8, 3)),
}


def one_step(norm: nn.Module, x: torch.Tensor, weights: torch.Tensor, share: int):
    """Output and input gradient of a loss that is the mean over processes of each process' own mean."""
    x = x.clone().requires_grad_(True)
    y = norm(x)
    (y * weights).flatten(1).sum(1).mean().mul(share).backward()
    return y.detach(), x.grad


def compare(rank: int) -> None:
    for name, (build, shape) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        x, weights = (torch.randn(shape, generator=generator) * 2 + 1 for _ in range(2))
        alone, both = build(), synchronise_batch_norm(build())
        assert alone.state_dict().keys() == both.state_dict().keys()
        y, gradient = one_step(alone, x, weights, share=1)
        half = slice(rank * 4, rank * 4 + 4)
        found, found_gradient = one_step(both, x[half], weights[half], share=1)
        assert torch.allclose(found, y[half], atol=1e-5), name
        # the loss of one process is the mean of the two processes' losses: gradients are twice as large here
        assert torch.allclose(found_gradient / 2, gradient[half], atol=1e-5), name
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.allclose(getattr(both, key), getattr(alone, key), atol=1e-5), (name, key)
        if alone.weight is not None:
            for own, wanted in zip(both.parameters(), alone.parameters()):
                total = own.grad.clone()
                torch.distributed.all_reduce(total)
                assert torch.allclose(total / 2, wanted.grad, atol=1e-4), name
        alone.eval()
        both.eval()
        assert torch.allclose(both(x[half]), alone(x[half]), atol=1e-5), name
        both.train()
        assert both(x[half].bfloat16()).dtype == torch.bfloat16


def compare_groups(rank: int) -> None:
    """12 rows in groups of 4: one run of consecutive rows, and all interleaved groups, spread over both processes."""
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(12, 2, 3, 3, generator=generator) for _ in range(2))
    half = slice(rank * 6, rank * 6 + 6)
    groups = {False: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], True: [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]}
    for interleaved, rows in groups.items():
        alone, both = nn.BatchNorm2d(2, momentum=0.3), synchronise_batch_norm(nn.BatchNorm2d(2, momentum=0.3))
        order = torch.tensor(rows).flatten().argsort()
        group_by_group = lambda x: torch.cat([alone(x[group]) for group in rows])[order]  # noqa: B023, E731
        y, gradient = one_step(group_by_group, x, weights, share=1)
        over_both = lambda x: in_groups(both, x, 4, interleaved=interleaved)  # noqa: B023, E731
        found, found_gradient = one_step(over_both, x[half], weights[half], share=1)
        assert torch.allclose(found, y[half], atol=1e-5), interleaved
        assert torch.allclose(found_gradient / 2, gradient[half], atol=1e-5), interleaved
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.allclose(getattr(both, key), getattr(alone, key), atol=1e-5), (interleaved, key)
        joined = one_step(both, x[half], weights[half], share=1)[0]
        assert (joined - y[half]).abs().max() > 0.01, "outside of in_groups the batch is whole again"


def check_both(rank: int) -> None:
    compare(rank)
    compare_groups(rank)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch_and_in_groups():
    run_two(check_both)


def test_converting_twice_changes_nothing():
    norm = synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(2)))
    kind = type(norm[0])
    assert type(synchronise_batch_norm(norm)[0]) is kind and isinstance(norm[0], nn.BatchNorm1d)


def test_groups_keep_the_order_of_rows_and_separate_queries_from_keys():
    images = torch.arange(10.0).view(10, 1)
    seen = []
    network = nn.Identity()
    network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].flatten().tolist()))
    for interleaved in (False, True):
        assert torch.equal(in_groups(network, images, 3, interleaved=interleaved), images)
    assert seen == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_groups_of_a_network_with_several_outputs():
    images = torch.arange(7.0).view(7, 1)
    network = lambda x: (x, 2 * x.expand(-1, 3))  # noqa: E731
    one, two = in_groups(network, images, 3, interleaved=True)
    assert torch.equal(one, images) and torch.equal(two, 2 * images.expand(7, 3))


@pytest.mark.parametrize("images, size, expected", [(256, 32, 8), (64, 32, 2), (32, 32, 2), (5, 32, 2), (3, 2, 1)])
def test_there_are_two_groups_at_least_unless_one_would_hold_a_single_image(images, size, expected):
    assert num_groups(images, size) == expected
