"""Class labels and choices of labelled images."""

import numpy as np
import pytest

from attar.data.labels import encode_labels
from attar.data.splits import label_fraction, stratified_split, subset_per_class
from attar.errors import DataError

LABELS = np.array([0] * 50 + [1] * 13 + [2] * 2 + [3] + [-1] * 7)


def test_encode_labels():
    labels, classes = encode_labels(["b", None, "a", "", "b"], where="t")
    assert labels.tolist() == [1, -1, 0, -1, 1] and classes == ("a", "b")
    labels, classes = encode_labels([5, 3, -1, float("nan"), 5.0], where="t")
    assert labels.tolist() == [1, 0, -1, -1, 1] and classes == ("3", "5")
    labels, classes = encode_labels([True, False], where="t")
    assert labels.tolist() == [1, 0] and classes == ("False", "True")
    assert encode_labels([1], where="t", classes=["x", "y"])[1] == ("x", "y")
    assert encode_labels(["y"], where="t", classes=["x", "y"])[0].tolist() == [1]
    with pytest.raises(DataError, match="label 2 has no name; there are 2 classes"):
        encode_labels([2], where="t", classes=["x", "y"])
    with pytest.raises(DataError, match="'z' is not among the classes x, y"):
        encode_labels(["z"], where="t", classes=["x", "y"])
    with pytest.raises(DataError, match=r"fractions such as 0\.5"):
        encode_labels([0.5, 1.0], where="t")


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_stratified_split(fraction):
    first, second = stratified_split(LABELS, fraction, seed=3)
    assert sorted([*first, *second]) == list(range(66))  # all but the unlabelled
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    assert abs((LABELS[second] == 0).sum() - 50 * fraction) <= 1
    assert (LABELS[second] == 2).sum() == 1 and 3 in LABELS[first]
    assert abs(len(second) - fraction * 66) <= 1.5
    again = stratified_split(LABELS, fraction, seed=3)
    assert (again[1] == second).all() and (stratified_split(LABELS, fraction, seed=4)[1][:5] != second[:5]).any()


def test_split_of_many_small_classes_keeps_the_share():
    labels = np.repeat(np.arange(40), 3)
    assert len(stratified_split(labels, 0.4)[1]) == 48


def test_subset_per_class_is_nested():
    labels = LABELS[:63]
    small, large = subset_per_class(labels, 2, seed=1), subset_per_class(labels, 5, seed=1)
    assert np.bincount(labels[small]).tolist() == [2, 2] and set(small) < set(large)
    with pytest.raises(DataError, match="k=3, but class 2 has 2 images"):
        subset_per_class(LABELS, 3)
    with pytest.raises(DataError, match="k=0"):
        subset_per_class(LABELS, 0)


def test_label_fraction_keeps_every_class_and_is_nested():
    chosen = {f: label_fraction(LABELS, f, seed=2) for f in (0.01, 0.1, 0.5, 1.0)}
    assert np.bincount(LABELS[chosen[0.01]]).tolist() == [1, 1, 1, 1]
    assert np.bincount(LABELS[chosen[0.1]]).tolist() == [5, 1, 1, 1]
    assert set(chosen[0.01]) < set(chosen[0.1]) < set(chosen[0.5]) < set(chosen[1.0]) == set(range(66))
    with pytest.raises(DataError, match="fraction=0 "):
        label_fraction(LABELS, 0)
