"""Exports compute what the original computes, as one file, and the snippets run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar import exporting, stages
from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.errors import MissingDependency, RecipeError
from attar.exporting import ExportError, export_backbone
from attar.models.backbones import build_backbone
from attar.models.saved import load_backbone, save_backbone

GREY = ImageSpec(size=16, channels=1, mean=(0.4,), std=(0.2,))
COLOUR = ImageSpec(size=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2), crop_fraction=0.9)


def run_folder(folder: Path, name: str, image: ImageSpec) -> Path:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    backbone = build_backbone(name, channels=image.channels, image_size=image.size)
    save_backbone(folder, backbone, image, provenance={})
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("grey"), "resnet8x0.5", GREY)


@pytest.fixture(scope="module")
def onnx_result(grey):
    return stages.export(grey, format="onnx")


def test_onnx_agrees_with_torch_at_both_batches_and_is_one_file(grey, onnx_result):
    import onnxruntime

    assert set(onnx_result.parity) == {1, 7} and max(onnx_result.parity.values()) < 1e-4
    assert set(onnx_result.latency_ms) == {"PyTorch", "ONNX Runtime"}
    assert onnx_result.bytes == (grey / "backbone.onnx").stat().st_size
    assert not list(grey.glob("*.data")) and not list(grey.glob(".*tmp"))
    images = torch.rand(5, 1, 16, 16)
    session = onnxruntime.InferenceSession(str(onnx_result.path))
    found = session.run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        wanted = stages.load(grey)(images).numpy()
    assert np.allclose(found, wanted, atol=1e-4)  # normalisation is inside: raw pixels on both sides
    assert session.get_modelmeta().custom_metadata_map["size"] == "16"


def run_snippet(snippet: str, folder: Path, image: ImageSpec) -> np.ndarray:
    mode = "L" if image.channels == 1 else "RGB"
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(coarse).resize((40, 40)).convert(mode).save(folder / "photo.jpg", quality=95)
    code = snippet + "\nnp.save('features.npy', getattr(features, 'detach', lambda: features)())\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
    return np.load(folder / "features.npy")


def test_the_onnx_snippet_runs_without_attar_and_agrees(grey, onnx_result, tmp_path):
    found = run_snippet("import sys; sys.modules['attar'] = None\n" + onnx_result.snippet, tmp_path, GREY)
    weights = stages.export(grey, format="safetensors", out=grey / "copy.safetensors")
    wanted = run_snippet(weights.snippet, tmp_path, GREY)
    assert found.shape == (1, 32) and np.allclose(found, wanted, atol=1e-4)


def test_a_timm_network_loads_in_timm_and_gives_the_same_features(tmp_path):
    folder = run_folder(tmp_path / "run", "mobilenetv3_small_100", COLOUR)
    result = stages.export(folder, format="timm")
    found = run_snippet("import sys; sys.modules['attar'] = None\n" + result.snippet, tmp_path, COLOUR)
    images = load_images(np.asarray(Image.open(tmp_path / "photo.jpg"))[None], image_size=32)
    backbone, image, _ = load_backbone(folder)
    from attar.views.augmentation import CentreView

    with torch.no_grad():
        wanted = backbone(CentreView(image)(images.batch(np.arange(1)))).numpy()
    # PIL rounds to whole grey levels after resizing, views do not
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert found.shape == (1, 1024) and cosine > 0.999


def test_a_network_that_differs_is_not_handed_over(grey, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_difference", lambda *a: 0.5)
    backbone, image, _ = load_backbone(grey)
    with pytest.raises(ExportError, match=r"differs from PyTorch by 5\.00e-01"):
        export_backbone(backbone, image, format="onnx", out=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_int8_is_smaller_and_close(grey):
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16), np.uint8)
    result = stages.export(grey, format="int8", calibration=load_images(images, image_size=16))
    assert result.cosine > 0.9
    assert set(result.latency_ms) == {"ONNX Runtime fp32", "ONNX Runtime int8"}


def test_mistakes(grey, monkeypatch):
    with pytest.raises(RecipeError, match="unknown format 'onx'. Did you mean onnx?"):
        stages.export(grey, format="onx")
    with pytest.raises(RecipeError, match="--calibration SOURCE"):
        stages.export(grey, format="int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'attar\[export\]'"):
        stages.export(grey, format="onnx")
