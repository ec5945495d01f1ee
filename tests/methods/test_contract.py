"""What every method of the catalogue must keep. Driven by the registry: a new method needs no line here."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch

from attar.data.images import ImageSpec
from attar.methods import CATALOGUE
from attar.methods.base import Recipe, load, resolve_recipe
from attar.models.momentum import MomentumTeacher
from attar.models.precision import mixed_precision
from attar.models.queue import FeatureQueue
from tests.methods.half_batches import CASES

METHODS = list(CATALOGUE)
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(bench, name):
    bench = bench(name)
    bench.train(range(1))
    bench.backward(1)
    for parameter_name, parameter in bench.method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any() or parameter.ndim <= 1, f"{parameter_name} has a gradient of zero"
        else:
            assert parameter.grad is None, parameter_name
    for module in bench.method.modules():
        if isinstance(module, MomentumTeacher):
            assert not any(p.requires_grad for p in module.parameters())
    if bench.setup.teacher is not None:
        frozen = list(bench.setup.teacher.network.parameters())
        assert frozen and not any(p.grad is not None or p.requires_grad for p in frozen)


@every_method
def test_after_step_touches_only_state_that_no_gradient_trains(bench, name):
    bench = bench(name)
    bench.train(range(1))
    bench.backward(1)
    before = {k: v.clone() for k, v in bench.method.state_dict().items()}
    bench.method.after_step(bench.progress(1))
    trained = {k for k, p in bench.method.named_parameters() if p.requires_grad}
    backbone = {f"backbone.{k}" for k in bench.method.backbone.state_dict()}
    changed = {k for k, v in bench.method.state_dict().items() if not torch.equal(v, before[k])}
    assert not changed & (trained | backbone)
    teachers = [k for k, m in bench.method.named_modules() if isinstance(m, MomentumTeacher)]
    for teacher in teachers:
        assert any(k.startswith(teacher) for k in changed), "the momentum teacher did not move"


@pytest.mark.parametrize("name", [name for name in METHODS if "MomentumTeacher" in vars(load(name))])
def test_what_is_learnt_from_comes_from_the_momentum_teacher(bench, name):
    """At first teacher and student are equal, and one could stand in the other's place: so the teacher is moved."""

    def learnt_from(recipe: str, noise: float) -> list[torch.Tensor]:
        """The first loss, and the keys that later ones will be compared with."""
        built = bench(name, recipe)
        teachers = [m for m in built.method.modules() if isinstance(m, MomentumTeacher)]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (p for teacher in teachers for p in teacher.parameters()):
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        loss = built.backward(0).loss.detach()
        built.method.after_step(built.progress(0))
        return [loss, *(m.rows for m in built.method.modules() if isinstance(m, FeatureQueue))] if teachers else []

    found = {recipe: (learnt_from(recipe, 0.0), learnt_from(recipe, 0.1)) for recipe in load(name).RECIPES}
    assert any(plain for plain, _ in found.values()), "none of the recipes makes a teacher"
    for recipe, (plain, moved) in found.items():
        equal = [torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, moved)]
        assert not plain or not all(equal), f"the teacher of {recipe!r} can be anything"


@every_method
def test_the_same_seed_gives_the_same_losses(bench, name):
    assert bench(name).train(range(2)) == bench(name).train(range(2))


@pytest.mark.parametrize("case", CASES)
def test_saving_and_loading_continues_bit_for_bit(bench, case):
    name, recipe, settings = CASES[case]
    straight = bench(name, recipe, **settings)
    straight.train(range(2))
    state = {k: v.clone() for k, v in straight.method.state_dict().items()}
    optimiser = copy.deepcopy(straight.optimiser.state_dict())
    expected = straight.train(range(2, 4))

    resumed = bench(name, recipe, **settings)
    resumed.method.load_state_dict(state)
    resumed.optimiser.load_state_dict(optimiser)
    assert resumed.train(range(2, 4)) == expected
    final = straight.method.state_dict()
    for k, v in resumed.method.state_dict().items():
        assert torch.equal(v, final[k]), k


@pytest.mark.parametrize("name", [name for name in METHODS if load(name).METHOD.needs_teacher])
def test_a_frozen_teacher_is_no_part_of_the_method(bench, name):
    bench = bench(name)
    bench.train(range(1))
    teacher = {id(t) for t in bench.setup.teacher.network.state_dict(keep_vars=True).values()}
    assert teacher and not teacher & {id(t) for t in bench.method.state_dict(keep_vars=True).values()}


@every_method
def test_the_backbone_alone_gives_the_same_features_and_holds_no_head(bench, backbone, name):
    bench = bench(name)
    bench.train(range(2))
    alone = backbone(seed=3, name=bench.method.backbone.spec.name)
    assert list(alone.state_dict()) == list(bench.method.backbone.state_dict())
    alone.load_state_dict(bench.method.backbone.state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(alone.eval()(images), bench.method.backbone.eval()(images))


@every_method
def test_a_few_steps_keep_a_handful_of_images_apart(bench, name):
    """A smoke test against collapse, no proof of the loss."""
    bench = bench(name)
    bench.total_steps = 8
    bench.train(range(8))
    from attar.views.augmentation import CentreView

    view = CentreView(bench.setup.image)(bench.images.batch(np.arange(8)))
    with torch.no_grad():
        features = torch.nn.functional.normalize(bench.method.backbone.eval()(view), dim=1)
    distance = torch.cdist(features, features) + 9 * torch.eye(8)
    assert distance.min() > 1e-3


@every_method
def test_outputs_name_their_terms_and_carry_detached_embeddings(bench, name):
    bench = bench(name)
    output = bench.backward(0)
    assert output.loss.ndim == 0 and output.loss.dtype == torch.float32
    assert output.metrics
    for key, value in output.metrics.items():
        assert not (isinstance(value, torch.Tensor) and (value.requires_grad or value.ndim)), key
        assert np.isfinite(float(value)), key
    assert output.embeddings is not None and output.embeddings.ndim == 2 and not output.embeddings.requires_grad
    if output.positives is not None:
        assert output.positives.shape == output.embeddings.shape and not output.positives.requires_grad


@every_method
def test_autocast_changes_the_loss_only_within_bfloat16(bench, name):
    bench = bench(name)
    method = copy.deepcopy(bench.method)
    exact = method(bench.batch(0), bench.progress(0)).loss
    with mixed_precision(torch.device("cpu"), enabled=True):
        half = bench.method(bench.batch(0), bench.progress(0)).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


@every_method
def test_a_copy_shares_the_images_and_leaves_the_method_alone(bench, name):
    bench = bench(name)
    before = {k: v.clone() for k, v in bench.method.state_dict().items()}
    bench.images.store.__class__.__deepcopy__ = lambda self, memo: pytest.fail("the images were copied")
    try:
        trial = dataclasses.replace(bench, method=copy.deepcopy(bench.method))
    finally:
        del bench.images.store.__class__.__deepcopy__
    trial.train(range(1))
    for k, v in bench.method.state_dict().items():
        assert torch.equal(v, before[k]), k


@pytest.mark.parametrize("name, recipe", [(name, recipe) for name in METHODS for recipe in load(name).RECIPES])
def test_every_recipe_is_typed_frozen_and_makes_views(name, recipe):
    module = load(name)
    resolved = resolve_recipe(name, recipe)
    assert resolved == module.RECIPES[recipe] and isinstance(resolved, Recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.epochs = 1
    assert 0 < resolved.peak_lr < 10 and resolved.epochs > 0
    assert all(0 < drop < 1 for drop in resolved.lr_drops) and bool(resolved.lr_drops) == (resolved.schedule == "step")
    for channels, size in ((3, 224), (1, 64), (3, 32)):
        image = ImageSpec(size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
        patches = [max(size // 14, 4)] if module.METHOD.needs_tokens else []
        assert callable(module.views(resolved, image, *patches))


@every_method
def test_the_docstring_names_the_paper(name):
    doc = load(name).__doc__
    assert re.split("arXiv:|DOI ", CATALOGUE[name].paper)[1].split(";")[0] in doc
    assert "State" in doc or "no state" in doc
