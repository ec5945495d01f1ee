"""A step of the training loop itself: the order of what happens in it, its precision, recomputed activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attar.data.images import CanvasBatch, ImageSpec
from attar.methods.base import Progress
from attar.train.distributed import World
from attar.train.loop import Job, LoopOptions, update
from tests.computed_types import ComputedTypes

IMAGE = ImageSpec(size=32, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FIRST = Progress(0, 8, 0, 4)


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


@pytest.mark.parametrize("name", ["byol", "moco", "dino"])
def test_the_teacher_follows_the_weights_that_the_step_has_made(bench, name):
    built = bench(name, momentum=0.9, batch_size=8)
    job = job_of(built)
    student, teacher = built.method.backbone, built.method.teacher.module[0]
    old = [p.clone() for p in teacher.parameters()]
    update(job, images_of(built), FIRST)
    moved = 0
    for before, now, followed in zip(old, teacher.parameters(), student.parameters()):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * followed)
        moved += not torch.equal(now, before)
    assert moved > len(old) / 2, "the student's step was seen"


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
