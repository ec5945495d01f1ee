from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from attar.errors import AttarError
from attar.evaluation.finetune import Finetune, _rate_factor
from attar.evaluation.subject import Subject, Task
from attar.models.backbones import build_backbone
from tests.computed_types import ComputedTypes

QUICK = dict(epochs=1, min_steps=25, batch_size=16, learning_rates=(3e-3,))


@pytest.fixture
def subject(striped, spec):
    def make(n=48, *, backbone="resnet8"):
        torch.manual_seed(0)
        task = Task(striped(n), striped(24, seed=1), ("rows", "columns"), progress=False)
        return Subject("model", build_backbone(backbone, channels=3, image_size=16), spec, task)

    return make


def test_learns_what_labels_say_and_leaves_the_backbone_alone(subject):
    s = subject()
    before = copy.deepcopy(s.backbone.state_dict())
    outcome = Finetune(**QUICK).run(s)[0]
    assert (outcome.scores[0].argmax(1) == s.task.test_labels).mean() > 0.9
    assert outcome.scores[0].sum(1) == pytest.approx(1)
    assert outcome.settings == {"learning_rate": 3e-3, "optimiser": "adamw", "epochs": 9}  # 25 steps of 3 an epoch
    assert all((before[name] == value).all() for name, value in s.backbone.state_dict().items())


class WithDropout(torch.nn.Module):
    num_features = 8

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 8), torch.nn.Dropout(0.5))

    def forward(self, images):
        return self.net(images)


def test_same_seed_same_result_and_the_global_generator_is_untouched(subject):
    s = subject()
    s.backbone = WithDropout()
    run = lambda: Finetune(**{**QUICK, "min_steps": 3}).run(s)[0].scores[0]  # noqa: E731
    torch.manual_seed(4)
    first = run()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert (run() == first).all()
    assert (torch.random.get_rng_state() == before).all()


def test_in_bf16_attention_trains_in_float32(subject):
    s = subject(backbone="vit_micro_p4")
    s.task = replace(s.task, precision="bf16")
    with ComputedTypes() as seen:
        Finetune(**{**QUICK, "min_steps": 1}).run(s)
    assert seen.backward == {torch.float32} and torch.bfloat16 in seen.linear


@pytest.mark.slow
def test_the_rate_is_chosen_without_the_test_labels(subject):
    settings = {**QUICK, "learning_rates": (1e-6, 3e-3)}
    chosen = Finetune(**settings).run(subject())[0]
    assert chosen.settings["learning_rate"] == 3e-3
    s = subject()
    s.task.test.labels = 1 - s.task.test.labels
    assert (Finetune(**settings).run(s)[0].scores[0] == chosen.scores[0]).all()


def test_rate_rises_then_falls_to_zero():
    factors = [_rate_factor(step, 100, 0.1) for step in range(100)]
    assert np.argmax(factors) in (9, 10)
    assert factors[0] == pytest.approx(0.1)
    assert factors[-1] < 0.001
    assert factors[55] == pytest.approx(0.5)


def test_sgd_trains_too(subject):
    outcome = Finetune(**{**QUICK, "optimiser": "sgd", "learning_rates": (0.05,)}).run(subject())[0]
    assert (outcome.scores[0].argmax(1) == np.arange(24) % 2).mean() > 0.7


def test_nothing_to_train_is_a_reason_to_skip(subject):
    assert "nothing to train" in Finetune().reason_to_skip(subject(backbone="pixels"))
    assert Finetune().reason_to_skip(subject()) is None


def test_errors(subject):
    with pytest.raises(AttarError, match="optimiser 'adam' is unknown; accepted: adamw, sgd"):
        Finetune(optimiser="adam").run(subject())
    with pytest.raises(AttarError, match="must be greater than 0"):
        Finetune(learning_rates=(0.0,)).run(subject())
    lonely = subject(n=3)
    with pytest.raises(AttarError, match="every class needs at least 2 training images"):
        Finetune().run(lonely)
    with pytest.raises(AttarError, match=r"not finite at step .* Give smaller ones, e.g. finetune:1e\+29"):
        Finetune(**{**QUICK, "learning_rates": (1e30,)}).run(subject())
