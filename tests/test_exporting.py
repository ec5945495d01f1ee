"""Exports compute what the original computes, as one file, and the snippets run."""

import json
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
from attar.exporting import ExportError, attar_snippet, export_backbone
from attar.models.backbones import build_backbone
from attar.models.heads import MLP
from attar.models.saved import load_backbone, load_head, save_backbone, save_head

GREY = ImageSpec(size=16, channels=1, mean=(0.4,), std=(0.2,))
COLOUR = ImageSpec(size=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2), crop_fraction=0.9)


def run_folder(folder: Path, name: str, image: ImageSpec, **options) -> Path:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    backbone = build_backbone(name, channels=image.channels, image_size=image.size, **options)
    save_backbone(folder, backbone, image, provenance={})
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("grey"), "resnet8x0.5", GREY)


@pytest.fixture(scope="module")
def onnx_result(grey):
    return stages.export(grey, format="onnx")


CLASSES = ("cat", "ant", "bee", "dog")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run that kept a classifier of a hidden layer and batch norm, as finetune can."""
    folder = run_folder(tmp_path_factory.mktemp("labelled"), "resnet8x0.5", GREY)
    head = MLP([32, 8, 4])
    with torch.no_grad():
        head(3 * torch.randn(64, 32))  # running statistics of its own
    save_head(folder, "classifier", head, classes=CLASSES)
    return folder


@torch.no_grad()
def torch_logits(folder: Path, images: torch.Tensor) -> np.ndarray:
    head = load_head(folder, "classifier")
    return head(stages.load(folder)(images)).numpy()


def onnx_features(path: Path, images: torch.Tensor) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).run(None, {"images": images.numpy()})[0]


@torch.no_grad()
def torch_features(folder: Path, images: torch.Tensor) -> np.ndarray:
    return stages.load(folder)(images).numpy()


def test_onnx_agrees_with_torch_at_both_batches_and_is_one_file(grey, onnx_result):
    assert set(onnx_result.parity) == {1, 7} and max(onnx_result.parity.values()) < 1e-4
    assert set(onnx_result.latency_ms) == {"PyTorch", "ONNX Runtime"} and onnx_result.hardware
    assert onnx_result.bytes == (grey / "backbone.onnx").stat().st_size
    assert not list(grey.glob("*.data")) and not list(grey.glob(".*tmp"))
    images = torch.rand(5, 1, 16, 16)  # normalisation is inside: raw pixels on both sides
    assert np.allclose(onnx_features(onnx_result.path, images), torch_features(grey, images), atol=1e-4)


def test_the_file_says_how_to_use_it(onnx_result):
    import onnxruntime

    metadata = onnxruntime.InferenceSession(str(onnx_result.path)).get_modelmeta().custom_metadata_map
    assert metadata["size"] == "16" and metadata["channels"] == "1" and metadata["normalisation"] == "inside"
    assert json.loads(metadata["mean"]) == [0.4] and json.loads(metadata["std"]) == [0.2]


def test_normalisation_outside_the_graph_is_left_to_the_caller(grey, tmp_path):
    backbone, image, _ = load_backbone(grey)
    result = export_backbone(backbone, image, format="onnx", out=tmp_path / "outside.onnx", normalise=False)
    images = torch.rand(3, 1, 16, 16)
    found = onnx_features(result.path, (images - 0.4) / 0.2)
    assert np.allclose(found, torch_features(grey, images), atol=1e-4)
    assert np.abs(onnx_features(result.path, images) - found).max() > 0.01
    inside = run_snippet(stages.export(grey, format="onnx", out=tmp_path / "in.onnx").snippet, tmp_path, GREY)
    assert np.allclose(run_snippet(result.snippet, tmp_path, GREY), inside, atol=1e-4)


def run_snippet(snippet: str, folder: Path, image: ImageSpec, **options) -> np.ndarray:
    features = names_of(snippet, folder, image, **options)["features"]
    return features.detach().numpy() if isinstance(features, torch.Tensor) else features


def names_of(snippet: str, folder: Path, image: ImageSpec, *, without_attar: bool = False) -> dict:
    """What a snippet defines when it runs as it stands."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, max(image.channels, 3)), np.uint8)
    if image.channels in (1, 3):
        picture = Image.fromarray(coarse).resize((40, 40)).convert("L" if image.channels == 1 else "RGB")
        picture.save(folder / "photo.jpg", quality=95)
    else:
        np.save(folder / "photo.npy", coarse.repeat(8, 0).repeat(8, 1))
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if without_attar:
            for name in [n for n in sys.modules if n.split(".")[0] == "attar"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "attar", None)  # importing it now fails
        exec(compile(snippet, "snippet", "exec"), names)
    return names


def test_all_snippets_give_the_same_features(grey, onnx_result, tmp_path):
    wanted = run_snippet(attar_snippet(grey, GREY, 32), tmp_path, GREY)
    assert wanted.shape == (1, 32)
    assert np.allclose(run_snippet(onnx_result.snippet, tmp_path, GREY, without_attar=True), wanted, atol=1e-4)
    for format in ("safetensors", "timm"):
        snippet = stages.export(grey, format=format).snippet
        assert np.allclose(run_snippet(snippet, tmp_path, GREY), wanted, atol=1e-4), format


@pytest.mark.parametrize("name, options", [("mobilenetv3_small_100", {}), ("resnet18", {"stem": "small"})])
def test_a_timm_network_loads_in_timm_and_gives_the_same_features(tmp_path, name, options):
    folder = run_folder(tmp_path / "run", name, COLOUR, **options)
    result = stages.export(folder, format="timm")
    found = run_snippet(result.snippet, tmp_path, COLOUR, without_attar=True)
    images = load_images(np.asarray(Image.open(tmp_path / "photo.jpg"))[None], image_size=32)
    backbone, image, _ = load_backbone(folder)
    from attar.views.augmentation import CentreView

    with torch.no_grad():
        wanted = backbone(CentreView(image)(images.batch(np.arange(1)))).numpy()
    # PIL rounds to whole grey levels after resizing, views do not
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert found.shape == (1, backbone.num_features) and cosine > 0.999


def test_other_numbers_of_channels_are_read_from_an_array(tmp_path):
    image = ImageSpec(size=16, channels=5, mean=(0.4,) * 5, std=(0.2,) * 5)
    folder = run_folder(tmp_path / "run", "resnet8x0.5", image)
    result = stages.export(folder, format="onnx")
    wanted = run_snippet(attar_snippet(folder, image, 32), tmp_path, image)
    assert np.allclose(run_snippet(result.snippet, tmp_path, image, without_attar=True), wanted, atol=1e-4)


@pytest.mark.parametrize("difference, said", [(0.5, r"by 5\.00e-01"), (float("nan"), "by nan")])
def test_a_network_that_differs_is_not_handed_over(grey, tmp_path, monkeypatch, difference, said):
    monkeypatch.setattr(exporting, "difference", lambda *a: difference)
    backbone, image, _ = load_backbone(grey)
    with pytest.raises(ExportError, match=f"differs from PyTorch {said}"):
        export_backbone(backbone, image, format="onnx", out=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_said_on_stdout(grey, tmp_path, capfd):
    stages.export(grey, format="onnx", out=tmp_path / "quiet.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_int8_is_measured_on_images_that_calibration_did_not_see(tmp_path):
    folder = run_folder(tmp_path / "run", "resnet14", GREY)
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8)
    result = stages.export(folder, format="int8", calibration=load_images(images, image_size=16))
    assert result.agreement.num_images == 20
    assert result.agreement.cosine > 0.9 and 0 <= result.agreement.same_neighbour <= 1
    assert result.bytes < result.agreement.full_bytes  # of a net this size, the graph is much of the file
    assert set(result.latency_ms) == {"ONNX Runtime fp32", "ONNX Runtime int8"}
    assert "20 images calibration did not see" in result.text()
    assert sorted(p.name for p in folder.iterdir()) == ["backbone.int8.onnx", "backbone.json", "backbone.safetensors"]


def test_agreement_of_features_with_a_known_answer():
    features = np.eye(4, dtype=np.float32) + np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0.5, 0]])
    same = exporting._agreement(3 * features, features, 1)
    assert same.cosine == pytest.approx(1) and same.same_neighbour == 1
    swapped = exporting._agreement(features[[2, 1, 0, 3]], features, 1)
    assert swapped.same_neighbour == 0 and swapped.cosine < 0.6


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_onnx_gives_class_scores_beside_the_features(labelled, labelled_onnx, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(labelled_onnx.path))
    images = torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(batch))
    features, logits = session.run(["features", "logits"], {"images": images.numpy()})
    assert np.allclose(features, torch_features(labelled, images), atol=1e-4)
    assert np.allclose(logits, torch_logits(labelled, images), atol=1e-4) and logits.shape == (batch, 4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


@pytest.fixture(scope="module")
def labelled_onnx(labelled):
    return stages.export(labelled, classifier=True)


def test_every_snippet_names_the_class_that_torch_names(labelled, labelled_onnx, tmp_path, capsys):
    wanted = torch_logits(labelled, torch.from_numpy(names_of(labelled_onnx.snippet, tmp_path, GREY)["pixels"]))
    for format in ("onnx", "safetensors", "timm"):
        result = labelled_onnx if format == "onnx" else stages.export(labelled, format=format, classifier=True)
        capsys.readouterr()
        names = names_of(result.snippet, tmp_path, GREY, without_attar=format == "onnx")
        assert np.allclose(np.asarray(names["logits"].tolist()), wanted, atol=1e-4), format
        assert names["classes"] == list(CLASSES)
        said, probability = capsys.readouterr().out.split()
        assert said == CLASSES[wanted.argmax()]
        assert float(probability) == pytest.approx(np.exp(wanted).max() / np.exp(wanted).sum(), abs=1e-4)
        assert result.num_parameters == labelled_onnx.num_parameters
    assert (
        result.classifier == labelled / "backbone.timm.classifier.safetensors"
        and str(result.classifier) in result.text()
    )
    assert (labelled / "export" / "backbone.classifier.safetensors").is_file()
    assert json.dumps(result.to_json())


def test_a_packed_network_takes_its_classifier_along(tmp_path):
    folder = run_folder(tmp_path / "run", "bnn_resnet8", GREY)
    save_head(folder, "classifier", MLP([64, 3]), classes=("a", "b", "c"))
    result = stages.export(folder, format="packed", classifier=True)
    names = names_of(result.snippet, tmp_path, GREY)
    wanted = torch_logits(folder, torch.from_numpy(names["pixels"]))
    assert np.allclose(names["logits"].detach().numpy(), wanted, atol=1e-6) and names["classes"] == ["a", "b", "c"]


def test_an_export_without_the_classifier_says_so_in_a_line(labelled, grey, tmp_path):
    result = stages.export(labelled, format="timm", out=tmp_path / "features.safetensors")
    assert "left out: the run's classifier, 4 classes; --classifier exports it, too\n" in result.text()
    assert stages.export(grey, format="timm", out=tmp_path / "x.safetensors").left_out == ""
    assert stages.export(labelled, format="timm", out=tmp_path / "y", classifier=True).left_out == ""


def test_a_run_without_a_classifier_is_refused(grey):
    with pytest.raises(RecipeError, match=r"--classifier: .*grey0 kept no classifier.*finetune \(--init\), or export"):
        stages.export(grey, classifier=True)


@pytest.mark.slow
def test_int8_gives_class_scores_and_counts_how_many_stay(labelled, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8)
    result = stages.export(
        labelled,
        format="int8",
        classifier=True,
        calibration=load_images(images, image_size=16),
        out=tmp_path / "x.onnx",
    )
    assert 0.5 < result.agreement.same_class <= 1 and "same class for " in result.text()
    assert names_of(result.snippet, tmp_path, GREY)["classes"] == list(CLASSES)


def test_mistakes(grey, monkeypatch, tmp_path):
    with pytest.raises(RecipeError, match="unknown format 'onx'. Did you mean onnx?"):
        stages.export(grey, format="onx")
    with pytest.raises(RecipeError, match="--calibration SOURCE"):
        stages.export(grey, format="int8")
    with pytest.raises(RecipeError, match="would be ignored: it belongs to int8"):
        stages.export(grey, format="onnx", calibration=np.zeros((8, 16, 16), np.uint8))
    with pytest.raises(RecipeError, match="at least 4 images .* got 3"):
        stages.export(grey, format="int8", calibration=np.zeros((3, 16, 16), np.uint8))
    backbone, image, _ = load_backbone(grey)
    with pytest.raises(RecipeError, match="timm holds weights only"):
        export_backbone(backbone, image, format="timm", out=tmp_path / "x", normalise=False)
    with monkeypatch.context() as patch, pytest.raises(ExportError, match="one ONNX file holds 2.1 GB"):
        patch.setattr(exporting, "ONE_FILE", 1000)
        stages.export(grey, format="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'attar\[export\]'"):
        stages.export(grey, format="onnx")
