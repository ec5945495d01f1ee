"""What must hold for every distiller with labels, whatever it compares; each of these has gone wrong somewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attar.losses import attention_transfer, error_rank_gate, kl_divergence, relational_distance
from attar.methods import CATALOGUE
from attar.methods.base import load
from attar.models.momentum import MomentumTeacher

DISTILLERS = [n for n in CATALOGUE if load(n).METHOD.needs_teacher and load(n).METHOD.needs_labels]
every_distiller = pytest.mark.parametrize("name", DISTILLERS)


def doubled(batch):
    """Every tensor of a batch twice; blocks of transformed views stay blocks."""
    size, values = len(batch.index), {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            value = torch.cat([torch.cat([block, block]) for block in value.split(size)])
        values[field.name] = value
    return type(batch)(**values)


def test_there_are_some():
    assert {"kd", "sskd", "fitnet", "attention_transfer", "relational_kd", "crd"} <= set(DISTILLERS)


@every_distiller
def test_a_step_leaves_the_teacher_as_it_is(bench, name):
    bench = bench(name)
    teacher = bench.setup.teacher
    networks = [teacher.network, *([teacher.projector] if teacher.projector is not None else [])]
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    bench.method.train()
    bench.train(range(3))
    for network, was in zip(networks, before):
        assert not network.training and not any(p.grad is not None for p in network.parameters())
        assert all(torch.equal(v, was[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", [n for n in DISTILLERS if n not in ("sskd", "sskd_teacher")])
def test_duplicating_the_batch_leaves_every_term_unchanged(bench, name):
    """Sums over the batch would double; SSKD compares with other images, and a copy is one more to tell apart."""
    bench = bench(name)
    bench.method.eval()
    bench.method.step(bench.batch(0), bench.progress(0))  # what is estimated once
    once = bench.method.step(bench.batch(0), bench.progress(0))
    twice = bench.method.step(doubled(bench.batch(0)), bench.progress(0))
    torch.testing.assert_close(once.loss, twice.loss, rtol=1e-4, atol=1e-5)
    for key, value in once.metrics.items():
        torch.testing.assert_close(twice.metrics[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@every_distiller
def test_batches_of_another_size_between_two_steps_change_nothing(bench, name):
    """Maps that a hook left behind would be those of the other batch."""
    first, second = bench(name), bench(name)
    for built in (first, second):
        built.method.eval()
    with torch.no_grad():
        second.method.backbone(torch.randn(3, 3, 32, 32))
        second.setup.teacher.backbone.stages(torch.randn(5, 3, 32, 32))
        second.setup.teacher(torch.randn(2, 3, 32, 32), torch.arange(2), second.setup.image)
    assert torch.equal(*(b.method.step(b.batch(0), b.progress(0)).loss for b in (first, second)))


@every_distiller
def test_what_the_network_keeps_holds_no_teacher_and_no_moving_copy(bench, name):
    method = bench(name).method
    assert not any(isinstance(m, MomentumTeacher) for m in method.modules())
    taught = sum(p.numel() for p in bench(name).setup.teacher.backbone.parameters())
    held = sum(p.numel() for n, p in method.named_parameters() if not n.startswith("backbone."))
    assert held < taught, "adapters and heads are small; a whole teacher is not"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_full_precision_under_autocast(dtype):
    s, t = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0)) * 8
    maps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(8)
    terms = {
        "kl": lambda: kl_divergence(s, t, temperature=0.5),
        "relations": lambda: relational_distance(s, t),
        "attention": lambda: attention_transfer(*maps),
        "gate": lambda: error_rank_gate(t, truth, keep_wrong=0.5),
    }
    for name, term in terms.items():
        exact = term()
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(term(), exact), name


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_weight_of_soft_targets_stays_when_the_temperature_changes(temperature):
    """With T^2 the gradient of logits that hardly differ is p - q over N, whatever T is; without, it falls by T^2."""
    t = 0.01 * torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = (0.01 * torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    kl_divergence(s, t, temperature=temperature).backward()
    centred = lambda x: x - x.mean(dim=1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(s.grad, (centred(s) - centred(t)).detach() / (10 * 6), rtol=0.1, atol=1e-5)
