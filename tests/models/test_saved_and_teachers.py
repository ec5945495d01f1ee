"""Weights on disk are whole or refused; teachers answer in their own terms and never learn."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar import stages
from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.errors import CheckpointError, ShapeError
from attar.models.backbones import build_backbone
from attar.models.encoder import Encoder
from attar.models.heads import MLP
from attar.models.saved import load_backbone, load_head, load_weights, save_backbone, save_head
from attar.models.teachers import CachedTeacher, FrozenTeacher, cache_answers, load_teacher
from attar.train.log import read_json_lines

IMAGE = ImageSpec(size=16, channels=1, mean=(0.4,), std=(0.2,))
OTHER = ImageSpec(size=16, channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("resnet8x0.5", channels=1, image_size=16).eval()
    save_backbone(tmp_path, backbone, IMAGE, provenance={"method": "simclr"})
    return tmp_path, backbone


def test_a_round_trip_gives_bitwise_the_same_features(saved):
    folder, backbone = saved
    loaded, image, provenance = load_backbone(folder)
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(loaded(x), backbone(x)) and not loaded.training
    assert image == IMAGE and provenance["method"] == "simclr" and len(provenance["sha256"]) == 64


def test_what_is_damaged_foreign_or_partial_is_refused(saved, tmp_path):
    folder, backbone = saved
    weights = folder / "backbone.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="digest differs"):
        load_backbone(folder)
    weights.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"covers \d+ of \d+ tensors.*Missing: .*stage1"):
        load_weights(build_backbone("resnet14", channels=1, image_size=16), weights)
    with pytest.raises(CheckpointError, match="other formats can hold code"):
        (folder / "w.pth").write_bytes(b"x")
        load_weights(backbone, folder / "w.pth")
    description = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps({**description, "format": "other"}))
    with pytest.raises(CheckpointError, match="format 'other'"):
        load_backbone(folder)
    (folder / "backbone.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a description"):
        load_backbone(folder)


def test_folders_that_hold_no_backbone_say_why(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_backbone(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is no run"):
        load_backbone(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(CheckpointError, match="not finished; continue it with --resume"):
        load_backbone(tmp_path)


def test_projector_round_trip(tmp_path):
    head = MLP([4, 8, 2]).eval()
    assert load_head(tmp_path, "projector") is None
    save_head(tmp_path, "projector", head)
    x = torch.randn(3, 4)
    assert torch.equal(load_head(tmp_path, "projector")(x), head(x))


def test_encoder_normalises_and_refuses_what_it_was_not_made_for(saved):
    _, backbone = saved
    encode = Encoder(backbone, IMAGE)
    pixels = torch.rand(2, 1, 16, 16)
    assert torch.allclose(encode(pixels), backbone((pixels - 0.4) / 0.2))
    with pytest.raises(ShapeError, match="expected float pixels"):
        encode((pixels * 255).byte())
    with pytest.raises(ShapeError, match=r"\(B, 1, 16, 16\)"):
        encode(torch.rand(2, 3, 16, 16))


def test_a_teacher_receives_its_own_normalisation_and_size_and_stays_frozen(saved):
    _, backbone = saved
    teacher = FrozenTeacher(backbone, IMAGE)
    pixels, index = torch.rand(3, 1, 16, 16), torch.arange(3)
    wanted = backbone((pixels - 0.4) / 0.2)
    found = teacher((pixels - 0.5) / 0.5, index, OTHER)
    assert torch.allclose(found, wanted, atol=1e-5) and not found.requires_grad
    assert not any(p.requires_grad for p in backbone.parameters()) and not backbone.training
    large = torch.rand(3, 1, 32, 32)
    small = F.interpolate(large, size=(16, 16), mode="bilinear", antialias=True)
    spec = ImageSpec(size=32, channels=1, mean=IMAGE.mean, std=IMAGE.std)
    assert torch.allclose(teacher(large, index, spec), backbone(small), atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher(pixels, index, IMAGE).dtype == torch.float32
    with pytest.raises(ShapeError, match="--channels 1"):
        teacher(torch.rand(2, 3, 16, 16), index[:2], ImageSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))


def test_a_cache_answers_by_stable_id_and_view():
    answers = np.arange(24, dtype=np.float16).reshape(2, 4, 3)
    answers[:, 2] = np.nan
    teacher = CachedTeacher(answers, digest="")
    index = torch.tensor([3, 0, 1])
    assert torch.equal(teacher(None, index, IMAGE, view=0), torch.tensor(answers[0][[3, 0, 1]]).float())
    assert torch.equal(teacher(None, index, IMAGE, view=3), torch.tensor(answers[1][[3, 0, 1]]).float())
    with pytest.raises(ShapeError, match="no answer for image 2"):
        teacher(None, torch.tensor([0, 2]), IMAGE)
    with pytest.raises(ShapeError, match="holds 4 ids, but image 9"):
        teacher(None, torch.tensor([9]), IMAGE)


def test_a_cache_file_is_computed_once(saved, tmp_path):
    _, backbone = saved
    images = load_images(np.random.default_rng(0).integers(0, 256, (10, 16, 16), np.uint8), image_size=16)
    images = images.subset(np.array([7, 2, 5]))
    asked = []

    def view_of(batch, view):
        asked.append(view)
        return (batch.canvases.float() / 255 - 0.4) / 0.2 + view

    teacher = FrozenTeacher(backbone, IMAGE, digest="a")
    common = dict(num_views=2, folder=tmp_path / "cache", device=torch.device("cpu"), show_progress=False)
    first = cache_answers(teacher, images, IMAGE, view_of, key="k", **common)
    again = cache_answers(teacher, images, IMAGE, view_of, key="k", **common)
    assert asked == [0, 1] and len(list((tmp_path / "cache").iterdir())) == 1
    batch = images.batch(np.array([1]))
    wanted = teacher(view_of(batch, 1), batch.index, IMAGE)
    assert torch.allclose(first(None, torch.tensor([2]), IMAGE, view=1), wanted, rtol=1e-2, atol=1e-3)
    assert np.array_equal(first.answers, again.answers, equal_nan=True)
    cache_answers(teacher, images, IMAGE, view_of, key="other", **common)
    assert asked.count(0) == 2


def test_a_pass_that_was_stopped_goes_on_where_it_was(saved, tmp_path, monkeypatch):
    images = load_images(np.random.default_rng(0).integers(0, 256, (10, 16, 16), np.uint8), image_size=16)
    teacher, asked = FrozenTeacher(saved[1], IMAGE, digest="a"), []
    common = dict(num_views=2, key="k", device=torch.device("cpu"), show_progress=False, batch_size=4)

    def view_of(batch, view):
        asked.append((view, batch.index.tolist()))
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        return (batch.canvases.float() / 255 - 0.4) / 0.2 + view

    monkeypatch.setattr("attar.models.teachers._GrowingTable.SECONDS_BETWEEN_NOTES", 0)
    stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        cache_answers(teacher, images, IMAGE, view_of, folder=tmp_path / "a", **common)
    assert not list((tmp_path / "a").glob("teacher-????????????????.npy"))
    stop_at = None
    resumed = cache_answers(teacher, images, IMAGE, view_of, folder=tmp_path / "a", **common)
    assert asked[4:] == [(1, [4, 5, 6, 7]), (1, [4, 5, 6, 7]), (1, [8, 9])], "what was noted is not asked again"
    assert [file.suffix for file in (tmp_path / "a").iterdir()] == [".npy"], "nothing is left behind"
    whole = cache_answers(teacher, images, IMAGE, view_of, folder=tmp_path / "b", **common)
    assert np.array_equal(resumed.answers, whole.answers)

    stop_at = len(asked) + 5
    with pytest.raises(KeyboardInterrupt):
        cache_answers(teacher, images, IMAGE, view_of, folder=tmp_path / "c", **common)
    next((tmp_path / "c").glob("*.partial.npy")).unlink()
    for stop_at in (len(asked) + 1, None):  # the old note says nothing of the new table
        with nullcontext() if stop_at is None else pytest.raises(KeyboardInterrupt):
            anew = cache_answers(teacher, images, IMAGE, view_of, folder=tmp_path / "c", **common)
    assert np.array_equal(anew.answers, whole.answers)


def test_two_who_ask_the_same_wait_for_one_another(saved, tmp_path, caplog):
    images = load_images(np.zeros((10, 16, 16), np.uint8), image_size=16)
    teacher, asked, begun, go = FrozenTeacher(saved[1], IMAGE, digest="a"), [], threading.Event(), threading.Event()
    common = dict(num_views=1, folder=tmp_path, key="k", device=torch.device("cpu"), show_progress=False)

    def view_of(batch, view):
        asked.append(view)
        begun.set()
        assert go.wait(60)
        return batch.canvases.float() / 255

    def ask():
        return cache_answers(teacher, images, IMAGE, view_of, **common)

    with ThreadPoolExecutor(2) as pool, caplog.at_level("INFO", logger="attar"):
        first = pool.submit(ask)
        assert begun.wait(60)
        second = pool.submit(ask)
        while "waiting for it" not in caplog.text and not second.done():
            time.sleep(0.01)
        go.set()
        assert np.array_equal(first.result().answers, second.result().answers)
    assert asked == [0] and len(list(tmp_path.glob("teacher-*"))) == 1


def test_a_cache_that_does_not_fit_on_the_disk_is_refused(saved, tmp_path, monkeypatch):
    images = load_images(np.zeros((10, 16, 16), np.uint8), image_size=16)
    teacher = FrozenTeacher(saved[1], IMAGE, digest="a")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    common = dict(num_views=2, folder=tmp_path / "cache", key="k", device=torch.device("cpu"))
    for smaller, text in (("buy another", "on another disk, or buy another."), ("", "on another disk.$")):
        with pytest.raises(CheckpointError, match=r"need 0 MB in .*cache.*" + text):
            cache_answers(teacher, images, IMAGE, lambda *_: pytest.fail("asked"), smaller=smaller, **common)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_which_output_a_teacher_gives(saved):
    folder, backbone = saved
    assert load_teacher(folder).num_features_out == backbone.num_features
    with pytest.raises(CheckpointError, match="has kept no projector"):
        load_teacher(folder, output="embedding")
    save_head(folder, "projector", MLP([backbone.num_features, 5]))
    assert load_teacher(folder).num_features_out == load_teacher(folder, output="embedding").num_features_out == 5
    assert load_teacher(folder, output="features").num_features_out == backbone.num_features
    assert load_teacher(folder).digest != load_teacher(folder, output="features").digest


def test_a_cached_teacher_trains_the_student_as_the_live_one_on_the_same_views(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16, 16), np.uint8)
    common = dict(backbone="resnet8x0.5", image_size=16, batch_size=16, precision="fp32", progress=False)
    stages.pretrain(pixels, out=tmp_path / "teacher", epochs=1, **common)
    losses = {}
    for name, settings in (("live", {}), ("cached", {"teacher_views": 1})):
        stages.distill(
            pixels,
            teacher=tmp_path / "teacher",
            out=tmp_path / name,
            epochs=1,  # one epoch: the live teacher sees view 0, the one that is cached
            cache=tmp_path / "cache",
            settings={"queue_length": 32, **settings},
            **common,
        )
        losses[name] = [row["loss"] for row in read_json_lines(tmp_path / name / "metrics.jsonl")]
    assert losses["cached"] == pytest.approx(losses["live"], rel=2e-3)


def test_a_frozen_teacher_answers_in_full_precision_whatever_the_student_computes_in(saved):
    teacher = FrozenTeacher(saved[1], IMAGE)
    x, ids = torch.randn(4, 1, 16, 16), torch.arange(4)
    exact = teacher(x, ids, IMAGE), teacher.features(x, IMAGE), teacher.stages(x, IMAGE)["stage1"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = teacher(x, ids, IMAGE), teacher.features(x, IMAGE), teacher.stages(x, IMAGE)["stage1"]
    assert all(torch.equal(a, b) for a, b in zip(exact, under))
