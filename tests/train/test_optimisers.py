"""Which parameter is decayed, adapted, scaled, frozen and clipped."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.methods.base import Method, Progress, Recipe
from attar.train.optimisers import build_optimiser, clip_gradients, drop_frozen_gradients, set_rates

RECIPE = Recipe(epochs=1, batch_size=256, optimiser="sgd", base_lr=0.1, weight_decay=0.5, schedule="constant")


class Two(Method):
    def __init__(self, recipe, groups=None):
        super().__init__(recipe)
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)
        self.groups = groups

    def parameter_groups(self):
        return None if self.groups is None else self.groups(self)


def progress(step=0, total=10):
    return Progress(step=step, total_steps=total, epoch=0, total_epochs=1)


def test_biases_are_not_decayed_unless_the_recipe_says_so():
    method = Two(RECIPE)
    optimiser = build_optimiser(method, RECIPE)
    set_rates(optimiser, RECIPE, progress())
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert decay[id(method.a.weight)] == 0.5 and decay[id(method.a.bias)] == 0.0
    everything = build_optimiser(method, replace(RECIPE, decay_bias_and_norm=True))
    assert len(everything.param_groups) == 1


def test_lars_first_step_has_the_layers_own_length_and_ignores_the_gradients_scale():
    recipe = replace(RECIPE, optimiser="lars", weight_decay=0.0, lr=2.0)
    for scale in (1.0, 1000.0):
        method = Two(recipe)
        optimiser = build_optimiser(method, recipe)
        set_rates(optimiser, recipe, progress())
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        for p in method.parameters():
            p.grad = torch.randn_like(p) * scale
        gradient = method.a.bias.grad.clone()
        optimiser.step()
        moved = (method.a.weight - before["a.weight"]).norm()
        assert moved.item() == pytest.approx(2.0 * 0.001 * before["a.weight"].norm().item(), rel=1e-4)
        # one-dimensional parameters take the plain SGD step
        assert torch.allclose(method.a.bias, before["a.bias"] - 2.0 * gradient, rtol=1e-4)


def test_a_methods_own_groups_scale_and_freeze():
    def groups(m):
        return [
            {"params": list(m.a.named_parameters()), "lr_scale": 10.0},
            {"params": list(m.b.parameters()), "frozen_fraction": 0.5},
        ]

    method = Two(RECIPE, groups)
    optimiser = build_optimiser(method, RECIPE)
    set_rates(optimiser, RECIPE, progress())
    rate = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert rate[id(method.a.weight)] == pytest.approx(1.0) and rate[id(method.b.weight)] == pytest.approx(0.1)
    for p in method.parameters():
        p.grad = torch.ones_like(p)
    drop_frozen_gradients(optimiser, progress(step=4))
    assert method.b.weight.grad is None and method.a.weight.grad is not None
    method.b.weight.grad = torch.ones_like(method.b.weight)
    drop_frozen_gradients(optimiser, progress(step=5))
    assert method.b.weight.grad is not None


def test_a_group_may_keep_the_peak_rate_through_warm_up_and_decay():
    recipe = replace(RECIPE, schedule="cosine", warmup_fraction=0.2)

    def groups(m):
        return [{"params": list(m.a.parameters())}, {"params": list(m.b.parameters()), "constant_lr": True}]

    method = Two(recipe, groups)
    optimiser = build_optimiser(method, recipe)
    scheduled = []
    for step in (0, 2, 9):
        set_rates(optimiser, recipe, progress(step))
        rate = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
        assert rate[id(method.b.weight)] == rate[id(method.b.bias)] == pytest.approx(0.1)
        scheduled.append(rate[id(method.a.weight)])
    assert scheduled[0] == pytest.approx(0.05) and scheduled[1] == pytest.approx(0.1) and scheduled[2] < 0.01


def test_groups_that_miss_or_repeat_a_parameter_are_refused():
    with pytest.raises(RecipeError, match=r"leaves out b\.weight"):
        build_optimiser(Two(RECIPE, lambda m: [{"params": list(m.a.parameters())}]), RECIPE)
    with pytest.raises(RecipeError, match="twice"):
        build_optimiser(Two(RECIPE, lambda m: [{"params": list(m.parameters()) + [m.a.weight]}]), RECIPE)


@pytest.mark.parametrize("per_parameter", [False, True])
def test_clipping_is_global_or_per_tensor(per_parameter):
    recipe = replace(RECIPE, clip_gradient=1.0, clip_per_parameter=per_parameter)
    method = Two(recipe)
    for p in method.parameters():
        p.grad = torch.full_like(p, 10.0)
    whole = torch.cat([p.grad.flatten() for p in method.parameters()]).norm()
    assert clip_gradients(build_optimiser(method, recipe), recipe).item() == pytest.approx(whole.item())  # before it
    norms = torch.stack([p.grad.norm() for p in method.parameters()])
    if per_parameter:
        assert torch.allclose(norms, torch.ones(4), atol=1e-4)
    else:
        assert norms.norm().item() == pytest.approx(1.0, abs=1e-4)
    unclipped = replace(RECIPE, clip_gradient=None)
    assert clip_gradients(build_optimiser(method, unclipped), unclipped).item() == pytest.approx(norms.norm().item())
