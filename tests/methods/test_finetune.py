"""Fine-tuning from inside a projector: which layers are kept, which labels are used, and what the run keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar import stages
from attar.data.splits import labelled_share
from attar.errors import AttarError, RecipeError
from attar.methods.base import Setup
from attar.methods.distill.finetune import METHOD, RECIPES, classifier_on
from attar.models.heads import MLP
from attar.models.saved import classes_of, load_backbone, load_head

QUICK = dict(backbone="resnet8x0.5", image_size=8, epochs=1, batch_size=128, device="cpu", progress=False)


def test_the_recipe_is_the_papers():
    r = RECIPES["paper"]
    assert (r.optimiser, r.epochs, r.batch_size, r.weight_decay, r.warmup_fraction) == ("lars", 60, 1024, 0, 0)
    assert r.peak_lr == pytest.approx(0.16)
    assert r.from_layer == 1 and r.crop_scale == (0.08, 1.0)


def test_the_first_layers_of_the_projector_are_kept_and_the_last_is_zero(bench):
    built = bench("finetune")
    projector = built.setup.projector
    for k in (0, 1, 2):
        head = classifier_on(projector, built.method.backbone, k, 3)
        assert head.spec["dims"] == [*projector.spec["dims"][: k + 1], 3]
        assert not head[-1].weight.any() and not head[-1].bias.any()
        features = torch.randn(5, projector.spec["dims"][0])
        kept = torch.nn.Sequential(*list(projector)[: 3 * k]).eval()  # Linear, batch norm, ReLU
        torch.testing.assert_close(torch.nn.Sequential(*list(head)[:-1]).eval()(features), kept(features))
        same = MLP.from_spec(json.loads(json.dumps(head.spec)))
        same.load_state_dict(head.state_dict())
        head[-1].weight.data.normal_()
        assert projector[0].weight.data_ptr() != head[0].weight.data_ptr()


def test_step_is_cross_entropy_and_begins_at_log_n(bench):
    built = bench("finetune")
    output = built.backward(0)
    assert output.loss.item() == pytest.approx(np.log(3), abs=1e-5)
    built.optimiser.step()
    batch = built.batch(1)
    built.method.eval()
    output = built.method.step(batch, built.progress(1))
    logits = built.method.classifier(built.method.backbone(batch.images))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.labels))


def test_what_cannot_be_kept_is_an_error(bench, backbone):
    built = bench("finetune")
    with pytest.raises(RecipeError, match="from_layer=3 is not accepted: the projector has 3 layers, of which 0 to 2"):
        bench("finetune", from_layer=3)
    with pytest.raises(RecipeError, match="no run that kept one"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
    with pytest.raises(RecipeError, match="takes 7 features; .* has [0-9]+. Start from the features"):
        classifier_on(MLP([7, 20, 12]), built.method.backbone, 1, 3)
    bare = bench("finetune", from_layer=0).method.recipe
    METHOD(bare, backbone(), Setup(image=built.setup.image, images=built.images))


def test_a_share_of_each_class_by_id_whatever_the_order(bench):
    images = bench("finetune").images
    images.labels = np.array([0] * 6 + [1] * 4 + [2] * 2)
    half = images.index[labelled_share(images, 0.5, 1)]
    assert [int((images.labels[np.isin(images.index, half)] == c).sum()) for c in range(3)] == [3, 2, 1]
    turned = images.subset(np.random.default_rng(0).permutation(12))
    assert set(turned.index[labelled_share(turned, 0.5, 1)]) == set(half)
    third = images.index[labelled_share(images, 1 / 3, 1)]
    assert set(third) < set(half)
    drawn = {tuple(images.index[labelled_share(images, 0.5, seed)]) for seed in range(8)}
    assert len(drawn) > 4
    assert len(labelled_share(images, 0.01, 0)) == 3, "one of each class at least"
    recipe = bench("finetune", label_fraction=0.5, label_seed=1).method.recipe
    assert set(METHOD.training_images(images, recipe).index) == set(half)
    with pytest.raises(AttarError, match="fraction=0"):
        labelled_share(images, 0.0)


def test_the_run_keeps_backbone_and_classifier_that_name_the_classes(tmp_path):
    stages.pretrain("digits", out=tmp_path / "big", settings={"projector_layers": 3}, **QUICK)
    run = stages.pretrain(
        "digits",
        out=tmp_path / "tuned",
        method="finetune",
        init=tmp_path / "big",
        settings={"label_fraction": 0.1},
        **QUICK | {"epochs": 2, "batch_size": 32},
    )
    assert 150 < run.recipe["data"]["num_images"] < 200
    assert run.recipe["image"] == json.loads((tmp_path / "big" / "backbone.json").read_text())["image"]
    before, after = load_head(tmp_path / "big", "projector"), load_head(tmp_path / "tuned", "classifier")
    assert [type(m) for m in after][:3] == [type(m) for m in before][:3] and len(after) == 4
    assert 0 < (after[0].weight - before[0].weight).abs().max() < 0.2, "trained on from there"
    assert len(classes_of(tmp_path / "tuned")) == 10
    features = load_backbone(tmp_path / "tuned")[0](torch.randn(2, 1, 8, 8))
    assert after(features).shape == (2, 10)

    result = stages.evaluate(
        tmp_path / "tuned", "digits", protocols=("classifier",), controls=False, device="cpu", progress=False
    )
    assert {"nll", "ece", "top1"} <= {row["metric"] for row in result.rows}
    assert "trained on these images, or some of them, with labels" in result.verdict
    with pytest.raises(RecipeError, match="kept no classifier"):
        stages.evaluate(tmp_path / "big", "digits", protocols=("classifier",), progress=False)
