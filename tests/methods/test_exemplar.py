"""Exemplar-CNN: classes are images by their stable id, samples of one image share a class."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.methods.base import Setup
from attar.methods.pretext.exemplar import RECIPES, Exemplar, views
from attar.views.batches import Exemplars


def test_the_recipe_is_the_papers(bench):
    paper = RECIPES["paper"]
    assert (paper.translation, paper.scale, paper.rotation) == (0.2, (0.7, 1.4), 20.0)
    assert (paper.components, paper.power, paper.factor) == ((0.5, 2.0), (0.25, 4.0), (0.7, 1.4))
    assert (paper.offset, paper.hue, paper.projector_dim, paper.dropout, paper.peak_lr) == (0.1, 0.1, 512, 0.5, 0.01)
    made = views(paper, bench("exemplar").setup.image)
    for name in ("translation", "scale", "rotation", "components", "power", "factor", "offset", "hue", "seed_scale"):
        assert getattr(made, name) == getattr(paper, name)


def test_untrained_classes_give_the_logarithm_of_their_number(bench):
    built = bench("exemplar")
    assert built.backward(0).loss.item() == pytest.approx(math.log(12), abs=1e-5)


def test_the_class_of_every_sample_is_the_place_of_its_images_id(bench):
    built = bench("exemplar", num_samples=3)
    method, batch = built.method.eval(), built.batch(1)
    torch.nn.init.normal_(method.classes.weight)
    assert batch.index.tolist() == [20, 23, 26, 29, 32, 35]  # ids with gaps: 2, 5, 8, ...
    expected = 0.0
    for sample in batch.transformed:
        logits = method.logits(method.backbone(sample))
        assert logits.shape == (6, 12)
        expected = expected + F.cross_entropy(logits, torch.arange(6, 12)) / 3
    torch.testing.assert_close(method.step(batch, built.progress(0)).loss, expected, rtol=1e-4, atol=1e-4)


def test_dropout_falls_on_the_layer_before_the_classes(bench):
    method = bench("exemplar", "paper").method
    torch.manual_seed(0)
    hidden = []
    method.classes.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    features = torch.randn(64, method.backbone.num_features)
    method.train().logits(features)
    method.eval().logits(features)
    dropped = (hidden[0] == 0) & (hidden[1] > 0)
    assert 0.4 < dropped.sum() / (hidden[1] > 0).sum() < 0.6
    assert (hidden[1] >= 0).all()


def test_the_answers_show_the_seed_a_sample_is_taken_for(bench):
    built = bench("exemplar")
    method, batch = built.method.eval(), built.batch(0)
    right = torch.zeros(6, 12)
    taken = [1, 1, 2, 0, 4, 11]  # of all images; the last is not in the batch, and 5 comes second
    right[torch.arange(6), torch.tensor(taken)] = 4.0
    right[5, 5] = 3.0
    method.logits = lambda features: right
    answers = method.answers(batch)
    shown = answers.pictures()
    assert list(shown) == ["seed", "sample", "taken for"]
    assert torch.equal(shown["seed"], batch.seeds) and torch.equal(shown["sample"], batch.transformed[0])
    assert torch.equal(shown["taken for"], batch.seeds[[1, 1, 2, 0, 4, 5]])
    sure = math.exp(4) / (math.exp(4) + 11)
    assert answers.captions["taken for"][:2] == [f"of all: # 5 ({sure:.0%})"] * 2
    assert answers.captions["taken for"][5].startswith("of all: # 35 (")


def test_many_images_are_warned_of(bench, backbone, caplog, monkeypatch):
    built = bench("exemplar")
    assert not caplog.records
    monkeypatch.setattr("attar.methods.pretext.exemplar.MANY", 11)
    Exemplar(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
    assert "12 images are as many classes" in caplog.text and "inst_disc" in caplog.text


def test_the_projector_is_kept_and_the_classes_are_not_the_backbones(bench):
    built = bench("exemplar")
    assert isinstance(built.batch(0), Exemplars)
    assert built.method.projector.num_features_out == built.method.classes.in_features
    assert not any("classes" in name for name in built.method.backbone.state_dict())
