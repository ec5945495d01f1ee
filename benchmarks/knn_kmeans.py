"""Our kNN vote and faiss' k-means against scikit-learn, on the same features, in one run.

    python benchmarks/knn_kmeans.py
    python benchmarks/knn_kmeans.py --train 50000 --test 10000 --features 512 --clusters 1000

Prints seconds and ratios, and whether both sides agree: the share of equal kNN predictions, and the mean squared
distance to the nearest centroid. Features are drawn around class centres, with a decaying spectrum.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier

from attar.evaluation.knn import knn_scores

NUM_CLASSES = 10
TEMPERATURE = 0.07


def features(n: int, dim: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    spectrum = np.logspace(0, -1.5, dim)
    centres = 0.5 * np.random.default_rng(99).normal(size=(NUM_CLASSES, dim))
    labels = rng.integers(NUM_CLASSES, size=n)
    return ((centres[labels] + rng.normal(size=(n, dim))) * spectrum).astype(np.float32), labels


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The fastest of some runs, and what it returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        began = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - began)
    return best, result


def compare_knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, k: int, repeats: int) -> dict[str, float]:
    inputs = torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test)

    def ours() -> np.ndarray:
        return knn_scores(*inputs, num_classes=NUM_CLASSES, k=k, temperature=TEMPERATURE).argmax(axis=1)

    def theirs() -> np.ndarray:
        weight = lambda distance: np.exp((1 - distance) / TEMPERATURE)  # noqa: E731
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weight)
        return model.fit(train, labels).predict(test)

    own_seconds, own = timed(ours, repeats)
    seconds, predicted = timed(theirs, repeats)
    return {
        "attar_seconds": own_seconds,
        "scikit_learn_seconds": seconds,
        "ratio": seconds / own_seconds,
        "equal_predictions": float((own == predicted).mean()),
    }


def compare_kmeans(train: np.ndarray, *, clusters: int, iterations: int, repeats: int) -> dict[str, float]:
    def ours() -> np.ndarray:
        kmeans = faiss.Kmeans(
            train.shape[1], clusters, niter=iterations, seed=0, max_points_per_centroid=len(train)
        )  # faiss would otherwise fit on 256 points a centroid, which is not the same work
        kmeans.train(train)
        return np.asarray(kmeans.centroids)

    def theirs() -> np.ndarray:
        model = KMeans(clusters, init="random", n_init=1, max_iter=iterations, tol=0.0, random_state=0)
        return model.fit(train).cluster_centers_

    own_seconds, own = timed(ours, repeats)
    seconds, centres = timed(theirs, repeats)
    return {
        "faiss_seconds": own_seconds,
        "scikit_learn_seconds": seconds,
        "ratio": seconds / own_seconds,
        "faiss_distance": distance(train, own),
        "scikit_learn_distance": distance(train, centres),
    }


def distance(rows: np.ndarray, centres: np.ndarray) -> float:
    """Mean squared distance to the nearest centre."""
    squared, _ = faiss.knn(rows, np.ascontiguousarray(centres, dtype=np.float32), 1)
    return float(squared.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=20000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    train, labels = features(given.train, given.features, seed=0)
    test, _ = features(given.test, given.features, seed=1)
    with threadpool_limits(given.threads):
        knn = compare_knn(train, labels, test, k=given.k, repeats=given.repeats)
        kmeans = compare_kmeans(train, clusters=given.clusters, iterations=given.iterations, repeats=given.repeats)
    print(json.dumps({"settings": vars(given), "knn": knn, "kmeans": kmeans}, indent=1))


if __name__ == "__main__":
    main()
