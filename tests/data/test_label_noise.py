"""Wrong and few labels: how many, which, and the same again."""

from __future__ import annotations

import numpy as np
import pytest

import attar
from attar.data.label_noise import (
    CIFAR10,
    asymmetric_noise,
    symmetric_noise,
    with_label_fraction,
    with_label_noise,
)
from attar.errors import DataError, RecipeError, RunChanged
from tests.methods.conftest import make_images

LABELS = np.repeat(np.arange(10), 100)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_the_rate_is_that_of_wrong_labels_in_every_class(rate):
    for noisy in (symmetric_noise(LABELS, rate, 10), asymmetric_noise(LABELS, rate, 10)):
        wrong = noisy != LABELS
        assert [wrong[k == LABELS].sum() for k in range(10)] == [round(100 * rate)] * 10


def test_symmetric_noise_reaches_all_other_classes_alike():
    labels = np.zeros(9000, dtype=np.int64)
    counts = np.bincount(symmetric_noise(labels, 0.9, 10, seed=3), minlength=10)
    assert counts[0] == 900 and counts[1:].min() > 800 and counts[1:].max() < 1000


def test_asymmetric_noise_takes_one_class_for_another():
    noisy = asymmetric_noise(LABELS, 0.4, 10)
    assert all((noisy[(k == LABELS) & (noisy != k)] == (k + 1) % 10).all() for k in range(10))
    usual = asymmetric_noise(LABELS, 0.4, 10, becomes=CIFAR10)
    kept = [k for k in range(10) if (usual[k == LABELS] == k).all()]
    assert kept == [0, 1, 6, 7, 8]
    assert set(usual[LABELS == 3]) == {3, 5} and set(usual[LABELS == 9]) == {9, 1}


def test_more_noise_adds_to_less_and_seeds_differ():
    some, more = (symmetric_noise(LABELS, rate, 10, seed=1) for rate in (0.2, 0.5))
    assert (more[some != LABELS] == some[some != LABELS]).all()
    assert np.array_equal(some, symmetric_noise(LABELS, 0.2, 10, seed=1))
    assert not np.array_equal(some, symmetric_noise(LABELS, 0.2, 10, seed=2))


def test_unknown_labels_stay_unknown():
    labels = np.array([-1, 0, 1, -1, 1, 0, 0, 1])
    for make in (symmetric_noise, asymmetric_noise):
        assert ((make(labels, 0.5, 2) == -1) == (labels == -1)).all()


def test_images_keep_everything_but_their_labels():
    images = make_images(24)
    noisy = with_label_noise(images, "symmetric:0.5")
    assert (noisy.labels != images.labels).sum() == 12 and noisy.digest == images.digest
    assert np.array_equal(images.labels, np.arange(24) % 3), "the given images are left alone"
    half = with_label_fraction(images, 0.5)
    assert np.bincount(half.labels).tolist() == [4, 4, 4] and set(half.index) <= set(images.index)
    assert set(with_label_fraction(images, 0.25).index) <= set(half.index) and half.digest != images.digest


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("symetric:0.5", "label noise 'symetric'.*symmetric"),
        ("symmetric", "give the share of wrong labels, e.g. symmetric:0.4"),
        ("asymmetric:1.5", "rate=1.5 is not accepted"),
    ],
)
def test_what_is_not_understood_is_refused(noise, message):
    with pytest.raises(DataError, match=message):
        with_label_noise(make_images(), noise)


def train(out, **options):
    return attar.pretrain(
        make_images(24), out=out, backbone="resnet8x0.5", epochs=1, batch_size=4, device="cpu", progress=False,
        **{"method": "supervised", **options},
    )  # fmt: skip


def test_training_takes_few_and_wrong_labels_and_remembers_them(tmp_path):
    run = train(tmp_path / "run", label_fraction=0.5, label_noise="symmetric:0.5")
    assert run.recipe["data"]["num_images"] == 12
    assert (run.recipe["data"]["label_fraction"], run.recipe["data"]["label_noise"]) == (0.5, "symmetric:0.5")
    train(tmp_path / "run", label_fraction=0.5, label_noise="symmetric:0.5", resume=True)
    with pytest.raises(RunChanged, match="labels: other ones"):
        train(tmp_path / "run", label_fraction=0.5, label_noise="asymmetric:0.5", resume=True)
    with pytest.raises(RunChanged, match="data: other images"):
        train(tmp_path / "run", label_fraction=0.25, label_noise="symmetric:0.5", resume=True)


def test_methods_without_labels_refuse_both(tmp_path):
    for option in ({"label_fraction": 0.5}, {"label_noise": "symmetric:0.5"}):
        with pytest.raises(RecipeError, match="would be ignored: rotation is not trained with labels"):
            train(tmp_path / "run", method="rotation", **option)


def test_an_image_that_is_left_out_changes_no_other_label():
    images = make_images(60)
    fewer = images.subset(np.delete(np.arange(60), 7))
    for noise in ("symmetric:0.4", "asymmetric:0.4"):
        labels = dict(zip(images.index, with_label_noise(images, noise).labels))
        changed = [i for i, y in zip(fewer.index, with_label_noise(fewer, noise).labels) if labels[i] != y]
        assert len(changed) <= 1  # the share of a class that lost an image may move by one
    kept = set(with_label_fraction(images, 0.25).index) ^ set(with_label_fraction(fewer, 0.25).index)
    assert len(kept) <= 2


def test_the_usual_confusions_of_cifar10_have_a_name():
    images = make_images(40)
    images.labels, images.classes = np.arange(40) % 10, tuple("abcdefghij")
    noisy = with_label_noise(images, "asymmetric_cifar10:0.5").labels
    wrong = noisy != images.labels
    assert wrong.any() and all(noisy[wrong] == np.array(CIFAR10)[images.labels[wrong]])
