"""Relative position: pairs and their labels, two towers that are one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.data.images import ImageSpec
from attar.methods.pretext.relative_position import AROUND, RECIPES, pretext_targets, views
from attar.views.batches import side_by_side

PHOTO = ImageSpec(size=224, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_the_recipe_is_the_papers():
    made = views(RECIPES["photo"], PHOTO)
    assert (made.side, made.gap, made.displaced, made.colours) == (96, 48, 7, "drop")
    assert made.view.view_size == 3 * 96 + 2 * 48 + 2 * 7 and made.view.flip == 0
    assert (made.low_resolution, made.smallest_share) == (0.33, 10 / 96)
    assert RECIPES["photo"].peak_lr == pytest.approx(0.2)
    assert (RECIPES["photo"].projector_dim, RECIPES["photo"].projector_hidden_dim) == (4096, 4096)


def test_labels_say_where_the_second_patch_lies_from_the_first():
    offsets = [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)]  # (x, y) of labels 0 .. 7
    targets = pretext_targets(torch.device("cpu")).tolist()
    for pair, target in enumerate(targets):
        neighbour = (AROUND[pair % 8] % 3 - 1, AROUND[pair % 8] // 3 - 1)  # from the middle
        expected = neighbour if pair < 8 else (-neighbour[0], -neighbour[1])
        assert offsets[target] == expected
    assert [a + b for a, b in zip(targets[:8], targets[8:])] == [7] * 8
    assert sorted(targets) == sorted([*range(8)] * 2)


def test_a_zero_head_gives_log_8(bench):
    bench = bench("relative_position")
    for parameter in bench.method.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert bench.backward(0).loss.item() == pytest.approx(math.log(8), abs=1e-5)


def test_the_step_is_a_slow_loop_over_pairs(bench):
    bench = bench("relative_position")
    method, batch = bench.method.eval(), bench.batch(0)
    for parameter in method.head.parameters():
        parameter.data *= 5  # so that every logit weighs in
    features = [method.backbone(batch.patches[:, i]) for i in range(9)]
    z = [method.patch_head(h) for h in features]
    losses, correct = [], 0.0
    for place, number in enumerate(AROUND):
        for first, second, label in ((4, number, place), (number, 4, 7 - place)):
            logits = method.head(torch.cat([z[first], z[second]], dim=1))
            target = torch.full((6,), label)
            losses.append(F.cross_entropy(logits, target))
            correct += (logits.argmax(dim=1) == target).float().mean().item() / 16
    output = method.step(batch, bench.progress(0))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert float(output.metrics["position_accuracy"]) == pytest.approx(correct, abs=1e-6)
    torch.testing.assert_close(output.embeddings, torch.stack(features).mean(dim=0).detach(), rtol=1e-4, atol=1e-5)


def test_the_heads_norms_have_no_scale_and_shift(bench):
    method = bench("relative_position").method
    norms = [m for m in [*method.patch_head.modules(), *method.head.modules()] if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 3 and all(norm.weight is None and norm.bias is None for norm in norms)


def test_the_answer_puts_every_neighbour_in_one_place(bench, monkeypatch):
    bench = bench("relative_position")
    method, batch = bench.method.eval(), bench.batch(0)
    right = F.one_hot(pretext_targets(torch.device("cpu")), 8).float() * 9
    wrong = right.clone()  # the first two neighbours change places, seen from either side
    wrong[[0, 1]], wrong[[8, 9]] = right[[1, 0]], right[[9, 8]]
    logits = torch.stack([right, wrong, right, right, right, right])
    monkeypatch.setattr(method, "_of_pairs", lambda z: logits)
    answers = method.answers(batch)
    assert answers.captions["solved"] == ["8 of 8 (100%)", "6 of 8 (100%)"] + ["8 of 8 (100%)"] * 4
    assert list(answers.pictures()) == ["puzzle", "solved", "image"]
    puzzle, solved, images = answers.pictures().values()
    patches = side_by_side(batch.patches)
    assert images is batch.images
    assert (solved == patches).flatten(1).all(dim=1).tolist() == [True, False, True, True, True, True]
    assert not (puzzle == patches).flatten(1).all(dim=1).any()
