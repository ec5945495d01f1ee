"""Per-layer probes on a network whose middle layer alone knows the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attar.errors import AttarError
from attar.evaluation import layers
from attar.evaluation.evaluation import evaluate
from attar.evaluation.layers import Layers
from attar.evaluation.subject import Subject, Task
from attar.models.backbones import Backbone, BackboneSpec

QUIET = dict(device="cpu", progress=False, num_resamples=50, num_untrained=1)


class MiddleKnows(nn.Module):
    """first: noise from the image's corner; middle: mean of row and column differences; last: constant."""

    def stages_of(self, images):
        rows = images.diff(dim=2).abs().mean(dim=(1, 2, 3), keepdim=True)
        columns = images.diff(dim=3).abs().mean(dim=(1, 2, 3), keepdim=True)
        middle = torch.cat([rows - columns, rows + columns], dim=1).expand(-1, -1, 4, 4)
        return {"first": images[:, :, :2, :2], "middle": middle, "last": torch.ones_like(middle)}

    def forward(self, images):
        return self.stages_of(images)["last"].flatten(1)


@pytest.fixture
def network():
    return Backbone(MiddleKnows(), BackboneSpec(name="middle_knows", channels=3, image_size=16), 32)


def task_of(striped, **named):
    return Task(striped(80), striped(60, seed=1), ("rows", "columns"), progress=False, **named)


def accuracy(outcome, task):
    return float((outcome.scores[0].argmax(axis=1) == task.test_labels).mean())


def test_the_layer_that_knows_is_found_and_the_constant_one_is_at_chance(striped, spec, network):
    task = task_of(striped)
    outcomes = {o.variant: o for o in Layers().run(Subject("model", network, spec, task))}
    assert list(outcomes) == ["last", "middle", "first"]
    assert accuracy(outcomes["middle"], task) == 1.0
    assert accuracy(outcomes["last"], task) == 0.5
    assert accuracy(outcomes["first"], task) < 0.8
    assert [outcomes[name].settings["depth"] for name in ("first", "middle", "last")] == [1, 2, 3]
    assert [outcomes[name].settings["width"] for name in ("first", "middle", "last")] == [12, 32, 32]


def test_layers_are_measured_alike_whether_or_not_they_share_a_pass(striped, spec, network, monkeypatch):
    subject = Subject("model", network, spec, task_of(striped))
    together = Layers().run(subject)
    monkeypatch.setattr(layers, "MOST_VALUES", 80 * 32)
    alone = Layers().run(subject)
    for one, other in zip(together, alone):
        assert one.settings == other.settings
        assert np.array_equal(one.scores[0], other.scores[0])


def test_too_many_features_are_fitted_on_a_share_of_each_class(striped, spec, network, monkeypatch):
    monkeypatch.setattr(layers, "MOST_VALUES", 20 * 32)
    outcomes = Layers().run(Subject("model", network, spec, task_of(striped)))
    assert {o.settings["probe_images"] for o in outcomes} == {20}
    assert all(len(o.scores[0]) == 60 for o in outcomes)


def test_pooling_changes_the_width(striped, spec, network):
    outcomes = Layers(values=3).run(Subject("model", network, spec, task_of(striped)))
    assert {o.variant: o.settings["width"] for o in outcomes} == {"first": 3, "middle": 2, "last": 2}
    with pytest.raises(AttarError, match="layers: values=0"):
        Layers(values=0).run(Subject("model", network, spec, task_of(striped)))


def test_rows_have_layers_controls_and_leave_the_verdict_alone(striped, spec):
    from attar.models.backbones import build_backbone

    torch.manual_seed(3)
    network = build_backbone("resnet8x0.5", channels=3, image_size=16)
    arguments = (network, spec, striped(60), striped(40, seed=1, first_id=500))
    plain = evaluate(*arguments, protocols=("linear",), **QUIET)
    both = evaluate(*arguments, protocols=("layers:200", "linear"), **QUIET)
    others = [line for line in both.verdict.splitlines() if line.startswith("Against random initialisation, measured")]
    assert [line for line in both.verdict.splitlines() if line not in others] == plain.verdict.splitlines()
    assert all(f"layers {name} " in others[0] for name in ("stage3", "stage2", "stage1", "stem"))
    of_layers = [r for r in both.rows if r["protocol"] == "layers" and r["metric"] == "top1"]
    found = {s: [r["settings"]["variant"] for r in of_layers if r["subject"] == s] for s in ("model", "random_init")}
    assert found["model"] == found["random_init"] == ["stage3", "stage2", "stage1", "stem"]
    assert [r["settings"]["variant"] for r in of_layers if r["subject"] in ("pixels", "hog")] == ["means", "blocks"]
    alone = evaluate(*arguments, protocols=("layers:200",), controls=("random_init",), **QUIET)
    assert alone.details["variant"] == "stage3" and "layers stage3" in alone.verdict
