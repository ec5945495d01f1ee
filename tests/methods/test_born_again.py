"""Born-again networks: both terms by hand, CWTM, DKPP, and a teacher that is another network of the same kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import RecipeError
from attar.losses import confidence_weighted_cross_entropy
from attar.methods.base import resolve_recipe
from attar.methods.distill.born_again import BornAgain, with_permuted_rest
from attar.models.heads import MLP
from attar.models.teachers import FrozenTeacher
from attar.pipeline import run as run_pipeline
from tests.methods.conftest import IMAGE, make_images, tiny_backbone


def parts(bench):
    """Method, batch, the student's logits and the teacher's."""
    method = bench.method.eval()
    batch = bench.batch(0)
    taught = bench.setup.teacher(batch.images, batch.index, IMAGE)
    return method, batch, method.classifier(method.backbone(batch.images)), taught


def test_the_loss_is_cross_entropy_with_labels_and_teacher(bench):
    bench = bench("born_again", label_weight=0.7, teacher_weight=0.4)
    method, batch, logits, taught = parts(bench)
    soft = -(torch.softmax(taught, dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    loss = method.step(batch, bench.progress(0)).loss
    torch.testing.assert_close(loss, 0.7 * F.cross_entropy(logits, batch.labels) + 0.4 * soft)


def test_cwtm_weights_labels_and_does_not_imitate(bench):
    bench = bench("born_again", recipe="cwtm")
    method, batch, logits, taught = parts(bench)
    loss = method.step(batch, bench.progress(0)).loss
    torch.testing.assert_close(loss, confidence_weighted_cross_entropy(logits, batch.labels, taught))


def test_dkpp_keeps_the_largest_entry_and_shuffles_the_others(bench):
    probabilities = torch.softmax(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    order = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i)) for i in range(50)])
    permuted = with_permuted_rest(probabilities, order)
    largest = probabilities.argmax(dim=1)
    assert torch.equal(permuted.argmax(dim=1), largest)
    assert torch.equal(permuted.sort(dim=1).values, probabilities.sort(dim=1).values)
    for row, mixed, chosen, keep in zip(probabilities, permuted, order, largest):
        rest = [row[n] for n in range(6) if n != keep]
        assert [mixed[n] for n in range(6) if n != keep] == [rest[k] for k in chosen]
    assert torch.equal(with_permuted_rest(probabilities, torch.arange(5).expand(50, 5)), probabilities)
    plain, dkpp = bench("born_again", recipe="teacher_only"), bench("born_again", recipe="dkpp")
    assert plain.train(range(1)) != dkpp.train(range(1))
    losses = [
        dkpp.method.eval().step(dkpp.batch(0), dkpp.progress(step)).loss.item() for step in (0, 1, 2)
    ]  # two of the first epoch, one of the second
    assert losses[0] == losses[1] != losses[2]


def test_recipes_have_the_variants_of_the_paper():
    weights = {name: resolve_recipe("born_again", name) for name in ("paper", "teacher_only", "cwtm", "dkpp")}
    assert {n: (r.label_weight, r.teacher_weight) for n, r in weights.items()} == {
        "paper": (1, 1), "teacher_only": (0, 1), "cwtm": (1, 0), "dkpp": (0, 1),
    }  # fmt: skip
    assert weights["cwtm"].weighted_by_confidence and weights["dkpp"].permuted
    paper, small = weights["paper"], resolve_recipe("born_again", "small")
    assert [round(drop * paper.epochs) for drop in paper.lr_drops] == [60, 120, 160] and paper.lr_drop_factor == 0.2
    assert [round(drop * small.epochs) for drop in small.lr_drops] == [150, 225] and small.lr_drop_factor == 0.1
    assert {r.peak_lr for r in (paper, small)} == {0.1} and {r.weight_decay for r in (paper, small)} == {5e-4}


def test_teacher_and_student_are_two_networks_of_one_kind(bench):
    setup = bench("born_again").setup
    recipe = resolve_recipe("born_again", "small")
    student = tiny_backbone()
    head = MLP([student.num_features, 3])

    def with_spec(**changes):
        other = tiny_backbone()
        other.spec = replace(other.spec, **changes)
        return FrozenTeacher(other, IMAGE, head)

    for teacher, message in (
        (FrozenTeacher(student, IMAGE, head), "teacher and student are the same network"),
        (FrozenTeacher(tiny_backbone(name="resnet14x0.5"), IMAGE, head), "--backbone resnet14x0.5, or take kd"),
        (with_spec(stem="small"), "is resnet8x0.5, stem small, .* this one is .* stem standard.*Give --stem small, or"),
        (with_spec(channels=1), "Give --channels 1, or"),
        (FrozenTeacher(tiny_backbone(), IMAGE, MLP([32, 5])), "tells 5 classes apart, and stripes has 3"),
        (FrozenTeacher(tiny_backbone(), IMAGE, MLP([32, 3]), classes=("c", "b", "a")), "classes"),
    ):
        setup.teacher = teacher
        with pytest.raises(RecipeError, match=message):
            BornAgain(recipe, student, setup)


def test_a_generation_with_the_seed_of_the_one_before_is_warned_of(bench, caplog):
    bench = bench("born_again")
    bench.setup.teacher.seed = bench.setup.seed + 1
    type(bench.method)(bench.method.recipe, tiny_backbone(), bench.setup)
    assert "Give each generation" not in caplog.text
    bench.setup.teacher.seed = bench.setup.seed
    type(bench.method)(bench.method.recipe, tiny_backbone(), bench.setup)
    assert "Give each generation its own --seed" in caplog.text


def test_generations_are_stages_of_a_pipeline(tmp_path):
    """The example of docs/pipelines.md at a size for tests."""
    images = make_images(24)
    np.savez(tmp_path / "images.npz", images=images.store.canvases, labels=images.labels)
    stage = f"source: {tmp_path}/images.npz, backbone: resnet8x0.5, epochs: 1, batch_size: 8, device: cpu"
    (tmp_path / "plan.yaml").write_text(
        f"""
out: {tmp_path}/out
stages:
  - name: generation0
    pretrain: {{method: supervised, seed: 0, {stage}}}
  - name: generation1
    distill: {{method: born_again, teacher: generation0, seed: 1, {stage}}}
  - name: generation2
    distill: {{method: born_again, teacher: generation1, seed: 2, {stage}}}
"""
    )
    assert run_pipeline(tmp_path / "plan.yaml").ran == ["generation0", "generation1", "generation2"]
    firsts = [attar.load(tmp_path / "out" / f"generation{k}").backbone.state_dict() for k in range(3)]
    key = "network.body.stem.0.weight"
    assert not torch.equal(firsts[0][key], firsts[1][key]) and not torch.equal(firsts[1][key], firsts[2][key])
    assert run_pipeline(tmp_path / "plan.yaml").ran == []
