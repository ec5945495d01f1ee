"""Regression: the squared distance of unit vectors, the projector's widths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.methods.base import Setup
from attar.methods.distill.regression import METHOD, RECIPES


def test_the_numbers_of_the_published_code():
    r = RECIPES["simreg"]
    assert (r.epochs, r.batch_size, r.peak_lr, r.projector_layers, r.crop_scale) == (130, 256, 0.05, 4, (0.2, 1.0))


def test_step_is_the_squared_distance_of_unit_vectors(bench):
    bench = bench("regression")
    method, batch = bench.method.eval(), bench.batch(0)
    output = method.step(batch, bench.progress(0))
    s = F.normalize(method.projector(method.backbone(batch.images)), dim=1)
    t = F.normalize(bench.setup.teacher(batch.images, batch.index, bench.setup.image), dim=1)
    torch.testing.assert_close(output.loss, ((s - t) ** 2).sum(1).mean())
    torch.testing.assert_close(output.metrics["cosine"], (s * t).sum(1).mean().detach())


@pytest.mark.parametrize("recipe, dims", [("simreg", [32, 64, 32, 64, 32]), ("linear", [32, 32])])
def test_the_projector_has_the_papers_widths(bench, recipe, dims):
    assert bench("regression", recipe).method.projector.spec["dims"] == dims


def test_without_a_teacher_it_says_so(bench, backbone):
    built = bench("regression")
    with pytest.raises(RecipeError, match="regression: it distils and needs a teacher"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
