"""One ONNX graph of all exits: each is what its own network is, images leave as evaluation counts it, and what follows
is not computed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar import stages
from attar.data.images import ImageSpec
from attar.errors import MissingDependency, RecipeError
from attar.evaluation.exits import leaves_at
from attar.exporting import ExportError
from attar.models.backbones import build_backbone, cut_at_exit
from attar.models.heads import MLP
from attar.models.saved import load_backbone, load_head, save_backbone, save_head

IMAGE = ImageSpec(size=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2))
CLASSES = ("cat", "ant", "bee")


def make_run(folder: Path, name: str, num_exits: int) -> Path:
    """What byot keeps, untrained; heads are so large that images differ in how sure an exit is of them."""
    torch.manual_seed(0)
    whole = build_backbone(name, channels=3, image_size=32)
    networks = {f"exit{k}": cut_at_exit(whole, k) for k in range(1, num_exits + 1)} | {".": whole}
    for place, network in networks.items():
        (folder / place).mkdir(exist_ok=True, parents=True)
        save_backbone(folder / place, network, IMAGE, provenance={})
        head = MLP([network.num_features, len(CLASSES)])
        with torch.no_grad():
            features = network.eval()(torch.randn(64, 3, 32, 32))
            head[0].weight.mul_(2 / head(features).std(dim=0).mean())
            head[0].bias.sub_(head(features).mean(dim=0))
        save_head(folder / place, "classifier", head, classes=CLASSES)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("byot") / "run", "resnet8x0.5", 2)


@pytest.fixture(scope="module")
def result(run):
    return stages.export(run, exits=True)


def answers(path: Path, images: torch.Tensor, *thresholds: float) -> tuple[np.ndarray, np.ndarray]:
    import onnxruntime

    feeds = {"images": images.numpy(), "thresholds": np.array(thresholds, np.float32)}
    return tuple(onnxruntime.InferenceSession(str(path)).run(["logits", "exit"], feeds))


@torch.no_grad()
def torch_logits(run: Path, images: torch.Tensor) -> list[np.ndarray]:
    places = [*sorted(run.glob("exit[1-9]")), run]
    return [load_head(place, "classifier")(stages.load(place)(images)).numpy() for place in places]


def photos(number: int) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_each_exit_alone_is_the_network_that_the_run_keeps(run, result, batch):
    wanted = torch_logits(run, photos(batch))
    for k, thresholds in enumerate(((0, 0), (2, 0), (2, 2))):
        logits, left_at = answers(result.path, photos(batch), *thresholds)
        assert np.allclose(logits, wanted[k], atol=1e-4) and left_at.tolist() == [k + 1] * batch


@pytest.mark.parametrize("threshold", [0.45, 0.6, 0.8])
def test_images_leave_where_the_evaluation_lets_them_leave(run, result, threshold):
    images = photos(40)
    wanted = torch_logits(run, images)
    places = leaves_at([torch.from_numpy(x).double().softmax(dim=1).numpy() for x in wanted], threshold)
    assert len(set(places)) > 1
    logits, left_at = answers(result.path, images, threshold, threshold)
    assert (left_at == places + 1).all()
    assert np.allclose(logits, np.stack(wanted)[places, np.arange(40)], atol=1e-4)


def test_what_follows_an_exit_is_not_computed(run, result, tmp_path):
    import onnxruntime

    def nodes(images: torch.Tensor, *thresholds: float) -> int:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(str(result.path), options)
        session.run(None, {"images": images.numpy(), "thresholds": np.array(thresholds, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name") in ("Conv", "FusedConv") for event in events)

    first, second, whole = (nodes(photos(2), *thresholds) for thresholds in ((0, 0), (2, 0), (2, 2)))
    assert 0 < first < second < whole
    # an image that was sure at the first exit and is not at the second does not keep the others going
    sure = [torch.from_numpy(x).softmax(dim=1).amax(dim=1) >= 0.6 for x in torch_logits(run, photos(40))]
    leave_first, leave_second = int((sure[0] & ~sure[1]).nonzero()[0]), int((~sure[0] & sure[1]).nonzero()[0])
    assert nodes(photos(40)[[leave_first, leave_second]], 0.6, 0.6) == second


def test_what_is_said_and_what_the_snippet_does(run, result, tmp_path, capsys, monkeypatch):
    import onnxruntime

    assert result.path == run / "exits.onnx" and max(result.parity.values()) < 1e-4
    assert list(result.latency_ms) == [f"ONNX Runtime, {name}" for name in ("exit1", "exit2", "whole")]
    metadata = onnxruntime.InferenceSession(str(result.path)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES) and metadata["size"] == "32"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "attar"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "attar", None)  # importing it now fails
    names: dict = {}
    exec(compile(result.snippet, "snippet", "exec"), names)
    wanted = answers(result.path, torch.from_numpy(names["pixels"]), 0.9, 0.9)
    assert np.allclose(names["logits"], wanted[0]) and names["left_at"] == wanted[1]
    assert capsys.readouterr().out.split()[0] == CLASSES[wanted[0].argmax()]


@pytest.mark.slow
def test_a_network_of_timm_with_its_three_exits(tmp_path):
    folder = make_run(tmp_path / "run", "resnet18", 3)
    result = stages.export(folder, exits=True)
    assert max(result.parity.values()) < 1e-3 and len(result.latency_ms) == 4


def test_an_exit_exports_its_class_scores_like_any_run(run):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(stages.export(run / "exit1", classifier=True).path))
    logits = session.run(["logits"], {"images": photos(3).numpy()})[0]
    assert np.allclose(logits, torch_logits(run, photos(3))[0], atol=1e-4)


def test_an_export_of_features_tells_of_the_exits(run, tmp_path):
    assert stages.export(run, format="timm", out=tmp_path / "x").left_out.endswith(
        "2 early exits in one graph: --exits"
    )


def test_an_exit_of_another_training_is_not_handed_over(run, tmp_path):
    folder = make_run(tmp_path / "run", "resnet8x0.5", 2)
    other, _, _ = load_backbone(folder / "exit1")
    with torch.no_grad():
        next(other.parameters()).mul_(-1)
    save_backbone(folder / "exit1", other, IMAGE, provenance={})
    with pytest.raises(ExportError, match=r"differs from PyTorch .* Nothing was written"):
        stages.export(folder, exits=True)
    assert not list(folder.glob("*.onnx")) and not list(folder.glob(".*tmp"))


def test_mistakes(run, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.mkdir()
    save_backbone(plain, build_backbone("resnet8x0.5", channels=3, image_size=32), IMAGE, provenance={})
    with pytest.raises(
        RecipeError, match="--exits: .*plain kept no early exits; train it by a method that does .byot."
    ):
        stages.export(plain, exits=True)
    with pytest.raises(RecipeError, match="--exits is one ONNX graph; it cannot be int8. Leave out --format int8"):
        stages.export(run, exits=True, format="int8")
    with pytest.raises(RecipeError, match="--classifier would be ignored beside --exits"):
        stages.export(run, exits=True, classifier=True)
    with pytest.raises(RecipeError, match="--calibration would be ignored beside --exits: it belongs to int8"):
        stages.export(run, exits=True, calibration=np.zeros((8, 32, 32, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'attar\[export\]'"):
        stages.export(run, exits=True)


def test_both_options_as_a_person_types_them(run, capsys, monkeypatch):
    import onnxruntime

    from attar.cli import main

    for option, outputs in (("--exits", ["logits", "exit"]), ("--classifier", ["features", "logits"])):
        monkeypatch.setattr(sys, "argv", ["attar", "export", str(run), option, "--json"])
        with pytest.raises(SystemExit):
            main()
        session = onnxruntime.InferenceSession(json.loads(capsys.readouterr().out)["path"])
        assert [output.name for output in session.get_outputs()] == outputs
