"""Sets known by name: solar cells of elpv-dataset, torchvision's, Hugging Face's."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.cache import cache_folder
from attar.data.decode import Encoded, Unusable
from attar.data.labels import encode_labels
from attar.data.listing import FileItems, PathList, Source, evenly_spaced
from attar.data.sources import array_source, require_own_labels
from attar.errors import DataError, MissingDependency, unknown_name

logger = logging.getLogger("attar")


def elpv(labels: str | None) -> Source:
    """2,624 electroluminescence images of solar cells, 300 x 300 grey (Buerhop-Lutz et al. 2018; Deitsch et al. 2019).

    labels: "defect" (default; probability of a defect given by experts >= 0.5) or "type" (mono, poly).
    """
    require_own_labels("elpv", labels, ("defect", "type"))
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "the set elpv needs the package elpv-dataset; install it with: pip install 'attar[demo]'"
        )
    logger.info(
        "elpv: solar cell images by S. Deitsch, C. Buerhop-Lutz et al., licence CC BY-NC-SA 4.0 (non-commercial)."
    )
    root = Path(next(iter(found.submodule_search_locations))) / "data"
    with open(root / "labels.csv", encoding="utf-8") as file:  # path probability type, separated by spaces
        rows = [line.split() for line in file if line.strip()]
    paths = PathList.of(row[0] for row in rows)
    sizes = np.array([os.stat(root / row[0]).st_size for row in rows], np.int64)
    digest = hashlib.sha256(paths.hash() + sizes.tobytes()).hexdigest()
    source = Source("elpv", digest, FileItems(root, paths), where=paths)
    if labels == "type":
        source.labels, source.classes = encode_labels([row[2] for row in rows], where="elpv, type")
    else:
        source.labels = np.array([float(row[1]) >= 0.5 for row in rows], np.int64)
        source.classes = ("functional", "defective")
    return source


SPLITS = ("train", "test", "val", "valid", "validation", "unlabeled", "train+unlabeled", "extra", "trainval")


def torchvision_set(text: str, labels: str | None) -> Source:
    """NAME[:SPLIT][:ROOT][:download], e.g. CIFAR10:test:~/sets. Downloads only with :download.

    ROOT: default the folder `torchvision` in attar's cache. SPLIT: default train.
    """
    import torchvision.datasets as sets

    name, *parts = text.split(":")
    download = "download" in parts
    split = next((p for p in parts if p in SPLITS), None)
    root = Path(
        ":".join(p for p in parts if p != "download" and p != split) or cache_folder() / "torchvision"
    ).expanduser()
    known = [n for n in sets.__all__ if n not in ("FakeData", "ImageFolder", "DatasetFolder", "VisionDataset")]
    if name not in known:
        raise DataError(f"torchvision:{text}: {unknown_name('set', name, known)}")
    require_own_labels(f"torchvision:{name}", labels)
    maker = getattr(sets, name)
    accepted = inspect.signature(maker).parameters
    settings: dict[str, Any] = {"root": str(root)}
    if "train" in accepted:
        settings["train"] = split in (None, "train")
    elif "split" in accepted and split:
        settings["split"] = split
    elif split:
        raise DataError(f"torchvision:{text}: {name} has no splits.")
    if download and "download" not in accepted:
        raise DataError(f"torchvision:{text}: {name} cannot be downloaded by torchvision; put it into {root} by hand.")
    if "download" in accepted:
        settings["download"] = download
    try:
        found = maker(**settings)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise DataError(
            f"torchvision:{text}: not found in {root.absolute()} ({str(error).strip().splitlines()[0]}). "
            f"Give the folder, torchvision:{name}:ROOT, or let it be downloaded, torchvision:{name}:download."
        ) from None
    return _of_torchvision(f"torchvision:{name}" + (f":{split}" if split else ""), found)


def _of_torchvision(name: str, found: Any) -> Source:
    targets = next((getattr(found, a) for a in ("targets", "labels", "_labels") if hasattr(found, a)), None)
    if targets is None or len(targets) != len(found):
        targets = [found[i][1] for i in range(len(found))]
    classes = getattr(found, "classes", None)
    encoded, classes = encode_labels(np.asarray(targets).tolist(), where=name, classes=classes)
    pixels = getattr(found, "data", None)
    if pixels is not None and hasattr(pixels, "shape") and len(pixels) == len(found):
        pixels = np.asarray(pixels)
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3):  # SVHN and STL10 store channels first
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        return array_source(pixels, encoded, classes, name=name)
    digest = hashlib.sha256(f"{name} {found!r}".encode()).hexdigest()
    return Source(name, digest, SequenceItems(found, 0), labels=encoded, classes=classes)


def hugging_face(text: str, labels: str | None) -> Source:
    """NAME[:SPLIT], a set of the Hugging Face hub, a local folder it can read, or one written by save_to_disk.

    SPLIT: default train. labels: None, "auto" (`label` where it exists) or a column. The images are decoded into the
    pack once; streaming over the network is not offered.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependency("hf: needs the package datasets; install it with: pip install 'attar[hf]'") from None
    name, _, split = text.partition(":")
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                found = found[split or "train"]
        else:
            found = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # its many kinds of errors all mean: not available under this name
        raise DataError(f"hf:{text}: could not be opened: {type(error).__name__}: {error}") from None
    features = found.features
    column = next((c for c, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise DataError(f"hf:{text}: no column of images; found {', '.join(features)}.")
    source = Source(
        name=f"hf:{text}",
        digest=hashlib.sha256(f"{found._fingerprint} {column}".encode()).hexdigest(),
        items=SequenceItems(found.cast_column(column, datasets.Image(decode=False)), column),
    )
    wanted = "label" if labels == "auto" and "label" in features else labels
    if wanted not in (None, "auto"):
        if wanted not in features:
            raise DataError(f"hf:{text}: {unknown_name('label column', str(wanted), list(features))}")
        names = getattr(features[wanted], "names", None)
        source.labels, source.classes = encode_labels(list(found[wanted]), where=f"hf:{text}, {wanted}", classes=names)
    return source


@dataclass
class SequenceItems:
    """Rows of a sequence made by another library, one at a time: they need not bear several threads."""

    rows: Any
    column: int | str  # where in a row the image is
    _lock: Any = field(init=False, default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self.rows, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self, i: int) -> Encoded:
        with self._lock:
            value = self.rows[int(i)][self.column]
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise Unusable("no bytes (null)")
        return value

    def sample(self, limit: int) -> np.ndarray:
        return evenly_spaced(len(self), limit)
