"""Tar shards as webdataset writes and reads them."""

import io
import tarfile

import numpy as np
import pytest

from attar.data.load import load_images
from attar.data.sources import open_source
from attar.errors import DataError

wds = pytest.importorskip("webdataset")


@pytest.fixture
def shards(make, tmp_path):
    """Two shards of three and two samples, written by webdataset."""
    number = 0
    for shard, count in enumerate((3, 2)):
        with wds.TarWriter(str(tmp_path / f"set-{shard:03d}.tar")) as writer:
            for _ in range(count):
                image = make.encoded(make.picture(number), "PNG")
                fields = {"species": "cat" if number % 2 else "dog"}
                writer.write({"__key__": f"a/{number:05d}", "png": image, "cls": number % 3, "json": fields})
                number += 1
    return tmp_path


def test_same_samples_as_webdataset_reads(shards):
    source = open_source(f"shards:{shards}/set-{{000..001}}.tar", "auto")
    paths = [str(shards / f"set-00{i}.tar") for i in range(2)]
    expected = list(wds.WebDataset(paths, shardshuffle=False))
    assert [source.items.open(i) for i in range(len(source))] == [s["png"] for s in expected]
    assert source.labels.tolist() == [int(s["cls"]) for s in expected] and source.classes == ("0", "1", "2")
    assert list(source.where)[::4] == ["set-000/a/00000", "set-001/a/00004"]


def test_patterns_and_labels(shards):
    assert len(open_source(f"shards:{shards}/set-*.tar")) == 5
    assert open_source(f"shards:{shards}/set-*.tar").labels is None
    assert open_source(f"shards:{shards}/set-{{000,001}}.tar", "species").classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"no member or json field 'age'; members end in .*cls"):
        open_source(f"shards:{shards}/set-*.tar", "age")
    with pytest.raises(DataError, match=r"no such file: .*set-002\.tar"):
        open_source(f"shards:{shards}/set-{{000..002}}.tar")
    (shards / "bad.tar").write_text("no tar")
    with pytest.raises(DataError, match=r"bad\.tar is not a readable, uncompressed \.tar"):
        open_source(f"shards:{shards}/bad.tar")
    with tarfile.open(shards / "none.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(DataError, match=r"no image in them; found \['txt'\]"):
        open_source(f"shards:{shards}/none.tar")


def test_one_image_a_sample(make, shards):
    with wds.TarWriter(str(shards / "two.tar")) as writer:
        writer.write(
            {"__key__": "x", "jpg": make.encoded(make.picture(), "JPEG"), "png": make.encoded(make.picture(1))}
        )
    assert list(open_source(f"shards:{shards}/two.tar").where) == ["two/x"]


def test_keys_that_are_not_utf8_keep_their_labels(make, tmp_path):
    with tarfile.open(tmp_path / "old.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, key in enumerate(["caf\udce9-0", "plain-1", "caf\udce9-2"]):
            for ending, content in (("png", make.encoded(make.picture(number))), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = open_source(f"shards:{tmp_path}/old.tar", "auto")
    assert source.labels.tolist() == [0, 1, 2] and source.where[0] == "old/caf\\xe9-0"


def test_remote_shards_are_copied_once(shards, own_cache):
    url = f"pipe:cat {shards}/set-000.tar"
    first = load_images(f"shards:{url}", image_size=32)
    assert len(first) == 3 and len(list((own_cache / "shards").iterdir())) == 1
    (shards / "set-000.tar").unlink()
    assert load_images(f"shards:{url}", image_size=32).digest == first.digest
    with pytest.raises(DataError, match="could not be read"):
        open_source("shards:pipe:cat /nowhere/x.tar")


def test_broken_samples_are_listed(make, shards):
    with wds.TarWriter(str(shards / "more.tar")) as writer:
        writer.write({"__key__": "x", "jpg": b""})
        writer.write({"__key__": "y", "jpg": make.encoded(make.picture(), "JPEG")})
    images = load_images(f"shards:{shards}/more.tar", image_size=32)
    assert list(images.where) == ["more/y"] and images.broken[0].where == "more/x"
    assert images.batch(np.array([0])).canvases.shape == (1, 3, 40, 40)
