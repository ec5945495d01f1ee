from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from attar.errors import AttarError
from attar.evaluation import knn
from attar.evaluation.knn import Knn, knn_scores


def rows(n, dim=6, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randint(num_classes, (n,), generator=generator)


def vote(train, labels, test, num_classes, k, temperature):
    """score(c) = sum over the k nearest of class c of exp(cosine / t), by loops."""
    scores = np.zeros((len(test), num_classes))
    for i, query in enumerate(test.double()):
        similar = [float(query @ row / query.norm() / row.norm()) for row in train.double()]
        for j in np.argsort(similar)[::-1][:k]:
            scores[i, labels[j]] += np.exp(similar[j] / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (23, 0.1)])
def test_scores_equal_a_slow_loop(k, temperature):
    (train, labels), (test, _) = rows(23), rows(7, seed=1)
    got = knn_scores(train * 3, labels, test, num_classes=3, k=k, temperature=temperature)
    assert got == pytest.approx(vote(train, labels, test, 3, k, temperature), abs=1e-5)
    assert got.sum(axis=1) == pytest.approx(1)


def test_k_of_one_is_the_nearest_neighbour():
    (train, labels), (test, _) = rows(50), rows(20, seed=1)
    reference = KNeighborsClassifier(1, metric="cosine").fit(train, labels).predict(test)
    assert (knn_scores(train, labels, test, num_classes=3, k=1, temperature=0.07).argmax(1) == reference).all()


def test_infinite_temperature_is_the_majority_vote():
    (train, labels), (test, _) = rows(50), rows(20, seed=1)
    reference = KNeighborsClassifier(7, metric="cosine").fit(train, labels).predict_proba(test)
    assert knn_scores(train, labels, test, num_classes=3, k=7, temperature=np.inf) == pytest.approx(reference)


def test_all_neighbours_give_the_vote_of_class_kernels():
    (train, labels), (test, _) = rows(30), rows(4, seed=1)
    kernel = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T / 0.1).exp()
    by_class = kernel @ F.one_hot(labels, 3).float()
    reference = by_class / by_class.sum(1, keepdim=True)
    assert knn_scores(train, labels, test, num_classes=3, k=30, temperature=0.1) == pytest.approx(
        reference.numpy(), abs=1e-5
    )


def test_train_on_train_is_perfect_and_random_is_chance(make_subject):
    train, labels = rows(200, dim=16)
    one = Knn(k=1).run(make_subject(train, labels, train, labels))[0].scores[0]
    assert (one.argmax(1) == labels.numpy()).all()
    other, other_labels = rows(600, dim=16, seed=5)
    accuracy = (
        Knn().run(make_subject(train, labels, other, other_labels))[0].scores[0].argmax(1) == other_labels.numpy()
    )
    assert abs(accuracy.mean() - 1 / 3) < 4 * (2 / 9 / 600) ** 0.5


def test_separable_features_are_recognised(make_subject, clusters):
    train, labels = clusters(60)
    test, test_labels = clusters(30, seed=1)
    outcome = Knn().run(make_subject(train, labels, test, test_labels))[0]
    assert (outcome.scores[0].argmax(1) == test_labels).all()
    assert outcome.settings == {"k": 20, "temperature": 0.07}


def test_blocks_and_faiss_find_the_same(monkeypatch):
    (train, labels), (test, _) = rows(300), rows(40, seed=1)
    whole = knn_scores(train, labels, test, num_classes=3, k=9, temperature=0.07)
    monkeypatch.setattr(knn, "BLOCK_VALUES", 7 * 300)
    assert knn_scores(train, labels, test, num_classes=3, k=9, temperature=0.07) == pytest.approx(whole)
    monkeypatch.setattr(knn, "FAISS_ROWS", 100)
    assert knn_scores(train, labels, test, num_classes=3, k=9, temperature=0.07) == pytest.approx(whole, abs=1e-5)


def test_default_k_is_capped_by_the_data(make_subject, clusters):
    values, labels = clusters(9)
    assert Knn().run(make_subject(values, labels, values, labels))[0].settings["k"] == 9


def test_a_k_beyond_the_data_is_an_error(make_subject, clusters):
    values, labels = clusters(9)
    with pytest.raises(AttarError, match=r"k=200 neighbours were asked for, but there are 9 .* Use k from 1 to 9"):
        Knn(k=200).run(make_subject(values, labels, values, labels))
    with pytest.raises(AttarError, match="k=0"):
        Knn(k=0).run(make_subject(values, labels, values, labels))
    with pytest.raises(AttarError, match="temperature=0 is not accepted"):
        Knn(temperature=0).run(make_subject(values, labels, values, labels))
