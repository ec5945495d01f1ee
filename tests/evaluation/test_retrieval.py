"""recall@k: the image itself is no neighbour, and a random order reaches chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.errors import AttarError
from attar.evaluation.evaluation import evaluate
from attar.evaluation.metrics import chance
from attar.evaluation.retrieval import Retrieval, others
from attar.models.backbones import build_backbone


def recall_by_loop(features, labels, k):
    hits = 0
    rows = [f / np.linalg.norm(f) for f in features]
    for i in range(len(rows)):
        order = sorted((j for j in range(len(rows)) if j != i), key=lambda j: -float(rows[i] @ rows[j]))
        hits += any(labels[j] == labels[i] for j in order[:k])
    return hits / len(rows)


def test_recall_equals_a_loop(make_subject):
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(23, 5)), np.arange(23) % 6
    (outcome,) = Retrieval(k=(3, 1)).run(make_subject(features[:6], labels[:6], features, labels))
    assert list(outcome.by_image) == ["recall@1", "recall@3"]
    for k in (1, 3):
        assert outcome.by_image[f"recall@{k}"].mean() == pytest.approx(recall_by_loop(features, labels, k))
    assert (outcome.scores[0].argmax(1) == labels).mean() == outcome.by_image["recall@1"].mean()


def test_duplicates_do_not_let_an_image_find_itself(make_subject):
    """Ten equal images of ten classes: whoever is found is another."""
    labels = np.arange(10)
    (outcome,) = Retrieval(k=(1, 2)).run(make_subject(np.ones((10, 3)), labels, np.ones((10, 3)), labels))
    assert outcome.by_image["recall@2"].sum() == 0
    kept = others(torch.tensor([[1, 0, 2], [0, 2, 3], [2, 1, 0]]))
    assert kept.tolist() == [[1, 2], [0, 2], [1, 0]]


def test_chance_is_that_of_a_random_order():
    labels = np.repeat([0, 1, 2], [5, 3, 1])
    random = np.random.default_rng(0)
    for k in (1, 2, 8):
        hits = []
        for _ in range(4000):
            i = random.integers(9)
            order = random.permutation([j for j in range(9) if j != i])
            hits.append((labels[order[:k]] == labels[i]).any())
        assert chance(f"recall@{k}", labels, 3) == pytest.approx(np.mean(hits), abs=0.03)


def test_k_beyond_the_images_is_an_error(make_subject):
    subject = make_subject(np.eye(4), [0, 1, 0, 1], np.eye(4), [0, 1, 0, 1])
    with pytest.raises(AttarError, match=r"k=\(4,\) is not accepted; give numbers from 1 to 3"):
        Retrieval(k=(4,)).run(subject)


def test_a_verdict_can_rest_on_it(striped, spec):
    backbone = build_backbone("resnet8", channels=3, image_size=16)
    result = evaluate(
        backbone, spec, striped(60), protocols=("retrieval:1,2",), device="cpu", progress=False, num_resamples=100
    )
    assert {r["metric"] for r in result.rows} == {"recall@1", "recall@2"}
    assert {r["subject"] for r in result.rows} == {"model", "random_init", "pixels", "hog"}
    assert result.verdict.splitlines()[1].startswith("retrieval, recall@1:")
    assert result.value("retrieval", "recall@1", "hog") > result.details["chance"]
