"""Clusters of a network's features: k-means of a set of images, and the nearest centroid for any other image.

    f = layer of the network for the central view, pooled to a grid        kept on the disk, float16
    g = unit length of the first principal components of f                 both optional
    cluster of an image = argmin_k |g - c_k|,  c = k-means of g             faiss, on a sample where there are many

Clusters are kept as a folder that holds all that is needed to name the cluster of a new image: the network
(backbone.json, backbone.safetensors), centroids and projection (clusters.npz), settings and sizes (clusters.json).
Such a folder is a teacher of its network's features, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.data.images import Images, ImageSpec
from attar.errors import AttarError, CheckpointError, RecipeError
from attar.models.backbones import LAYER_NAMES
from attar.models.layers import LayerFeatures, laid_out
from attar.models.saved import file_digest, load_backbone, save_backbone
from attar.models.teachers import FrozenTeacher, cache_answers, renormalised
from attar.views.augmentation import CentreView

logger = logging.getLogger("attar")

FORMAT = "attar.clusters/1"
BLOCK_VALUES = 1 << 25  # features held at once while images are assigned: 128 MB of float32


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How features become clusters.

    layer: "features", or the name of a map of the network, pooled to grid x grid. pca_dim: principal components kept
    (not whitened); None for all. normalise: to unit length, after that. images_per_cluster: where there are more,
    k-means sees a random sample of this size. min_cluster_size: smaller clusters are dissolved into their neighbours.
    """

    num_clusters: int
    layer: str = "features"
    grid: int = 1
    pca_dim: int | None = None
    normalise: bool = True
    kmeans_iterations: int = 50
    images_per_cluster: int = 256
    min_cluster_size: int = 5
    seed: int = 0

    @classmethod
    def of(cls, recipe: Any, *, seed: int) -> ClusterSettings:
        """Out of a recipe that has fields of these names."""
        return cls(**{f.name: getattr(recipe, f.name) for f in fields(cls) if f.name != "seed"}, seed=seed)

    def check(self, num_images: int) -> None:
        """Raises RecipeError where this many images cannot be clustered so."""
        numbers = ("num_clusters", "grid", "kmeans_iterations", "images_per_cluster", "min_cluster_size")
        for name in numbers if self.pca_dim is None else (*numbers, "pca_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name}={value!r} is not accepted; give a whole number, 1 or more.")
        if not isinstance(self.normalise, bool):
            raise RecipeError(f"normalise={self.normalise!r} is not accepted; give true or false.")
        most = num_images // self.min_cluster_size
        if not 2 <= self.num_clusters <= most:
            raise RecipeError(
                f"num_clusters={self.num_clusters} does not suit {num_images} images; it must be at least 2, and leave "
                f"{self.min_cluster_size} images a cluster (min_cluster_size). "
                + (f"Try num_clusters={min(max(num_images // 50, 2), most)}." if most >= 2 else "Lower that one.")
            )
        if self.layer == "features" and self.grid != 1:
            raise RecipeError(f"grid={self.grid} would be ignored: features are pooled. Name a layer, or leave it out.")


@dataclass(frozen=True)
class Projection:
    """What is done to features before they are compared. mean (D,), directions (D, E), or None for neither."""

    mean: np.ndarray | None
    directions: np.ndarray | None
    normalise: bool

    @classmethod
    def of(cls, features: np.ndarray, settings: ClusterSettings) -> Projection:
        if settings.pca_dim is None:
            return cls(None, None, settings.normalise)
        if not 1 <= settings.pca_dim <= features.shape[1]:
            raise RecipeError(
                f"pca_dim={settings.pca_dim} does not suit features of width {features.shape[1]}; it must be between "
                f"1 and {features.shape[1]}."
            )
        mean = features.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((features.shape[1],) * 2)
        for rows in np.array_split(features, max(features.size // BLOCK_VALUES, 1)):
            covariance += (rows - mean).T @ (rows - mean)
        directions = np.linalg.eigh(covariance)[1][:, ::-1][:, : settings.pca_dim]  # variances rise
        return cls(mean.astype(np.float32), directions.astype(np.float32), settings.normalise)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, E)."""
        rows = np.asarray(features, dtype=np.float32)
        if self.mean is not None and self.directions is not None:
            rows = rows @ self.directions - self.mean @ self.directions  # a table as wide as the features is not copied
        if self.normalise:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(rows)


def kmeans(rows: np.ndarray, settings: ClusterSettings) -> np.ndarray:
    """Centroids float32 (K, E) of rows (N, E). Clusters that run empty are split off full ones meanwhile."""
    import faiss

    runner = faiss.Kmeans(
        rows.shape[1],
        settings.num_clusters,
        niter=settings.kmeans_iterations,
        seed=settings.seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),  # the sample is drawn by us
    )
    runner.train(rows)
    return np.asarray(runner.centroids, dtype=np.float32)


def nearest(
    table: np.ndarray, ids: np.ndarray, projection: Projection, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of these rows of a table, int64 (N,), and the distance to it, float32 (N,); in blocks."""
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    block = max(BLOCK_VALUES // table.shape[1], 1)
    found = [index.search(projection(table[ids[i : i + block]]), 1) for i in range(0, len(ids), block)]
    squares, numbers = (np.concatenate([f[part][:, 0] for f in found]) for part in (0, 1))
    lost = ~np.isfinite(squares) | (numbers < 0)
    if lost.any():
        raise AttarError(
            f"the features of {lost.sum()} of {len(ids)} images are not finite (first: image {ids[lost][0]}), so they "
            "belong to no cluster; another layer, or a network whose training ended well, gives finite ones."
        )
    return numbers, np.sqrt(np.maximum(squares, 0))


def cluster(
    table: np.ndarray, ids: np.ndarray, settings: ClusterSettings
) -> tuple[Projection, np.ndarray, dict[str, Any]]:
    """Cluster features.

    Args:
        table: (num_ids, D), in memory or memory-mapped: a sample and blocks are read, never the whole. ids: (N,), its
            rows that are there.

    Returns:
        The projection; the centroids of the clusters that are kept (K, E); and what happened, in numbers.
    """
    settings.check(len(ids))
    wanted = min(len(ids), settings.num_clusters * settings.images_per_cluster)
    drawn = np.sort(np.random.default_rng(settings.seed).permutation(len(ids))[:wanted])
    sample = np.asarray(table[ids[drawn]], dtype=np.float32)
    if not np.isfinite(sample).all():
        raise AttarError(
            f"the features of layer {settings.layer} are not all finite (or above 65504, the largest number of the "
            "table they are kept in); take another layer, or another network."
        )
    projection = Projection.of(sample, settings)
    rows = projection(sample)
    del sample
    centroids = kmeans(rows, settings)
    sizes = np.bincount(nearest(table, ids, projection, centroids)[0], minlength=settings.num_clusters)
    kept = sizes >= min(max(settings.min_cluster_size, 1), sizes.max())
    numbers = {
        "asked_for": settings.num_clusters,
        "empty": int((sizes == 0).sum()),
        "dissolved": int((~kept & (sizes > 0)).sum()),
        "images_of_dissolved": int(sizes[~kept].sum()),
        "num_images": len(ids),
        "num_sampled": wanted,
    }
    return projection, centroids[kept], numbers


class Clusters:
    """A frozen network with centroids of its features: what names the cluster of an image.

    num_clusters: the clusters that are kept. numbers: what became of those asked for. digest: of all that decides.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        settings: ClusterSettings,
        projection: Projection,
        centroids: np.ndarray,
        numbers: dict[str, Any],
    ):
        self.teacher, self.settings, self.projection = teacher, settings, projection
        self.centroids, self.numbers = centroids, numbers
        self.image, self.name = teacher.image, teacher.name
        self.num_clusters = self.num_features_out = len(centroids)
        self._named: tuple[Any, Named] | None = None
        text = json.dumps([teacher.digest, asdict(settings)])
        self.digest = hashlib.sha256(text.encode() + centroids.tobytes()).hexdigest()

    def assign(self, images: Images, *, folder: Path | None, device: torch.device, show_progress: bool = True) -> Named:
        """The cluster of each image, whether or not it was among those that were clustered; the last answer is kept,
        since a training asks for the same one several times."""
        asked = (images.digest, images.canvas_size, images.channels)
        if self._named is None or self._named[0] != asked:
            with features_of(
                self.teacher, self.settings, images, folder=folder, device=device, shown=show_progress
            ) as table:
                found = nearest(table, images.index, self.projection, self.centroids)
            self._named = asked, Named(*found, self.num_clusters)
        return self._named[1]

    def save(self, folder: Path) -> None:
        """Write the folder; backbone.json comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"centroids": self.centroids}
        if self.projection.mean is not None:
            arrays |= {"mean": self.projection.mean, "directions": self.projection.directions}
        np.savez(folder / "clusters.npz", **arrays)
        about = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "numbers": self.numbers,
            "teacher": {"name": self.teacher.name, "digest": self.teacher.digest},
            "sha256": file_digest(folder / "clusters.npz"),
        }
        (folder / "clusters.json").write_text(json.dumps(about, indent=1))
        save_backbone(folder, self.teacher.backbone, self.teacher.image, provenance={"clusters_of": self.teacher.name})


@dataclass(frozen=True)
class Named:
    """cluster, int64 (N,), and distance, float32 (N,), of images in their order; num_clusters there are in all."""

    cluster: np.ndarray
    distance: np.ndarray
    num_clusters: int

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.cluster, minlength=self.num_clusters)

    def numbers(self) -> dict[str, Any]:
        """How even the clusters are: in words of sizes, and the number of even clusters with the same entropy."""
        sizes = self.sizes
        share = sizes[sizes > 0] / sizes.sum()
        return {
            "num_clusters": self.num_clusters,
            "without_images": int((sizes == 0).sum()),
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "effective": round(float(np.exp(-(share * np.log(share)).sum())), 1),
            "mean_distance": round(float(self.distance.mean()), 4),
        }


def check_grid(grid: int, layer: str, feature_map: Tensor) -> None:
    """Raises RecipeError for a grid that is finer than the map, which would stay as it is."""
    height, width = laid_out(feature_map).shape[2:]
    if grid > max(height, width):
        raise RecipeError(
            f"grid={grid} is finer than {layer}, a map of {height} x {width} places; give {max(height, width)} or less."
        )


class _Layer:
    """A frozen network as a teacher of one of its layers."""

    classes: tuple[str, ...] = ()  # features name none

    def __init__(self, teacher: FrozenTeacher, settings: ClusterSettings):
        self.teacher = teacher
        plain = settings.layer == "features"
        self.network = (
            teacher.backbone if plain else LayerFeatures(teacher.backbone, [settings.layer], side=settings.grid)
        )
        self.network.eval()
        if not plain:
            check_grid(settings.grid, settings.layer, teacher.backbone.stages_of_blank()[settings.layer])
        self.num_features_out = int(self.network.num_features)
        self.digest = "" if not teacher.digest else f"{teacher.digest} {settings.layer} {settings.grid} {LAYER_NAMES}"

    @torch.no_grad()
    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        self.network.to(images.device)
        return self.network(renormalised(images, image, self.teacher.image)).float()


@contextmanager
def features_of(
    teacher: FrozenTeacher,
    settings: ClusterSettings,
    images: Images,
    *,
    folder: Path | None,
    device: torch.device,
    shown: bool,
) -> Iterator[np.ndarray]:
    """The features of the central view of every image, memory-mapped, (num_ids, D) at its stable id.

    They are kept in `folder` under the digests of network, layer and images; for one use only without a folder, or
    where the network has no digest.
    """
    view = CentreView(teacher.image)
    with tempfile.TemporaryDirectory(prefix="attar-") as passing:
        yield cache_answers(
            _Layer(teacher, settings),  # type: ignore[arg-type]
            images,
            teacher.image,
            lambda batch, _: view(batch),  # type: ignore[arg-type]
            num_views=1,
            folder=folder if folder is not None and teacher.digest else Path(passing),
            key=f"central view of {images.canvas_size} px, {images.channels} channels",
            device=device,
            show_progress=shown,
            smaller="take a layer with fewer features, or a smaller grid",
        ).answers[0]


def find_clusters(
    teacher: FrozenTeacher,
    images: Images,
    settings: ClusterSettings,
    *,
    folder: Path | None,
    device: torch.device,
    show_progress: bool = True,
) -> Clusters:
    """Cluster images by a network's features; found again in `folder` where the same was done before."""
    settings.check(len(images))
    seen = [teacher.image.to_json(), images.canvas_size, images.channels]  # HOG's digest is its name only
    text = json.dumps([teacher.digest, images.digest, seen, asdict(settings), LAYER_NAMES])
    kept = None
    if folder is not None and teacher.digest:
        kept = folder / f"clusters-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if (kept / "backbone.json").is_file():
            return load_clusters(kept, name=teacher.name)
    with features_of(teacher, settings, images, folder=folder, device=device, shown=show_progress) as table:
        projection, centroids, numbers = cluster(table, images.index, settings)
    found = Clusters(teacher, settings, projection, centroids, numbers)
    logger.info(
        "%d clusters of %d asked for: %d were empty, %d had fewer than %d images and were dissolved.",
        len(centroids), numbers["asked_for"], numbers["empty"], numbers["dissolved"], settings.min_cluster_size,
    )  # fmt: skip
    if kept is not None:
        beside = kept.with_name(f".{kept.name}.{os.getpid()}")
        found.save(beside)
        if not kept.exists():
            os.replace(beside, kept)
    return found


def is_clusters(spec: Any) -> bool:
    return isinstance(spec, (str, Path)) and (Path(spec) / "clusters.json").is_file()


def load_clusters(folder: str | Path, *, name: str = "") -> Clusters:
    """Clusters out of their folder; name: of the network, instead of what is noted there.

    Raises:
        CheckpointError: no clusters, or damaged ones.
    """
    folder = Path(folder)
    if not (folder / "clusters.json").is_file() or not (folder / "backbone.json").is_file():
        raise CheckpointError(f"{folder.absolute()} holds no clusters; make them with attar cluster.")
    try:
        about = json.loads((folder / "clusters.json").read_text())
        settings = ClusterSettings(**about["settings"])
        network, digest, numbers = about["teacher"], about["sha256"], about["numbers"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'clusters.json'} is not a description of clusters: {error}") from error
    if file_digest(folder / "clusters.npz") != digest:
        raise CheckpointError(f"{folder / 'clusters.npz'} is not what was saved; restore it from a copy.")
    with np.load(folder / "clusters.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    backbone, image, _ = load_backbone(folder)
    teacher = FrozenTeacher(backbone, image, digest=network["digest"], name=name or network["name"])
    projection = Projection(arrays.get("mean"), arrays.get("directions"), settings.normalise)
    width = len(arrays["directions"]) if "directions" in arrays else arrays["centroids"].shape[1]
    expected = _Layer(teacher, settings)
    if width != expected.num_features_out:
        raise CheckpointError(
            f"{folder} was made by an earlier version, which called another layer {settings.layer}: its centroids have "
            f"{width} values, that layer has {expected.num_features_out}. Make the clusters anew."
        )
    return Clusters(teacher, settings, projection, arrays["centroids"], numbers)
