"""A step of the training loop itself: the order of what happens in it, its precision, recomputed activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.data.images import CanvasBatch, ImageSpec
from attar.methods.base import Progress
from attar.train.distributed import World
from attar.train.loop import Job, LoopOptions, update
from tests.computed_types import ComputedTypes

IMAGE = ImageSpec(size=32, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def at(step: int) -> Progress:
    return Progress(step, 8, step // 2, 4)


FIRST = at(0)


def job_of(built: Any, precision: str = "fp32", rank: int = 0) -> Job:
    options = LoopOptions(precision=precision, show_progress=False, tensorboard=False)
    world = World(rank, 1, torch.device("cpu"))
    job = Job(built.method, built.make_views, built.images, IMAGE, world, options)
    job.prepare()
    for group in job.optimiser.param_groups:
        group["lr"] = 0.1
    return job


def images_of(built: Any) -> list[CanvasBatch]:
    return [built.images.batch(np.arange(8))]  # halves are even: torch 2.15 crashes on odd batches of 8 channels


MOMENTA = [("byol", 0, 0.9), ("moco", 0, 0.9), ("dino", 0, 0.9)]
HALF_WAY = [("byol", 4, 0.95), ("moco", 4, 0.9), ("dino", 4, 0.95), ("ibot", 4, 0.95), ("dinov2", 4, 0.95)]


@pytest.mark.parametrize("name, step, momentum", MOMENTA + HALF_WAY)  # moco's alone does not rise
def test_the_teacher_follows_the_weights_that_the_step_has_made(bench, name, step, momentum):
    built = bench(name, momentum=0.9, batch_size=8)
    job = job_of(built)
    student, teacher = built.method.backbone, built.method.teacher.module[0]
    old = [p.clone() for p in teacher.parameters()]
    update(job, images_of(built), at(step))
    moved = 0
    for before, now, followed in zip(old, teacher.parameters(), student.parameters()):
        torch.testing.assert_close(now, momentum * before + (1 - momentum) * followed)
        moved += not torch.equal(now, before)
    assert moved > len(old) / 2, "the student's step was seen"


@pytest.mark.parametrize("name", ["swav", "dino", "ibot", "dinov2"])
def test_prototypes_keep_their_first_values_until_they_may_learn(bench, name):
    field = "freeze_prototypes_fraction" if name == "swav" else "freeze_last_layer_fraction"
    built = bench(name, **{field: 0.25})  # two steps of eight
    job = job_of(built)
    endings = ("prototypes.weight", "last_layer.weight")
    prototypes = [p for n, p in built.method.named_parameters() if p.requires_grad and n.endswith(endings)]
    assert len(prototypes) == (2 if name == "dinov2" else 1)
    for step, learns in ((0, False), (1, False), (2, True)):
        before = [p.detach().clone() for p in prototypes]
        if name == "swav":  # its forward pass brings them to unit length, trained or not
            before = [F.normalize(p, dim=1) for p in before]
        update(job, images_of(built), at(step))
        assert all(torch.equal(p, old) is not learns for p, old in zip(prototypes, before, strict=True)), step


def applied_norms(job: Job) -> list[torch.Tensor]:
    """A list that an update fills: the norm of each gradient as the optimiser finds it."""
    norms: list[torch.Tensor] = []
    parameters = [p for group in job.optimiser.param_groups for p in group["params"]]
    job.optimiser.register_step_pre_hook(
        lambda *_: norms.extend(p.grad.norm() for p in parameters if p.grad is not None)
    )
    return norms


@pytest.mark.parametrize("per_parameter", [False, True])
def test_no_gradient_is_applied_that_is_longer_than_the_limit(bench, per_parameter):
    built = bench("simclr", clip_gradient=0.01, clip_per_parameter=per_parameter)
    job = job_of(built)
    norms = applied_norms(job)
    before = update(job, images_of(built), FIRST)["gradient_norm"]
    assert before > 0.1
    applied = torch.stack(norms).max() if per_parameter else torch.stack(norms).norm()
    assert applied.item() == pytest.approx(0.01, rel=1e-3)


def test_frozen_gradients_have_no_share_in_the_norm_that_is_clipped(bench):
    before = {}
    for fraction in (0.0, 0.25):
        built = bench("dinov2", clip_gradient=0.01, projector_hidden_dim=512, freeze_last_layer_fraction=fraction)
        job = job_of(built)
        norms = applied_norms(job)
        before[fraction] = update(job, images_of(built), FIRST)["gradient_norm"]
        assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3), "all of the limit is used"
    assert before[0.25] < 0.99 * before[0.0], before


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_process_that_measures_health_keeps_norms_of_gradients(bench, rank):
    built = bench("simclr")
    job = job_of(built, rank=rank)
    update(job, images_of(built), FIRST)
    assert ("gradient_spike" in job.health.measure()) == (rank == 0)


@pytest.mark.parametrize("name", ["mae", "i_jepa", "ibot"])
def test_in_bf16_linear_layers_compute_so_and_attention_in_float32(bench, name):
    built = bench(name)
    job = job_of(built, "bf16")
    with ComputedTypes() as seen:
        update(job, images_of(built), FIRST)
    assert seen.attention == {torch.float32} and torch.bfloat16 in seen.linear


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mae", "simmim", "i_jepa", "ibot", "dinov2"])
def test_recomputed_activations_change_memory_not_the_step(bench, name, precision):
    losses, gradients, kept = [], [], []
    for recomputes in (False, True):
        built = bench(name)
        if recomputes:
            built.method.backbone.checkpoint_activations()
        count = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses.append(update(job_of(built, precision), images_of(built), FIRST)["loss"])
        kept.append(count)
        gradients.append([p.grad for p in built.method.backbone.parameters() if p.grad is not None])
    rounding = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(losses[1], losses[0], **rounding)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, **rounding)
    assert kept[1] < 0.8 * kept[0], kept
