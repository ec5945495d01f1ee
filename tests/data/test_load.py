"""The pack: content, resuming after a kill, changed files, no room; and what load_images promises."""

import json
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from attar.data.decode import decode
from attar.data.load import load_images
from attar.data.pack import Pack, PackSpec
from attar.data.sources import open_source
from attar.data.statistics import image_spec, measure_statistics
from attar.data.stores import ArrayStore, PackStore, StreamStore
from attar.errors import DataError

KINDS = {"pack": None, "stream": 0}  # max_cache_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", ["auto", 1])
def test_everything_broken_is_listed_and_nothing_stops(make, tmp_path, caplog, kind, channels):
    good, broken = make.zoo(tmp_path / "zoo")
    images = load_images(tmp_path / "zoo", image_size=32, channels=channels, max_cache_bytes=KINDS[kind], workers=2)
    assert isinstance(images.store, PackStore if kind == "pack" else StreamStore)
    assert images.channels == (1 if channels == 1 else 3)
    assert set(images.where) == good
    assert {b.where for b in images.broken} == set(broken)
    assert all(broken[b.where] in b.reason for b in images.broken)
    assert f"{len(broken)} of {len(good) + len(broken)} images are broken" in caplog.text
    everything = sorted(good | set(broken), key=lambda name: name.split("/"))
    assert [everything[i] for i in images.index] == list(images.where)  # ids count the broken ones too
    batch = images.batch(np.arange(len(images)))
    for i, name in enumerate(images.where):
        pixels = decode(tmp_path / "zoo" / name, canvas=images.canvas_size, channels=images.channels)
        height, width = pixels.shape[:2]
        assert batch.rectangles[i].tolist() == [0, 0, height, width]
        assert (batch.canvases[i].permute(1, 2, 0).numpy()[:height, :width] == pixels).all()
        assert batch.canvases[i][:, height:].sum() == 0 and batch.canvases[i][:, :, width:].sum() == 0


def test_canvas_size(make, tmp_path):
    folder = make.folder(tmp_path / "f", 2)  # 48 x 32
    assert load_images(folder, image_size=32).canvas_size == 40
    assert load_images(folder, image_size=30).canvas_size == 40  # 37.5 rounded up to a multiple of 8
    assert load_images(folder, image_size=224).canvas_size == 48  # never larger than the largest


def test_channels(make, tmp_path):
    folder = make.folder(tmp_path / "f", 2)
    assert load_images(folder, image_size=16).channels == 3
    make.picture(7).convert("L").save(folder / "0.png")
    make.picture(7).convert("L").save(folder / "1.png")
    assert load_images(folder, image_size=16).channels == 1
    with pytest.raises(DataError, match="channels='three'"):
        load_images(folder, image_size=16, channels="three")
    with pytest.raises(DataError, match="image_size=0"):
        load_images(folder, image_size=0)


def test_labels_follow_the_usable_images(make, tmp_path):
    folder = make.folder(tmp_path / "f", 6, classes=("a", "b"))
    (folder / "a" / "0.png").write_bytes(b"")
    images = load_images(folder, image_size=16, labels="folder")
    assert images.labels.tolist() == [0, 0, 1, 1, 1] and images.index.tolist() == [1, 2, 3, 4, 5]
    assert images.batch(np.array([4, 0])).labels.tolist() == [1, 0]
    assert images.num_ids == 6


def test_no_usable_image(make, tmp_path):
    (tmp_path / "f").mkdir()
    for i in range(3):
        (tmp_path / "f" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 3 files is a usable image, e\.g\. 0\.jpg \(empty file"):
        load_images(tmp_path / "f", image_size=16)


def test_files_that_may_have_been_meant_are_named(make, tmp_path, caplog):
    folder = make.folder(tmp_path / "f", 1)
    (folder / "phone.HEIC").touch()
    load_images(folder, image_size=16)
    assert "ignored files that may be images: 1 x .heic" in caplog.text


def test_second_call_decodes_nothing(make, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "attar")
    folder = make.folder(tmp_path / "f", 4)
    first = load_images(folder, image_size=16)
    assert "decoding 4 images once to 24 x 24 x 3, 0.0 MB in" in caplog.text
    monkeypatch.setattr("attar.data.pack.decode", None)  # would raise
    second = load_images(folder, image_size=16)
    assert (first.batch(np.arange(4)).canvases == second.batch(np.arange(4)).canvases).all()


def test_changed_file_gives_a_new_pack_and_names_the_old(make, tmp_path, caplog):
    caplog.set_level(logging.INFO, "attar")
    folder = make.folder(tmp_path / "f", 3)
    before = load_images(folder, image_size=32)
    make.picture(77).save(folder / "1.png")
    after = load_images(folder, image_size=32)
    assert before.digest != after.digest and before.store.path != after.store.path
    changed = before.batch(np.arange(3)).canvases != after.batch(np.arange(3)).canvases
    assert changed.flatten(1).any(1).tolist() == [False, True, False]
    assert "1 older packs of this source" in caplog.text


KILLED = """
import os, sys
import attar.data.pack as pack
from attar.data.load import load_images
real, calls = pack.decode, []
def decode(*args, **settings):
    calls.append(1)
    if len(calls) > 40:
        os.kill(os.getpid(), 9)
    return real(*args, **settings)
pack.decode = decode
load_images(sys.argv[1], image_size=16, workers=1, progress=False)
"""


def test_killed_pack_goes_on(make, tmp_path, monkeypatch):
    folder = make.folder(tmp_path / "f", 60)
    for name in ("0.png", "9.png"):  # in the first and in the last chunk
        (folder / name).write_bytes(b"")
    died = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    half = next((tmp_path / "cache" / "packs").glob("*/done.bin")).read_bytes()
    assert half == b"\1\1\0\0"  # chunks of 16
    (next((tmp_path / "cache" / "packs").glob("*/broken.jsonl"))).open("a").write(
        '{"index": 33, "rea'
    )  # cut by the kill
    import attar.data.pack as pack

    real, opened = pack.decode, []
    monkeypatch.setattr(pack, "decode", lambda data, **s: opened.append(os.path.basename(data)) or real(data, **s))
    images = load_images(folder, image_size=16, workers=2)
    names = sorted(os.listdir(folder))
    assert sorted(opened) == names[32:]
    assert len(images) == 58 and [b.where for b in images.broken] == ["0.png", "9.png"]
    for i in (0, 30, 31, 57):
        pixels = decode(folder / images.where[i], canvas=images.canvas_size, channels=3)
        canvas = images.batch(np.array([i])).canvases[0].permute(1, 2, 0).numpy()
        assert (canvas[: pixels.shape[0], : pixels.shape[1]] == pixels).all()


def test_two_builders_of_one_pack_agree(make, tmp_path):
    source = open_source(make.folder(tmp_path / "f", 20))
    (tmp_path / "f" / "0.png").write_bytes(b"")
    spec = PackSpec(source.digest, 20, 24, 3, with_pixels=True)
    first, second = Pack(tmp_path / "p", spec), Pack(tmp_path / "p", spec)
    first._build_chunk(source, 0)
    second.build(source, workers=2, progress=False)
    first.build(source, workers=2, progress=False)
    assert first.done().all() and list(second.broken()) == [0] and (first.sizes() == second.sizes()).all()


def test_no_room(make, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "attar")
    folder = make.folder(tmp_path / "f", 4)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("attar.data.pack.shutil.disk_usage", lambda path: usage)
    images = load_images(folder, image_size=32)
    assert isinstance(images.store, StreamStore) and "decoding on demand instead" in caplog.text
    with pytest.raises(DataError, match=r"take 0\.0 MB more in .*--cache.*max_cache_bytes"):
        load_images(folder, image_size=32, max_cache_bytes=10**9)


def test_cache_that_cannot_be_written(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the image cache.*--cache"):
        load_images(make.folder(tmp_path / "f", 1), image_size=16, cache=tmp_path / "file")


def test_stream_survives_a_file_that_vanishes(make, tmp_path, caplog):
    folder = make.folder(tmp_path / "f", 4)
    images = load_images(folder, image_size=32, max_cache_bytes=0)
    whole = images.batch(np.arange(4)).canvases
    (folder / "1.png").unlink()
    (folder / "2.png").unlink()
    now = images.batch(np.arange(4)).canvases
    assert (now[[0, 3]] == whole[[0, 3]]).all() and (now[1] == whole[3]).all()
    assert caplog.text.count("image 1 cannot be read any more (no such file)") == 1
    (folder / "0.png").unlink()
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        images.batch(np.arange(4))


@pytest.mark.parametrize("kind", KINDS)
def test_images_can_be_sent_to_another_process(make, tmp_path, kind):
    images = load_images(make.folder(tmp_path / "f", 30), image_size=32, max_cache_bytes=KINDS[kind])
    first = images.batch(np.arange(30))
    sent = pickle.dumps(images)
    assert len(sent) < 20_000
    assert (pickle.loads(sent).batch(np.arange(30)).canvases == first.canvases).all()


def test_arrays_stay_in_memory(tmp_path, own_cache):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 3), dtype=np.uint8)
    images = load_images(pixels, image_size=32)
    assert isinstance(images.store, ArrayStore) and images.canvas_size == 12 and images.channels == 3
    batch = images.batch(np.array([3, 1, 3]))
    assert (batch.canvases[:, :, :, :8].permute(0, 2, 3, 1).numpy() == pixels[[3, 1, 3]]).all()
    assert batch.canvases[:, :, :, 8:].sum() == 0 and batch.rectangles[0].tolist() == [0, 0, 12, 8]
    assert load_images(pixels, image_size=32, channels=1).batch(np.array([0])).canvases.shape == (1, 1, 12, 12)
    small = load_images(np.zeros((3, 100, 50), np.uint8), image_size=32)
    assert small.canvas_size == 40 and small.batch(np.array([0])).rectangles[0].tolist() == [0, 0, 40, 20]
    assert not own_cache.exists()
    with pytest.raises(DataError, match="5 channels where 3 are wanted"):
        load_images(np.zeros((3, 9, 9, 5), np.uint8), image_size=32, channels=3)


def test_images_are_returned_as_they_are():
    images = load_images("digits", image_size=8)
    assert load_images(images, image_size=224) is images
    with pytest.raises(DataError, match="have 1 channels, asked for are 3"):
        load_images(images, image_size=8, channels=3)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_real_pixels(make, tmp_path, kind):
    folder = make.folder(tmp_path / "f", 5)
    images = load_images(folder, image_size=64, max_cache_bytes=KINDS[kind])
    pixels = np.concatenate([decode(folder / n, canvas=80, channels=3).reshape(-1, 3) for n in images.where]) / 255
    mean, std = measure_statistics(images)
    assert mean == pytest.approx(pixels.mean(0)) and std == pytest.approx(pixels.std(0))
    spec = image_spec(images, 32, crop_fraction=0.875)
    assert (spec.size, spec.channels, spec.mean, spec.crop_fraction) == (32, 3, mean, 0.875)
    assert measure_statistics(images, limit=2, seed=1) == measure_statistics(images, limit=2, seed=1) != (mean, std)


def test_statistics_of_a_constant_channel_stay_above_zero():
    _, std = measure_statistics(load_images(np.zeros((3, 4, 4), np.uint8), image_size=4))
    assert std == pytest.approx((1 / 255,))


def test_pack_says_what_it_is(make, tmp_path):
    images = load_images(make.folder(tmp_path / "f", 2), image_size=16)
    about = json.loads((images.store.path.parent / "pack.json").read_text())
    assert about["digest"] == images.digest and about["num_images"] == 2 and about["canvas_size"] == 24
