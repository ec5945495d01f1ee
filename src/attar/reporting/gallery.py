"""The gallery of a run: features, thumbnails and a 2-D map of some images, so that a report needs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.data.images import CanvasBatch, Images, ImageSpec
from attar.models.backbones import evaluation_mode
from attar.views.augmentation import CentreView
from attar.views.boxes import central_boxes
from attar.views.resample import crop_and_resize

THUMBNAIL = 48


@torch.no_grad()
def collect_gallery(
    backbone: nn.Module,
    image: ImageSpec,
    images: Images,
    *,
    out: Path,
    device: torch.device,
    num: int = 600,
    seed: int = 0,
) -> None:
    """Write gallery.npz: features (n, D), thumbnails (n, 48, 48, 3), labels, where, coordinates (n, 2).

    n is `num` or all images; labels are -1 where unknown. The network is asked in eval mode and left as it was.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:num])
    view = CentreView(image)
    features, thumbnails = [], []
    with evaluation_mode(backbone):
        for part in np.array_split(chosen, max(-(-len(chosen) // 128), 1)):
            batch = images.batch(part).to(device)
            features.append(backbone(view(batch)).float().cpu().numpy())
            thumbnails.append(thumbnails_of(batch))
    values = np.concatenate(features)
    arrays: dict[str, Any] = {
        "features": values.astype(np.float16),
        "thumbnails": np.concatenate(thumbnails),
        "labels": np.full(len(chosen), -1) if images.labels is None else images.labels[chosen],
        "classes": np.array(images.classes, dtype=str),
        "where": np.array([str(images.where[i]) if len(images.where) else f"image {images.index[i]}" for i in chosen]),
        "coordinates": map_of(values, seed=seed).astype(np.float32),
    }
    np.savez_compressed(out, **arrays)


def thumbnails_of(batch: CanvasBatch) -> np.ndarray:
    """The central square of each image in colour, uint8 (B, 48, 48, 3)."""
    small = crop_and_resize(batch.canvases, central_boxes(batch.rectangles), THUMBNAIL)[:, :3]
    pixels = (small * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels if pixels.shape[3] == 3 else np.repeat(pixels[..., :1], 3, axis=3)


def collect_cluster_gallery(
    images: Images, cluster: np.ndarray, distance: np.ndarray, *, out: Path, most: int = 24, each: int = 8
) -> None:
    """Write the images nearest to the centroids of some clusters, from the largest cluster to the smallest.

    cluster, distance: (N,) of the images. The file: number (n,), size (n,), distance (n,) the mean one, thumbnails
    (sum of shown, 48, 48, 3), of (sum of shown,) the row of each, and where labels are known the name and the share
    of the most frequent one.
    """
    sizes = np.bincount(cluster)
    ranked = np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(most, len(ranked))).astype(int))]
    members = [np.flatnonzero(cluster == k) for k in chosen]
    shown = [rows[np.argsort(distance[rows], kind="stable")[:each]] for rows in members]
    arrays: dict[str, Any] = {
        "number": chosen,
        "size": sizes[chosen],
        "distance": np.array([distance[rows].mean() for rows in members], np.float32),
        "thumbnails": thumbnails_of(images.batch(np.concatenate(shown))),
        "of": np.repeat(np.arange(len(chosen)), [len(rows) for rows in shown]),
    }
    if images.labels is not None and (images.labels >= 0).all():
        counts = [np.bincount(images.labels[rows]) for rows in members]
        names = [int(c.argmax()) for c in counts]
        arrays["name"] = np.array([images.classes[n] if n < len(images.classes) else str(n) for n in names])
        arrays["share"] = np.array([c.max() / c.sum() for c in counts], np.float32)
    np.savez_compressed(out, **arrays)


def map_of(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """A 2-D map of normalised features in [0, 1]²: PCA, then t-SNE where there are enough points."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if len(rows) < 3 or np.ptp(rows, axis=0).max() < 1e-6:
        return np.full((len(rows), 2), 0.5)
    reduced = PCA(min(30, *rows.shape), random_state=seed).fit_transform(rows)
    flat = np.pad(reduced[:, :2], ((0, 0), (0, 2 - min(reduced.shape[1], 2))))
    if len(rows) >= 50:
        flat = TSNE(
            init=flat * 1e-4 / max(flat[:, 0].std(), 1e-12), perplexity=30, max_iter=500, random_state=seed
        ).fit_transform(reduced)
    low, span = flat.min(axis=0), np.maximum(np.ptp(flat, axis=0), 1e-9)
    return (flat - low) / span
