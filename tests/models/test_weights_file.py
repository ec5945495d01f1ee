"""NAME@FILE: files of every kind give the network they were saved from, and nothing that covers it in part does."""

from __future__ import annotations

import collections
import hashlib

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import attar
from attar.errors import BackboneError, CheckpointError
from attar.models.backbones import build_backbone, cached_weights
from attar.models.saved import load_backbone, plain_image, start_from
from attar.models.teachers import load_teacher
from attar.models.weights_file import has_no_size, name_and_file
from attar.pipeline import read_pipeline
from attar.train.run import RunFolder

NAME = "tf_efficientnet_lite0"  # its images are scaled to [-1, 1], unlike those of most others
OWN = "resnet8x0.5"


@pytest.fixture(scope="module")
def whole():
    """As published files are: with a classifier."""
    torch.manual_seed(0)
    network = timm.create_model(NAME).eval()
    for buffer in network.buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5)
    return network


@pytest.fixture
def own():
    torch.manual_seed(0)
    return build_backbone(OWN, channels=1, image_size=8).eval()


def pixels(channels=3, side=64):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def wrapped(state):
    return {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "optimizer": {}}


def old(state):
    return collections.OrderedDict((n, t) for n, t in state.items() if not n.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    "file, made",
    [("w.safetensors", dict), ("w.pth", dict), ("w.bin", dict), ("w.pt", wrapped), ("w.pth", old)],
)
def test_a_file_of_a_published_network_gives_its_features(whole, tmp_path, caplog, file, made):
    path = tmp_path / file
    (save_file if path.suffix == ".safetensors" else torch.save)(made(whole.state_dict()), path)
    with caplog.at_level("INFO", logger="attar"):
        backbone, image, provenance = load_backbone(f"{NAME}@{path}", image_size=64)
    expected = whole.forward_head(whole.forward_features(pixels()), pre_logits=True)
    torch.testing.assert_close(backbone(pixels()), expected)
    assert not backbone.training and image.mean == image.std == (0.5, 0.5, 0.5) and image.size == 64
    assert f"mean (0.5, 0.5, 0.5), standard deviation (0.5, 0.5, 0.5): what timm says of {NAME}" in caplog.text
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance == {"name": NAME, "file": str(path), "sha256": digest}


def test_first_layers_and_positions_are_fitted_as_timm_does_it(whole, tmp_path):
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    grey, image, _ = load_backbone(f"{NAME}@{tmp_path / 'w.pth'}", image_size=64, channels=1)
    colour, _, _ = load_backbone(f"{NAME}@{tmp_path / 'w.pth'}", image_size=64)
    torch.testing.assert_close(grey(pixels(1)), colour(pixels(1).expand(-1, 3, -1, -1)))
    assert image.channels == 1 and image.mean == (0.5,)
    vit = timm.create_model("vit_tiny_patch16_224").eval()
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    resized, _, _ = load_backbone(f"vit_tiny_patch16_224@{tmp_path / 'vit.pth'}", image_size=64)
    source = {"pretrained_cfg_overlay": {"state_dict": vit.state_dict()}, "img_size": 64, "num_classes": 0}
    by_timm = timm.create_model("vit_tiny_patch16_224", pretrained=True, **source).eval()
    torch.testing.assert_close(resized(pixels()), by_timm(pixels()))


@pytest.mark.parametrize("format", ["timm", "safetensors"])
def test_what_export_writes_is_read_again(tmp_path, format):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    run = attar.pretrain(
        images, out=tmp_path / "run", backbone=OWN, epochs=1, batch_size=8, device="cpu", progress=False
    )
    attar.export(run.path, format=format, out=tmp_path / "w.safetensors")
    network, _, _ = load_backbone(f"{OWN}@{tmp_path / 'w.safetensors'}", image_size=8, channels=1)
    saved, _, _ = load_backbone(run.path)
    assert torch.equal(network(pixels(1, 8)), saved(pixels(1, 8)))


def test_partial_coverage_is_refused_with_the_names(whole, own, tmp_path):
    file = tmp_path / "w.pth"
    state = whole.state_dict()
    spec = f"{NAME}@{file}"
    torch.save({n: t for n, t in state.items() if n != "conv_head.weight"}, file)
    with pytest.raises(CheckpointError, match=r"covers \d+ of \d+ .*Missing: conv_head.weight. Left over: none"):
        load_backbone(spec, image_size=64)
    torch.save({**state, "decoder.weight": torch.ones(2), "classifier2.weight": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match="Missing: none. Left over: classifier2.weight, decoder.weight"):
        load_backbone(spec, image_size=64)
    with pytest.raises(CheckpointError, match="Missing: body.*Left over: blocks.* must be those of resnet8x0.5 "):
        load_backbone(f"{OWN}@{file}", image_size=64)
    torch.save({**state, "conv_head.weight": torch.ones(3, 3)}, file)
    with pytest.raises(CheckpointError, match=r"Other shapes: conv_head.weight \(3, 3\) instead of"):
        load_backbone(spec, image_size=64)
    torch.save({**own.network.state_dict(), "fc.weight": torch.ones(2)}, file)  # attar's own have no classifier
    with pytest.raises(CheckpointError, match="Left over: fc.weight"):
        load_backbone(f"{OWN}@{file}", image_size=8, channels=1)


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_what_is_no_file_of_tensors_is_refused_and_not_executed(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, state = tmp_path / "w.pth", own.network.state_dict()
    cases = [
        ({**state, "x": Harmful()}, "holds something else than tensors.*could run code"),
        (own.network, r"something else than tensors.*torch.save\(network.state_dict"),
        ({"model": state, "ema": state}, r"several networks \(model, ema\)"),
        ({"epoch": 3}, r"no tensors by name \(a dict\)"),
        ([1, 2], r"no tensors by name \(a list\)"),
    ]
    for held, message in cases:
        torch.save(held, file)
        with pytest.raises(CheckpointError, match=message):
            load_backbone(f"{OWN}@{file}", image_size=8, channels=1)
    assert not (tmp_path / "harm").exists()
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not an archive")
        with pytest.raises(CheckpointError, match="is damaged|is not a safetensors file"):
            load_backbone(f"{OWN}@{tmp_path / name}", image_size=8)


def test_wrong_names_and_files_are_found_before_images_are_read(tmp_path):
    (tmp_path / "w.pth").touch()
    (tmp_path / "w.onnx").touch()
    for spec, kind, message in (
        (f"{OWN}@{tmp_path}/none.pth", CheckpointError, f"there is no file {tmp_path}/none.pth"),
        (f"{OWN}@{tmp_path}/w.onnx", CheckpointError, "read from .safetensors, .pth, .pt, .bin files"),
        (f"resnet_18@{tmp_path}/w.pth", BackboneError, "unknown backbone 'resnet_18'. Did you mean resnet18"),
        (f"hog@{tmp_path}/w.pth", BackboneError, "hog has no weights"),
    ):
        with pytest.raises(kind, match=message):
            load_backbone(spec)
        with pytest.raises(kind, match=message):
            attar.distill(tmp_path / "no images", teacher=spec, out=tmp_path / "run")
        with pytest.raises(kind, match=message):
            attar.pretrain(tmp_path / "no images", init=spec, backbone=OWN, out=tmp_path / "run")
        (tmp_path / "plan.yaml").write_text(f"out: {tmp_path}/out\nstages:\n  - export: {{run: '{spec}'}}\n")
        with pytest.raises(kind, match=message):
            read_pipeline(tmp_path / "plan.yaml")
    for name in ("w.pth", "w.safetensors"):
        save_file({"x": torch.ones(2)}, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"NAME@{tmp_path}/{name}"):
            load_backbone(tmp_path / name)


def test_a_folder_with_the_sign_in_its_name_stays_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run@home").mkdir()
    assert name_and_file("run@home") is None and name_and_file(tmp_path / "a@b") is None
    assert name_and_file("resnet18@run/w.pth") is not None and name_and_file("resnet18") is None


def test_a_file_teaches_is_measured_and_starts_a_run(own, tmp_path, monkeypatch):
    """Given relative to the folder of the command, found again from another."""
    monkeypatch.chdir(tmp_path)
    save_file(own.network.state_dict(), "w.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8), np.uint8)
    np.savez("images.npz", images=images, labels=np.arange(24) % 2)
    spec, source = f"{OWN}@w.safetensors", tmp_path / "images.npz"
    common = dict(backbone=OWN, epochs=1, batch_size=8, device="cpu", progress=False)
    settings = {"queue_length": 16}
    run = attar.distill(source, teacher=spec, out=tmp_path / "student", settings=settings, **common)
    taught_by = RunFolder.open(run.path).read_recipe()["teacher"]
    assert taught_by["name"] == f"{OWN}@{tmp_path / 'w.safetensors'}"
    assert taught_by["digest"] == load_teacher(spec, image_size=8, channels=1).digest
    both = attar.distill(source, teacher=f"{spec},hog", out=tmp_path / "both", settings=settings, **common)
    assert RunFolder.open(both.path).read_recipe()["teacher"]["name"].endswith("w.safetensors,hog")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = attar.evaluate(run.path, source, protocols=["knn"], controls=["pixels"], device="cpu", progress=False).rows
    assert {row["subject"] for row in rows} == {"model", "teacher", "pixels"}
    init = f"{OWN}@{tmp_path / 'w.safetensors'}"
    begun = attar.pretrain(source, init=init, out=tmp_path / "begun", **common)
    assert RunFolder.open(begun.path).read_recipe()["init"]["name"] == init
    fresh = build_backbone(OWN, channels=1, image_size=8)
    start_from(fresh, init)
    assert torch.equal(fresh.eval()(pixels(1, 8)), own(pixels(1, 8)))
    with pytest.raises(CheckpointError, match="is a resnet8x0.5, and the backbone a resnet14x0.5"):
        start_from(build_backbone("resnet14x0.5", channels=1, image_size=8), init)


def test_other_weights_and_another_name_are_another_teacher(own, tmp_path):
    state = own.network.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "b.safetensors")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "c.safetensors")
    digests = [
        load_teacher(f"{OWN}@{tmp_path / f'{file}.safetensors'}", image_size=8, channels=1).digest for file in "abc"
    ]
    assert digests[0] == digests[2] != digests[1]


def test_another_name_is_another_teacher(tmp_path):
    """The same tensors under a name whose images are normalised otherwise."""
    file = tmp_path / "a.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    names = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
    first, second = (load_teacher(f"{name}@{file}", image_size=32) for name in names)
    assert first.image.mean != second.image.mean and first.digest != second.digest


def test_a_grey_network_of_ones_own_is_measured_at_the_size_of_the_images(own, tmp_path):
    save_file(own.network.state_dict(), tmp_path / "grey.safetensors")
    spec = f"{OWN}@{tmp_path / 'grey.safetensors'}"
    backbone, image, _ = load_backbone(spec)
    assert backbone.spec.channels == image.channels == 1 and has_no_size(spec)
    assert attar.embed(spec, "digits", out=tmp_path / "e.npz", progress=False)[0] == 1797
    rows = attar.evaluate(spec, "digits", protocols=("knn",), controls=False, progress=False).rows
    assert rows[0]["value"] > 0.8, "8 pixels, as an untrained network of 224 pixels would not"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("prefix", ["", "stages_"])
def test_the_stem_for_small_images_is_seen_in_the_file(tmp_path, caplog, channels, prefix):
    torch.manual_seed(0)
    plain = build_backbone("resnet18", channels=channels, image_size=32, stem="small")
    save_file(plain.network.state_dict(), tmp_path / "small.safetensors")
    made = build_backbone(f"{prefix}resnet18", channels=channels, image_size=32, stem="small").eval()
    start_from(made, f"resnet18@{tmp_path / 'small.safetensors'}")
    spec = f"{prefix}resnet18@{tmp_path / 'small.safetensors'}"
    with caplog.at_level("INFO", "attar"):
        found, image, _ = load_backbone(spec, image_size=32)
    assert "stem for small images" in caplog.text and image == plain_image(32, channels)
    assert has_no_size(spec), "evaluated at the size of the images, not at timm's 224"
    torch.testing.assert_close(found(pixels(channels, 32)), made(pixels(channels, 32)), rtol=0, atol=0)


def test_positions_that_a_network_has_not_are_left_over(tmp_path):
    file = tmp_path / "vit.pth"
    state = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).state_dict()
    torch.save({**state, "pos_embed": torch.ones(1, 197, 192)}, file)
    with pytest.raises(CheckpointError, match="Left over: pos_embed"):
        load_backbone(f"swin_tiny_patch4_window7_224@{file}", image_size=224)


# ---- published weights that are not here ---------------------------------------------------------------------------


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("tried again"))
    return tmp_path / "hub"


def test_without_a_connection_the_hub_is_asked_once_and_the_error_says_what_to_do(no_network, caplog):
    with pytest.raises(BackboneError, match="could not be fetched.*write resnet18@FILE, as a teacher") as error:
        load_teacher("resnet18", image_size=32)
    assert "leave out" not in str(error.value) and not caplog.records


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_published_weights_that_are_here_need_no_connection(no_network, whole, caplog, file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *a, **k: pytest.fail("asked"))
    snapshot = no_network / f"models--timm--{NAME}.in1k" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("1")
    save = save_file if file == "model.safetensors" else torch.save
    save(whole.state_dict(), snapshot / file)
    assert cached_weights(NAME) == (f"timm/{NAME}.in1k", snapshot / file)
    teacher = load_teacher(NAME, image_size=64)
    expected = whole.forward_head(whole.forward_features(pixels()), pre_logits=True)
    torch.testing.assert_close(teacher.backbone(pixels()), expected)
    assert teacher.image.mean == (0.5, 0.5, 0.5) and not caplog.records
