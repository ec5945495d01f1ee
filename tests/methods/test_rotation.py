"""Rotation: all four turns in one batch, labels that fit them."""

from __future__ import annotations

import math

import pytest
import torch

from attar.methods.pretext.rotation import RECIPES


def test_a_zero_head_gives_log_4(bench):
    bench = bench("rotation")
    torch.nn.init.zeros_(bench.method.head.weight)
    torch.nn.init.zeros_(bench.method.head.bias)
    output = bench.backward(0)
    assert output.loss.item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_four_turns_of_every_image_with_their_labels(bench, recipe):
    bench = bench("rotation", recipe)
    batch = bench.batch(0)
    assert batch.images.shape == (24, 3, 32, 32)
    assert batch.pretext_targets.bincount().tolist() == [6, 6, 6, 6]
    for image, target in zip(batch.images, batch.pretext_targets):
        back = torch.rot90(image, -int(target), (1, 2))
        assert (batch.images[:6] == back).flatten(1).all(1).sum() == 1


def test_embeddings_are_of_the_upright_images(bench):
    bench = bench("rotation")
    bench.method.eval()
    batch = bench.batch(0)
    output = bench.method.step(batch, bench.progress(0))
    torch.testing.assert_close(
        output.embeddings, bench.method.backbone(batch.images[:6]).detach(), rtol=1e-4, atol=1e-5
    )
    assert RECIPES["small"].peak_lr == pytest.approx(0.1) and RECIPES["photo"].peak_lr == pytest.approx(0.2)


def test_it_says_of_each_turned_image_by_how_much_and_how_sure(bench):
    bench = bench("rotation")
    torch.nn.init.zeros_(bench.method.head.weight)
    bench.method.head.bias.data = torch.tensor([0.0, 0.0, 3.0, 0.0])
    answers = bench.method.eval().answers(bench.batch(0))
    sure = torch.tensor([0.0, 0.0, 3.0, 0.0]).softmax(dim=0)[2].item()
    assert list(answers.pictures()) == [f"turned by {turn}°" for turn in (0, 90, 180, 270)]
    assert all(said == [f"180° ({sure:.0%})"] * 6 for said in answers.captions.values())


def test_the_run_keeps_its_answers_and_every_runs_stand_in_the_report(tmp_path):
    import attar
    from tests.methods.conftest import make_images

    options = dict(method="rotation", backbone="resnet8x0.5", epochs=1, batch_size=6, device="cpu", progress=False)
    for name in ("one", "two"):
        attar.pretrain(make_images(), out=tmp_path / name, **options)
        assert (tmp_path / name / "answers.png").is_file()
    page = attar.report([tmp_path / "one", tmp_path / "two"], out=tmp_path / "report.html").read_text()
    assert "What one said to its own task" in page and "What two said to its own task" in page
