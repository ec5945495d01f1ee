"""The gallery of a run: features, thumbnails and a 2-D map of some images, so that a report needs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.data.images import Images, ImageSpec
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
    view, training = CentreView(image), backbone.training
    backbone.eval()
    features, thumbnails = [], []
    for part in np.array_split(chosen, max(-(-len(chosen) // 128), 1)):
        batch = images.batch(part).to(device)
        features.append(backbone(view(batch)).float().cpu().numpy())
        small = crop_and_resize(batch.canvases, central_boxes(batch.rectangles), THUMBNAIL)[:, :3]
        pixels = (small * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        thumbnails.append(pixels if pixels.shape[3] == 3 else np.repeat(pixels[..., :1], 3, axis=3))
    backbone.train(training)
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
