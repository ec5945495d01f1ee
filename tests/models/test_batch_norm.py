"""Batch norm over two processes equals one process on the joined batch: value, gradients, statistics."""

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from attar.models.batch_norm import synchronise_batch_norm
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


def test_two_processes_equal_one():
    run_two(compare)


def test_converting_twice_changes_nothing():
    norm = synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(2)))
    kind = type(norm[0])
    assert type(synchronise_batch_norm(norm)[0]) is kind and isinstance(norm[0], nn.BatchNorm1d)
