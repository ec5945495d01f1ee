"""Sets known by name, with small local data in their real formats."""

import pickle
import types

import numpy as np
import pytest

from attar.data.load import load_images
from attar.data.named import _of_torchvision
from attar.data.sources import open_source
from attar.errors import DataError, MissingDependency


def write_cifar10(root, number=4):
    """The five training batches and the test batch as torchvision reads them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (number, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(number)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


@pytest.mark.slow
def test_torchvision_set(tmp_path, monkeypatch):
    import torchvision

    write_cifar10(tmp_path / "sets")
    with pytest.raises(DataError, match=r"not found in .*torchvision:CIFAR10:ROOT.*torchvision:CIFAR10:download"):
        open_source(f"torchvision:CIFAR10:{tmp_path / 'sets'}")  # checksums differ
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    images = load_images(f"torchvision:CIFAR10:{tmp_path / 'sets'}", image_size=32)
    assert len(images) == 20 and images.classes == tuple("abcdefghij") and images.labels[:4].tolist() == [0, 1, 2, 3]
    assert len(load_images(f"torchvision:CIFAR10:test:{tmp_path / 'sets'}", image_size=32)) == 4
    with pytest.raises(DataError, match=r"unknown set 'CIFAR11'\. Did you mean CIFAR1"):
        open_source("torchvision:CIFAR11")


def test_other_kinds_of_torchvision_sets(make):
    channels_first = types.SimpleNamespace(data=np.zeros((2, 3, 8, 8), np.uint8), labels=np.array([1, 0]), classes=None)

    class Svhn(types.SimpleNamespace):
        def __len__(self):
            return 2

    assert _of_torchvision("t", Svhn(**vars(channels_first))).items.pixels.shape == (2, 8, 8, 3)

    class Pictures(list):
        classes = ["x", "y"]

    source = _of_torchvision("t", Pictures((make.picture(i), i % 2) for i in range(3)))
    assert source.labels.tolist() == [0, 1, 0] and source.items.open(2).size == (48, 32)


def test_hugging_face(make, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]), age=datasets.Value("int64")
    )
    rows = {"image": [make.picture(i) for i in range(4)], "label": [1, 0, 1, 1], "age": [3, 3, 7, 9]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    images = load_images(f"hf:{tmp_path / 'saved'}", image_size=32, labels="auto")
    assert len(images) == 4 and images.labels.tolist() == [1, 0, 1, 1] and images.classes == ("no", "yes")
    assert (images.digest, images.channels) == (open_source(f"hf:{tmp_path / 'saved'}").digest, 3)
    assert open_source(f"hf:{tmp_path / 'saved'}", "age").classes == ("3", "7", "9")
    with pytest.raises(DataError, match="unknown label column 'species'"):
        open_source(f"hf:{tmp_path / 'saved'}", "species")
    with pytest.raises(DataError, match="could not be opened"):
        open_source(f"hf:{tmp_path / 'nowhere'}")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'attar\[demo\]'"):
        open_source("elpv")


@pytest.mark.real
def test_elpv():
    source = open_source("elpv")
    assert len(source) == 2624 and source.classes == ("functional", "defective")
    assert np.bincount(source.labels).tolist() == [1803, 821]
    assert open_source("elpv", "type").classes == ("mono", "poly")
