"""Foundation: the mixed view, both terms by their formulas, maps of other grids, several teachers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import CheckpointError, RecipeError
from attar.losses import similarity_distillation, token_similarity
from attar.methods.base import Setup
from attar.methods.distill.foundation import METHOD, RECIPES, following
from attar.models.backbones import build_backbone, patch_map
from attar.models.teachers import FrozenTeacher, JointTeacher


def on(bench, teacher, name="foundation", backbone=None, **settings):
    """The bench's method rebuilt with another teacher."""
    built = bench(name, **settings)
    setup = Setup(image=built.setup.image, images=built.images, teacher=teacher)
    built.method = METHOD(built.method.recipe, backbone or built.method.backbone, setup)
    built.setup = setup
    return built


def test_the_numbers_of_the_library():
    r = RECIPES["v3"]
    assert (r.temperature, r.queue_length, r.token_weight, r.mixup) == (0.07, 8192, 1, True)
    assert r.peak_lr == pytest.approx(5e-4) and (r.weight_decay, r.clip_gradient) == (1e-6, 1)
    assert RECIPES["transformer"].weight_decay == 0.04


def test_both_see_each_image_mixed_with_the_next(bench):
    bench = bench("foundation")
    seen = []
    real = bench.setup.teacher.features_and_map
    bench.setup.teacher.features_and_map = lambda images, image: (seen.append(images), real(images, image))[1]
    batch = bench.batch(0)
    assert ((batch.share >= 0) & (batch.share < 1)).all() and len(batch.share.unique()) == len(batch.share)
    hook = bench.method.backbone.network.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    real_student = bench.method.backbone.features_and_map
    bench.method.backbone.features_and_map = lambda images: (seen.append(images), real_student(images))[1]
    bench.method.step(batch, bench.progress(0))
    hook.remove()
    for images in seen:
        for i, share in enumerate(batch.share):
            other = batch.images[(i + 1) % len(batch.images)]
            torch.testing.assert_close(images[i], share * batch.images[i] + (1 - share) * other)
    assert len(seen) == 2
    assert torch.equal(following(batch.images), batch.images.roll(-1, 0))


@pytest.mark.parametrize("mixup", [True, False])
def test_step_is_the_sum_of_both_terms(bench, mixup):
    bench = bench("foundation", mixup=mixup, token_weight=0.5)
    method, batch = bench.method.eval(), bench.batch(0)
    queue = method.queue.rows.clone()
    output = method.step(batch, bench.progress(0))
    images = (
        torch.lerp(batch.images.roll(-1, 0), batch.images, batch.share.view(-1, 1, 1, 1)) if mixup else batch.images
    )
    t, m = bench.setup.teacher.features_and_map(images, bench.setup.image)
    whole = similarity_distillation(
        output.embeddings,
        t,
        torch.cat([t, queue]),
        student_temperature=0.07,
        teacher_temperature=0.07,
        include_self=False,
    )
    s_map = method.backbone.features_and_map(images)[1]
    projected = method.token_projector(s_map.permute(0, 2, 3, 1)).flatten(1, 2)
    places = token_similarity(projected, m.flatten(2).transpose(1, 2), temperature=0.07)
    torch.testing.assert_close(output.loss, whole + 0.5 * places)
    assert 1 / (len(t) + len(queue)) < output.metrics["teacher_p_self"] <= 1
    assert 0 < output.metrics["teacher_entropy"] < math.log(len(t) + len(queue))
    method.after_step(bench.progress(0))
    changed = (method.queue.rows != queue).any(dim=1)
    torch.testing.assert_close(method.queue.rows[changed], F.normalize(t, dim=1))


@pytest.mark.parametrize("name", ["vit_micro_p8", "resnet18", "vgg8_small"])
def test_maps_of_another_grid_and_kind_fit(bench, name):
    """Tokens without the class token; grids of 4 x 4, 1 x 1 and 4 x 4 against the student's 8 x 8."""
    teacher = FrozenTeacher(build_backbone(name, image_size=32), bench("foundation").setup.image)
    built = on(bench, teacher)
    output = built.method.step(built.batch(0), built.progress(0))
    output.loss.backward()
    assert output.loss.isfinite() and float(output.metrics["token_similarity"]) >= 0
    grid = patch_map(teacher.backbone, teacher.features_and_map(torch.randn(2, 3, 32, 32), teacher.image)[1])
    assert grid.ndim == 4 and grid.shape[2] == grid.shape[3] == (1 if name == "resnet18" else 4)


def test_a_student_of_tokens_fits_too(bench):
    student = build_backbone("vit_micro_p8", image_size=32)
    built = on(bench, bench("foundation").setup.teacher, backbone=student)
    built.method.step(built.batch(0), built.progress(0)).loss.backward()
    assert built.method.token_projector.weight.grad.any()


def test_the_patch_map_keeps_places():
    """Token n of a vision transformer is row n // side, column n % side; the class token is none of them."""
    backbone = build_backbone("vit_micro_p8", image_size=32)
    tokens = torch.arange(17.0).view(1, 17, 1).expand(2, 17, 3)
    assert patch_map(backbone, tokens)[0, 0].tolist() == (torch.arange(16.0) + 1).view(4, 4).tolist()


def test_several_teachers_are_one_whose_cosines_are_their_mean(bench):
    built = bench("foundation")
    image = built.setup.image
    one, two = (FrozenTeacher(build_backbone(n, image_size=32), image, digest=n) for n in ("resnet8x0.5", "resnet8"))
    joint = JointTeacher([one, two])
    images, index = torch.randn(5, 3, 32, 32), torch.arange(5)
    answers = joint(images, index, image)
    cosines = [F.normalize(t(images, index, image), dim=1) for t in (one, two)]
    torch.testing.assert_close(answers @ answers.T, sum(c @ c.T for c in cosines) / 2)
    assert answers.shape == (5, joint.num_features_out) == (5, 32 + 64)
    features, joined = joint.features_and_map(images, image)
    torch.testing.assert_close(features, answers)
    assert joined.shape == (5, 96, 8, 8)
    assert joint.digest != JointTeacher([two, one]).digest
    both = on(bench, joint)
    both.method.step(both.batch(0), both.progress(0)).loss.backward()


def test_refusals(bench, backbone):
    built = bench("foundation")
    recipe, image = built.method.recipe, built.setup.image
    with pytest.raises(RecipeError, match="foundation: it distils and needs a teacher"):
        METHOD(recipe, backbone(), Setup(image=image, images=built.images))
    head = torch.nn.Linear(32, 5)
    head.num_features_out = 5
    with pytest.raises(RecipeError, match="set teacher_output=features, or token_weight=0"):
        on(bench, FrozenTeacher(backbone(), image, head))
    assert on(bench, FrozenTeacher(backbone(), image, head), token_weight=0.0).method.token_projector is None


def test_a_run_with_several_teachers(tmp_path):
    images = (torch.rand(24, 32, 32, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    common = dict(epochs=1, batch_size=8, device="cpu", progress=False, backbone="resnet8x0.5")
    for seed in range(2):
        attar.pretrain(images, out=tmp_path / f"t{seed}", method="simclr", seed=seed, **common)
    names = [tmp_path / "t0", tmp_path / "t1"]
    common |= dict(method="foundation", settings={"queue_length": 16})
    run = attar.distill(images, teacher=names, out=tmp_path / "list", **common)
    same = attar.distill(images, teacher=",".join(map(str, names)), out=tmp_path / "text", **common)
    assert run.recipe["teacher"] == same.recipe["teacher"] and run.recipe["teacher"]["name"].count(",") == 1
    one, two = (attar.load(tmp_path / name).backbone.state_dict() for name in ("list", "text"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(CheckpointError, match="nowhere.* does not exist"):
        attar.distill(images, teacher=[names[0], tmp_path / "nowhere"], out=tmp_path / "x", **common)
