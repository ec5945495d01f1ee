"""What clustering would cost at the size of ImageNet, from rates measured on this machine in a minute.

    OMP_NUM_THREADS=1 python benchmarks/cluster_cost.py
    OMP_NUM_THREADS=1 python benchmarks/cluster_cost.py --network vgg16 --pca-dim 256

Measures three rates on one thread: images a second through the network, and the FLOP/s of k-means and of the search for
the nearest centroid, with all clusters but fewer images; then multiplies. Seconds are those of the processor, so that
other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import time

import faiss
import numpy as np
import torch

from attar.models.backbones import build_backbone
from attar.models.clusters import ClusterSettings, Projection, kmeans, nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--pca-dim", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)

    network = build_backbone(given.network, image_size=given.image_size).eval()
    batch = torch.randn(8, 3, given.image_size, given.image_size)
    with torch.inference_mode():
        network(batch)
        began = time.process_time()
        network(batch)
        images_a_second = len(batch) / (time.process_time() - began)

    width = given.pca_dim or network.num_features
    settings = ClusterSettings(num_clusters=given.clusters, kmeans_iterations=2)
    rows = np.random.default_rng(0).normal(size=(4 * given.clusters, width)).astype(np.float32)
    began = time.process_time()
    centroids = kmeans(rows, settings)
    iterations = settings.kmeans_iterations
    kmeans_rate = iterations * 2 * len(rows) * given.clusters * width / (time.process_time() - began)
    began = time.process_time()
    nearest(rows, np.arange(len(rows)), Projection(None, None, normalise=True), centroids)
    search_rate = 2 * len(rows) * given.clusters * width / (time.process_time() - began)

    sampled = min(given.images, given.clusters * settings.images_per_cluster)
    a_pass = 2 * given.images * given.clusters * width
    print(
        json.dumps(
            {
                "settings": vars(given),
                "measured": {
                    "images_a_second": round(images_a_second, 2),
                    "kmeans_gflops": round(kmeans_rate / 1e9, 1),
                    "search_gflops": round(search_rate / 1e9, 1),
                },
                "planned, one thread": {
                    "features_hours": round(given.images / images_a_second / 3600, 1),
                    "kmeans_minutes": round(50 * 2 * sampled * given.clusters * width / kmeans_rate / 60, 1),
                    "search_minutes": round(2 * a_pass / search_rate / 60, 1),
                    "table_gb": round(2e-9 * given.images * network.num_features, 1),
                    "sample_gb": round(4e-9 * sampled * network.num_features, 1),
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
