"""Details of the papers that training goes on without: layers of heads, what is decayed, the teacher's schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attar.train.optimisers import build_optimiser, set_rates

# Linear without a bias: "Linear"; with: "Linear+b". Batch norm with scale and shift: "BN"; without a shift: "BN-b".
HEADS = {
    ("byol", "small", "projector"): "Linear+b BN ReLU Linear",
    ("byol", "photo", "predictor"): "Linear+b BN ReLU Linear",
    ("simclr", "small", "projector"): "Linear BN ReLU Linear BN-b",
    ("simclr", "v2", "projector"): "Linear BN ReLU Linear BN ReLU Linear BN-b",
    ("moco", "v1", "projector"): "Linear+b",
    ("moco", "v2", "projector"): "Linear+b ReLU Linear+b",
}


def kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return "Linear" if layer.bias is None else "Linear+b"
    if isinstance(layer, nn.BatchNorm1d):
        assert layer.weight.requires_grad
        return "BN" if layer.bias.requires_grad else "BN-b"
    return type(layer).__name__


@pytest.mark.parametrize("name, recipe, head", HEADS)
def test_heads_have_the_published_layers(bench, name, recipe, head):
    layers = getattr(bench(name, recipe).method, head)
    assert " ".join(kind(layer) for layer in layers) == HEADS[name, recipe, head]
    assert all(not layer.bias.any() for layer in layers if kind(layer) == "BN-b"), "no shift: a bias that stays 0"


@pytest.mark.parametrize("name, recipe", [("swav", "photo"), ("deep_cluster", "photo"), ("moco", "v2"), ("moco", "v1")])
def test_biases_and_norms_are_decayed_where_the_published_code_does(bench, name, recipe):
    built = bench(name, recipe)
    settings = built.method.recipe
    assert settings.weight_decay > 0
    optimiser = build_optimiser(built.method, settings)
    set_rates(optimiser, settings, built.progress(1))
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    small = {n: decay[id(p)] for n, p in built.method.named_parameters() if p.requires_grad and p.ndim <= 1}
    assert any("bn" in n for n in small) and any(n.startswith("projector") for n in small)
    assert set(small.values()) == {settings.weight_decay}
    if settings.optimiser == "lars":
        assert all(group["adapt"] for group in optimiser.param_groups)


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "byol", "moco_v3"])
def test_the_teacher_after_two_steps_is_the_mean_its_schedule_says(bench, name):
    """Of eight steps: m is 0.9 at the first, 1 - 0.1 (1 + cos(pi / 8)) / 2 at the second."""
    built = bench(name, momentum=0.9)
    followed = built.method.student if hasattr(built.method, "student") else built.method.encoder
    with torch.no_grad():
        for i, parameter in enumerate(followed.parameters()):  # far from the teacher
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    teacher = [p.double() for p in built.method.teacher.parameters()]
    for step, m in enumerate((0.9, 1 - 0.1 * (1 + math.cos(math.pi / 8)) / 2)):
        built.train(range(step, step + 1))
        teacher = [m * old + (1 - m) * new.detach().double() for old, new in zip(teacher, followed.parameters())]
    for expected, found in zip(teacher, built.method.teacher.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
