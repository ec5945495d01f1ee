"""BYOT: the loss by hand, a teacher without gradient, and exits that are networks of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import BackboneError
from attar.methods.base import resolve_recipe
from attar.models.saved import classes_of, load_backbone, load_head
from attar.models.teachers import load_teacher
from tests.methods.conftest import make_images


def test_recipes_have_the_numbers_of_the_published_codes():
    paper, released = resolve_recipe("byot", "paper"), resolve_recipe("byot", "released")
    assert (paper.distillation_weight, paper.temperature, paper.hint_weight) == (0.3, 3.0, 0.03)
    assert (paper.peak_lr, paper.weight_decay, paper.batch_size) == (0.1, 5e-4, 128)
    assert released.distillation_weight == 0.1 and (released.epochs, released.peak_lr) == (200, 0.1)
    assert released.deepest_weight == 1 - released.distillation_weight and paper.deepest_weight == 1
    assert released.hint_weight == pytest.approx(1e-6 * released.batch_size)  # there a sum over the batch
    control = resolve_recipe("byot", "supervised_only")
    assert control.distillation_weight == control.hint_weight == 0


def test_the_loss_by_hand(bench):
    bench = bench("byot", distillation_weight=0.3, temperature=3.0, hint_weight=0.5, deepest_weight=0.8)
    method = bench.method.eval()
    batch = bench.batch(0)
    maps = method.backbone.stages(batch.images)
    assert list(method.branches) == ["stage1", "stage2"]
    deepest = method.backbone(batch.images)
    q_deepest = method.classifier(deepest)
    expected = 0.8 * F.cross_entropy(q_deepest, batch.labels)
    target = torch.softmax(q_deepest / 3, dim=1)
    for stage, classifier in zip(method.branches, method.classifiers):
        features = method.branches[stage](maps[stage])
        q = classifier(features)
        kl = (target * (target.log() - torch.log_softmax(q / 3, dim=1))).sum(dim=1).mean()
        hint = ((features - deepest) ** 2).sum(dim=1).mean()
        expected = expected + 0.7 * F.cross_entropy(q, batch.labels) + 0.3 * 9 * kl + 0.5 * hint
    torch.testing.assert_close(method.step(batch, bench.progress(0)).loss, expected)


def test_the_deepest_classifier_learns_from_labels_alone(bench):
    taught = bench("byot", distillation_weight=0.9, hint_weight=5.0)
    alone = bench("byot", distillation_weight=0.0, hint_weight=0.0)
    for each in (taught, alone):
        each.backward(0)
    ours, theirs = (each.method.classifier[0].weight.grad for each in (taught, alone))
    torch.testing.assert_close(ours, theirs)
    last = "network.body.stage3"  # only the deepest output needs it, and its losses at other exits are detached
    for (name, p), q in zip(taught.method.backbone.named_parameters(), alone.method.backbone.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6) == name.startswith(last), name


def test_a_network_without_exits_is_refused(backbone, bench):
    module = attar.methods.base.load("byot")
    setup = bench("byot").setup
    with pytest.raises(BackboneError, match="vit_micro_p8 has no early exits"):
        module.METHOD(resolve_recipe("byot", "small"), backbone(name="vit_micro_p8"), setup)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("byot") / "run"
    attar.pretrain(
        make_images(24), out=out, method="byot", backbone="resnet8x0.5", epochs=2, batch_size=8, device="cpu",
        progress=False,
    )  # fmt: skip
    return out


def test_the_run_keeps_every_exit_as_a_network_of_its_own(run):
    whole, image, _ = load_backbone(run)
    sizes = []
    for name in ("exit1", "exit2"):
        cut, its_image, provenance = load_backbone(run / name)
        assert its_image == image and provenance["part"] == name and provenance["method"] == "byot"
        assert cut.spec.name == f"{name}_resnet8x0.5" and cut.num_features == whole.num_features
        shared = [k for k in cut.state_dict() if k.startswith("network.network.body.")]
        for key in shared:
            assert torch.equal(cut.state_dict()[key], whole.state_dict()[key.replace("network.network", "network")])
        assert load_head(run / name, "classifier").num_features_out == 3 and classes_of(run / name) == ("a", "b", "c")
        sizes.append(sum(p.numel() for k, p in cut.named_parameters() if "branch" not in k))
    assert sizes == sorted(sizes) and sizes[-1] < sum(p.numel() for p in whole.parameters())


@pytest.mark.slow
def test_an_exit_embeds_teaches_and_is_exported_like_any_run(run, tmp_path):
    assert attar.load(run / "exit1")(torch.rand(2, 3, 32, 32)).shape == (2, 32)
    assert load_teacher(run / "exit2", output="logits").num_features_out == 3
    result = attar.export(run / "exit1", format="onnx")
    assert result.path == run / "exit1" / "backbone.onnx" and max(result.parity.values()) < 1e-3
    rows = attar.evaluate(run / "exit1", make_images(24), protocols=("knn",), controls=False, progress=False).rows
    assert np.isfinite([row["value"] for row in rows]).all()
