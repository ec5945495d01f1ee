"""Listing folders, tables, arrays and known sets: order, labels, digest, and the promised errors."""

import json
import os
import pickle

import numpy as np
import pytest

from attar.data.decode import Unusable
from attar.data.listing import PathList, list_folder
from attar.data.sources import open_source
from attar.errors import DataError


def test_path_list_is_a_sequence_of_strings():
    names = ["a", "", "zwei", "ü"]
    paths = PathList.of(names)
    assert list(paths) == names and paths[-1] == "ü" and len(paths) == 4
    assert list(paths[1:3]) == names[1:3]
    assert list(paths.take(np.array([3, 0])).take(np.array([1]))) == ["a"]
    with pytest.raises(IndexError):
        paths[4]
    assert list(pickle.loads(pickle.dumps(paths))) == names


def test_folder_is_listed_sorted_by_path_at_any_depth(make, tmp_path):
    for name in ("b/x.png", "a/deep/er/y.jpg", "a/z.JPG", "c.tif", "a.png", "notes.txt", "README", ".git/h.png"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    listing = list_folder(tmp_path / "f")
    assert list(listing.paths) == ["a/deep/er/y.jpg", "a/z.JPG", "a.png", "b/x.png", "c.tif"]
    assert listing.group_names == ("a", "b") and listing.groups.tolist() == [0, 0, -1, 1, -1]
    assert listing.ignored == {".txt": 1, "": 1}


def test_linked_folders_are_entered_once(make, tmp_path):
    make.folder(tmp_path / "f" / "a", 2)
    (tmp_path / "f" / "a" / "loop").symlink_to(tmp_path / "f")
    (tmp_path / "f" / "same").symlink_to(tmp_path / "f" / "a")
    assert list(list_folder(tmp_path / "f").paths) == ["a/0.png", "a/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text_are_opened_by_their_bytes(make, tmp_path):
    folder = os.fsencode(make.folder(tmp_path / "f", 1))
    os.rename(folder + b"/0.png", folder + b"/\xff.png")
    source = open_source(tmp_path / "f")
    assert source.where[0] == "\\xff.png" and os.path.isfile(source.items.open(0))


def test_folder_labels(make, tmp_path):
    folder = make.folder(tmp_path / "f", 5, classes=("dog", "cat"))
    make.folder(folder, 1)
    (folder / "zebra").mkdir()
    source = open_source(folder, "folder")
    assert source.classes == ("cat", "dog")
    assert dict(zip(source.where, source.labels.tolist())) == {
        "0.png": -1, "cat/1.png": 0, "cat/3.png": 0, "dog/0.png": 1, "dog/2.png": 1, "dog/4.png": 1,
    }  # fmt: skip
    assert open_source(folder).labels is None
    assert open_source(folder, "auto").classes == ("cat", "dog")
    assert open_source(folder / "cat", "auto").labels is None
    with pytest.raises(DataError, match="one sub-folder a class"):
        open_source(folder / "cat", "folder")
    with pytest.raises(DataError, match="no column 'species'"):
        open_source(folder, "species")


def test_digest_follows_names_sizes_and_times_but_not_the_place(make, tmp_path):
    folder = make.folder(tmp_path / "f", 3)
    first = open_source(folder).digest
    assert open_source(folder, "auto").digest == first
    folder.rename(tmp_path / "g")
    assert open_source(tmp_path / "g").digest == first
    os.utime(tmp_path / "g" / "0.png", (1, 1))
    second = open_source(tmp_path / "g").digest
    (tmp_path / "g" / "1.png").rename(tmp_path / "g" / "1b.png")
    assert len({first, second, open_source(tmp_path / "g").digest}) == 3


def test_empty_and_missing_sources(tmp_path):
    with pytest.raises(DataError, match=r"holds no images.*Found no files at all"):
        open_source(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.heic").touch()
    with pytest.raises(DataError, match=r"holds no images.*1 x \.heic, 1 x \.txt"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder.*nowhere.*exists and holds a\.txt, b\.heic"):
        open_source(tmp_path / "nowhere" / "x")
    with pytest.raises(DataError, match=r"ending in \.txt are not accepted.*a folder, a \.csv"):
        open_source(tmp_path / "a.txt")


def test_csv_of_paths(make, tmp_path):
    make.folder(tmp_path / "f", 3)
    (tmp_path / "t.csv").write_text("path,label,age\nf/2.png,cat,3\nf/0.png,,4\nf/9.png,dog,4\n,cat,5\n")
    source = open_source(tmp_path / "t.csv", "label")
    assert list(source.where) == ["f/2.png", "f/0.png", "f/9.png", ""]
    assert source.labels.tolist() == [0, -1, 1, 0] and source.classes == ("cat", "dog")
    assert open_source(tmp_path / "t.csv", "age").classes == ("3", "4", "5")
    assert open_source(tmp_path / "t.csv").labels is None and open_source(tmp_path / "t.csv", "auto").labels is not None
    with pytest.raises(Unusable, match="no path"):
        source.items.open(3)
    with pytest.raises(DataError, match=r"unknown label column 'lable'. Did you mean label"):
        open_source(tmp_path / "t.csv", "lable")
    before = source.digest
    make.picture(9).save(tmp_path / "f" / "9.png")
    assert open_source(tmp_path / "t.csv").digest != before


def test_bad_tables(tmp_path):
    (tmp_path / "a.csv").write_text("picture,label\nx.png,1\n")
    with pytest.raises(DataError, match=r"no column with images; accepted are image.*found picture, label"):
        open_source(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("path,score\nx.png,0.25\n")
    with pytest.raises(DataError, match=r"column score: labels must be classes.*0\.25"):
        open_source(tmp_path / "b.csv", "score")
    (tmp_path / "c.csv").write_text("path\n")
    with pytest.raises(DataError, match="no rows"):
        open_source(tmp_path / "c.csv")
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"not a readable \.parquet"):
        open_source(tmp_path / "d.parquet")


def write_parquet(path, columns, metadata=None, **settings):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **settings)


def test_parquet_of_bytes(make, tmp_path):
    contents = [make.encoded(make.picture(i)) for i in range(7)] + [None]
    columns = {"image": contents, "label": [2, 0, 1, 1, 1, None, 0, 0], "file": [f"{i}.png" for i in range(8)]}
    write_parquet(tmp_path / "t.parquet", columns, {"classes": json.dumps(["a", "b", "c", "d"])}, row_group_size=3)
    source = open_source(tmp_path / "t.parquet", "label")
    assert source.classes == ("a", "b", "c", "d") and source.labels.tolist() == [2, 0, 1, 1, 1, -1, 0, 0]
    items = pickle.loads(pickle.dumps(source.items))
    assert len(items) == 8 and [items.open(i) for i in (6, 0, 3)] == [contents[i] for i in (6, 0, 3)]
    assert source.where[5] == "5.png"
    with pytest.raises(Unusable, match="null"):
        items.open(7)


def test_parquet_as_hugging_face_writes_it(make, tmp_path):
    make.folder(tmp_path, 1)
    inside = make.encoded(make.picture(5))
    info = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    rows = [{"bytes": inside, "path": None}, {"bytes": None, "path": "0.png"}]
    write_parquet(tmp_path / "t.parquet", {"image": rows, "label": [1, 1]}, {"huggingface": json.dumps(info)})
    source = open_source(tmp_path / "t.parquet", "label")
    assert source.classes == ("no", "yes") and source.labels.tolist() == [1, 1]
    assert source.items.open(0) == inside and source.items.open(1) == tmp_path / "0.png"


def test_sample_of_a_large_parquet_touches_few_row_groups(tmp_path):
    write_parquet(tmp_path / "t.parquet", {"image": [b"x"] * 400}, row_group_size=4)
    sample = open_source(tmp_path / "t.parquet").items.sample(16)
    assert len(np.unique(sample // 4)) == 8 and sample[0] == 0 and sample.max() >= 396


def test_npz(tmp_path):
    images = np.arange(5 * 6 * 4, dtype=np.uint8).reshape(5, 6, 4)
    np.savez(
        tmp_path / "a.npz", images=images, labels=[1, 0, 1, 0, -5], coarse_labels=[7, 7, 9, 9, 9], classes=["n", "y"]
    )
    source = open_source(tmp_path / "a.npz")
    assert source.items.pixels.shape == (5, 6, 4, 1) and source.classes == ("n", "y")
    assert source.labels.tolist() == [1, 0, 1, 0, -1]
    assert open_source(tmp_path / "a.npz", "coarse_labels").classes == ("7", "9")
    with pytest.raises(DataError, match="no array 'species' for the labels; found images"):
        open_source(tmp_path / "a.npz", "species")
    np.savez(tmp_path / "b.npz", pixels=images)
    with pytest.raises(DataError, match="no array `images`; found pixels"):
        open_source(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        open_source(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        open_source(tmp_path / "d.npz")


def test_npz_of_encoded_strips(make, tmp_path):
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    strips = [make.encoded(Image.fromarray(part.reshape(-1, 8, 3))) for part in (images[:3], images[3:])]
    offsets = np.cumsum([0] + [len(s) for s in strips])
    flat = np.frombuffer(b"".join(strips), np.uint8)
    np.savez(
        tmp_path / "s.npz", images=flat, offsets=offsets, labels=np.arange(5, dtype=np.uint8), classes=list("abcde")
    )
    source = open_source(tmp_path / "s.npz")
    assert (source.items.pixels == images).all() and source.classes == tuple("abcde")
    broken = [make.encoded(Image.fromarray(images[0][:, :5]))]
    np.savez(tmp_path / "t.npz", images=np.frombuffer(broken[0], np.uint8), offsets=[0, len(broken[0])])
    with pytest.raises(DataError, match="strip of 5 x 8 pixels does not hold whole square"):
        open_source(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), "type float32; accepted is uint8"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), "none of them 0"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels-first"),
    ],
)
def test_bad_arrays(images, message):
    with pytest.raises(DataError, match=message):
        open_source(images)


def test_digits():
    source = open_source("digits")
    assert source.items.pixels.shape == (1797, 8, 8, 1) and source.items.pixels.max() == 255
    assert source.classes == tuple("0123456789") and source.labels[:3].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="brings its own labels"):
        open_source("digits", "parity")


@pytest.mark.slow
def test_many_paths_are_listed_in_little_memory(tmp_path):
    import tracemalloc

    for d in range(100):
        folder = tmp_path / "many" / f"folder_{d:03d}"
        folder.mkdir(parents=True)
        for i in range(1000):
            (folder / f"image_{i:06d}.jpg").touch()
    tracemalloc.start()
    listing = list_folder(tmp_path / "many")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing.paths) == 100_000 and listing.groups[-1] == 99
    assert peak < 100_000 * 150  # a million: 150 MB
