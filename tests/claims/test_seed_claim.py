"""The claim's verdict can say yes, no and undecided; its shams are what they say."""

import json

import numpy as np
import pytest
import torch

from attar import stages
from attar.claims import reproduce, seed
from attar.claims.base import ClaimResult, spread
from attar.claims.seed import EXPECTATIONS, Size
from attar.claims.teachers import PermutedTeacher, untrained_twin
from attar.claims.verdict import METRICS, judge
from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.errors import RecipeError, RunChanged
from attar.models.teachers import load_teacher
from attar.views.augmentation import CentreView


def result(**arms):
    values = {arm: {metric: list(v) for metric in METRICS} for arm, v in arms.items()}
    return ClaimResult(name="seed", statement="", data="", conditions={}, arms=seed.ARMS, values=values)


ALONE = (0.50, 0.51, 0.49)


@pytest.mark.parametrize(
    ("student", "random", "permuted", "verdict"),
    [
        ((0.60, 0.61, 0.60), (0.40, 0.41, 0.39), (0.3, 0.31, 0.3), "holds"),
        ((0.40, 0.41, 0.40), (0.30, 0.31, 0.29), (0.3, 0.31, 0.3), "does not hold"),
        ((0.52, 0.48, 0.50), (0.30, 0.31, 0.29), (0.3, 0.31, 0.3), "undecided"),
        ((0.60, 0.61, 0.60), (0.60, 0.61, 0.60), (0.3, 0.31, 0.3), "undecided"),  # a random teacher helps as much
        ((0.52, 0.53, 0.51), (0.52, 0.53, 0.51), (0.3, 0.31, 0.3), "undecided"),  # and where that is not much
    ],
)
def test_verdicts(student, random, permuted, verdict):
    text = judge(EXPECTATIONS, result(alone=ALONE, seed=student, random=random, permuted=permuted), digits=False)
    assert text.startswith(f"Verdict: {verdict} at this size.")


def test_digits_are_said_to_be_worth_little():
    arms = dict(alone=ALONE, seed=(0.6, 0.61, 0.6), random=ALONE, permuted=ALONE)
    assert "and little more" in judge(EXPECTATIONS, result(**arms), digits=True)


def test_spread_is_mean_deviation_and_number():
    assert spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0 (n=3)" and spread([]) == "–"


def test_the_permuted_teacher_gives_the_answers_to_other_images():
    class Echo:
        image, num_features_out, digest = ImageSpec(size=4, channels=1, mean=(0.0,), std=(1.0,)), 1, "d"

        def __call__(self, images, index, image, view=0):
            return index[:, None].float()

    answers = PermutedTeacher(Echo())(None, torch.tensor([4, 7, 9]), None)
    assert sorted(answers[:, 0].tolist()) == [4, 7, 9]
    assert not (answers[:, 0] == torch.tensor([4.0, 7.0, 9.0])).any()


def test_the_random_teachers_head_sees_values_like_those_it_is_normalised_by(tmp_path):
    """With the initial statistics of batch norm its embeddings would all point the same way."""
    trained = tmp_path / "trained"
    images = load_images("digits", image_size=8)
    stages.pretrain(images, out=trained, backbone="resnet8x0.5", epochs=1, batch_size=64, progress=False)
    teacher = load_teacher(untrained_twin(trained, tmp_path / "twin", images))
    answers = teacher.network(CentreView(teacher.image)(images.batch(np.arange(len(images)))))
    assert answers.mean(dim=0).abs().max() < 0.1 * answers.std(dim=0).mean()


def test_unknown_claims_and_sizes(tmp_path):
    with pytest.raises(RecipeError, match="unknown claim 'sed'"):
        reproduce("sed")
    with pytest.raises(RecipeError, match="Known: cpu, gpu"):
        reproduce("seed", size="huge", out=tmp_path)
    with pytest.raises(RecipeError, match="--seeds 0: it must be 1 or more"):
        reproduce("seed", seeds=0)


@pytest.mark.slow
def test_all_arms_run_are_kept_and_not_done_again(tmp_path, monkeypatch):
    tiny = Size(
        images=300,
        test_images=100,
        image_size=8,
        teacher="resnet8",
        teacher_epochs=1,
        student="resnet8x0.5",
        student_epochs=1,
        batch_size=64,
        seeds=1,
    )
    monkeypatch.setitem(seed.SIZES, "cpu", tiny)
    other = tmp_path / "other.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    np.savez(other, images=pixels, labels=np.arange(400) % 3)
    found = reproduce("seed", out=tmp_path / "claim", device="cpu")
    assert set(found.values) == set(seed.ARMS)
    assert "Verdict: undecided" in found.verdict  # one seed decides nothing
    saved = json.loads((tmp_path / "claim" / "claim.json").read_text())
    assert saved["values"]["seed"]["knn"] == found.values["seed"]["knn"]
    weights = (tmp_path / "claim" / "seed0" / "seed" / "backbone.safetensors").stat().st_mtime_ns
    with pytest.raises(RunChanged, match="data: "):  # the runs of other images are not taken for these
        reproduce("seed", data=str(other), out=tmp_path / "claim", device="cpu")
    again = reproduce("seed", out=tmp_path / "claim", device="cpu")
    assert np.allclose(again.values["alone"]["linear"], found.values["alone"]["linear"])
    assert (tmp_path / "claim" / "seed0" / "seed" / "backbone.safetensors").stat().st_mtime_ns == weights
