"""Export: the backbone in a format to deploy, checked against the original before it is handed over.

    safetensors   the weights, with a loading snippet       timm    the same under timm's names
    onnx          normalisation inside; parity and latency  int8    ONNX, statically quantised
    packed        binary networks: a bit for each binary weight; `attar.load` reads it, features are the same

The ONNX graph takes `images`, float pixels in [0, 1], (B, C, H, W) with any B, and gives `features` (B, D).
With `normalise=False` it takes what the backbone takes: pixels less their mean, divided by their deviation.
With a classifier it gives `logits` (B, N), too; the other formats then have a second file, NAME.classifier.safetensors.
Early exits and the whole in one graph: exporting_exits.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.data.images import Images, ImageSpec
from attar.errors import AttarError, MissingDependency, RecipeError, unknown_name
from attar.models.backbones import Backbone
from attar.models.encoder import Encoder

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from attar.evaluation.subject import Classifier

FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "timm": ".timm.safetensors",
    "int8": ".int8.onnx",
    "packed": ".packed.safetensors",
}
OPSET = 18
PARITY_BATCHES = (1, 7)
LATENCY_BATCHES = (1, 32)
LATENCY_SECONDS = 2.0  # of measuring each batch size, beyond three runs
TOLERANCE = 1e-3  # of the largest feature: fp32 kernels of two runtimes agree to about 1e-5
ONE_FILE = 2**31 - 2**20  # bytes of weights that one ONNX file can hold (protobuf's limit, and room for the graph)
CALIBRATION, HELD_OUT = 256, 128  # images of int8: to calibrate, and to compare the features afterwards


class ExportError(AttarError):
    """An export that does not compute what the original computes; nothing is left behind."""


@dataclass(frozen=True)
class Agreement:
    """How far a quantised network says the same as in fp32.

    cosine: mean similarity of its features to the original ones. same_neighbour: share of images whose nearest
    neighbour among the others stays the same; rectified features are alike to begin with, neighbours are not.
    same_class: share of images whose class stays the same, where a classifier is exported.
    """

    cosine: float
    same_neighbour: float
    num_images: int
    full_bytes: int
    same_class: float | None = None

    def text(self) -> str:
        same_class = "" if self.same_class is None else f", same class for {100 * self.same_class:.0f} %"
        return (
            f"against fp32 ({self.full_bytes / 1e6:.2f} MB), on {self.num_images} images calibration did not see: "
            f"cosine similarity {self.cosine:.4f}, same nearest neighbour for {100 * self.same_neighbour:.0f} %"
            + same_class
        )


@dataclass(frozen=True)
class BinaryWeights:
    """Bytes of the binary layers' weights: as float32, and as bits with one scale a channel.

    whole_bytes, packed_file_bytes: of a file of the whole network, real layers and all, as float32 and packed.
    """

    full_bytes: int
    packed_bytes: int
    whole_bytes: int
    packed_file_bytes: int

    def text(self) -> str:
        sizes = {
            "binary layers": (self.packed_bytes, self.full_bytes),
            "whole file": (self.packed_file_bytes, self.whole_bytes),
        }
        return "\n".join(
            f"{what}: {now} bytes instead of {before} in fp32, 1/{before / now:.1f}"
            for what, (now, before) in sizes.items()
        )


@dataclass(frozen=True)
class ExportResult:
    """What was written and what it is worth.

    parity: batch size -> largest difference to PyTorch, as a share of the largest feature; of class scores likewise,
    and the worse of both. latency_ms: runtime -> batch size -> median milliseconds of a batch on one thread of
    `hardware`. agreement: int8 only, its features against those in fp32 on num_images the calibration did not see (see
    `Agreement`). binary: packed only. classifier: the second file, of formats that hold weights only. left_out: what
    else the run has, and how to export it.
    """

    path: Path
    format: str
    bytes: int
    num_parameters: int
    snippet: str
    parity: dict[int, float] = field(default_factory=dict)
    latency_ms: dict[str, dict[int, float]] = field(default_factory=dict)
    hardware: str = ""
    agreement: Agreement | None = None
    binary: BinaryWeights | None = None
    classifier: Path | None = None
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        classifier = None if self.classifier is None else str(self.classifier)
        return {**asdict(self), "path": str(self.path), "classifier": classifier}

    def text(self) -> str:
        lines = [f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.num_parameters / 1e6:.2f} M parameters"]
        if self.classifier is not None:
            lines.append(f"{self.classifier}: the classifier on its features")
        if self.parity:
            worst = ", ".join(f"batch {b}: {value:.1e}" for b, value in self.parity.items())
            lines.append(f"parity with PyTorch (largest difference, share of the largest value): {worst}")
        if self.binary is not None:
            lines.append(self.binary.text())
        if self.agreement is not None:
            lines.append(self.agreement.text())
        for runtime, by_batch in self.latency_ms.items():
            times = ", ".join(f"batch {b}: {ms:.2f} ms" for b, ms in by_batch.items())
            lines.append(f"latency of {runtime}, one thread of {self.hardware}: {times}")
        if self.left_out:
            lines.append(self.left_out)
        return "\n".join([*lines, "", self.snippet])


class Classifying(nn.Module):
    """Images -> features (B, D) and logits (B, N), as an export with a classifier computes them."""

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head.cpu().float().eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(images)
        return features, self.head(features)


def export_backbone(
    backbone: Backbone,
    image: ImageSpec,
    *,
    format: str,
    out: Path,
    calibration: Images | None = None,
    normalise: bool = True,
    provenance: dict[str, Any] | None = None,
    classifier: Classifier | None = None,
) -> ExportResult:
    """Write a backbone to `out` (beside it first, then renamed) and check what was written.

    Args:
        format: onnx, safetensors, timm, int8 or packed. calibration: images for int8, a few hundred.
        normalise: subtract mean and divide by deviation inside the ONNX graph; False where the caller's pipeline
            does it already.
        provenance: where the backbone comes from; a packed file carries it.
        classifier: export its class scores with the features.

    Raises:
        RecipeError: an unknown format, int8 without enough images, or an option that would be ignored.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the exported network differs from the original, or is too large for one file.
    """
    if format not in FORMATS:
        raise RecipeError(unknown_name("format", format, FORMATS))
    if (calibration is not None) != (format == "int8"):
        raise RecipeError(
            "int8 needs images to calibrate with: --calibration SOURCE."
            if format == "int8"
            else f"--calibration would be ignored: it belongs to int8, not to {format}."
        )
    if not normalise and format in ("safetensors", "timm", "packed"):
        raise RecipeError(
            f"normalise=False would be ignored: {format} holds weights only. It belongs to onnx and int8."
        )
    if calibration is not None and len(calibration) < 4:
        raise RecipeError(f"int8 needs at least 4 images to calibrate with, better 300; got {len(calibration)}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # statistics that change nothing stand for "the caller has normalised": one path for both graphs
    inside = image if normalise else replace(image, mean=(0.0,) * image.channels, std=(1.0,) * image.channels)
    encoder = Encoder(backbone, inside).cpu().float().eval()
    if format in ("safetensors", "timm", "packed"):
        if format == "packed":
            result = _export_packed(encoder, image, out, provenance or {})
        else:
            result = _export_weights(encoder, format, out)
        if classifier is None:
            _classifier_beside(out).unlink(missing_ok=True)  # of an earlier export; it does not belong to these weights
            return result
        return _with_classifier(result, classifier)
    require_onnx()
    require_one_file(encoder)
    if format == "onnx":
        return _export_onnx(encoder, image, out, classifier)
    assert calibration is not None
    return _export_int8(encoder, image, out, calibration, classifier)


def _export_weights(encoder: Encoder, format: str, out: Path) -> ExportResult:
    backbone = encoder.backbone
    _save_weights(backbone.timm_state_dict() if format == "timm" else backbone.state_dict(), out)
    snippet = _weights_snippet(encoder, format, out)
    return ExportResult(out, format, out.stat().st_size, count_parameters(encoder), snippet)


def _with_classifier(result: ExportResult, classifier: Classifier) -> ExportResult:
    """The same with a second file, of the classifier's weights, and what loads it."""
    path = _classifier_beside(result.path)
    head = classifier.head.cpu().float()
    _save_weights(head.state_dict(), path, metadata={"classes": json.dumps(list(classifier.classes))})
    number = result.num_parameters + sum(p.numel() for p in head.parameters())
    snippet = _with_classes(result.snippet, classifier, path)
    return replace(result, classifier=path, num_parameters=number, snippet=snippet)


def _classifier_beside(out: Path) -> Path:
    return out.with_name(f"{out.name.removesuffix('.safetensors')}.classifier.safetensors")


def _save_weights(state: dict[str, Tensor], out: Path, *, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    with renamed_when_done(out) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, temporary, metadata)


def _export_packed(encoder: Encoder, image: ImageSpec, out: Path, provenance: dict[str, Any]) -> ExportResult:
    from safetensors.torch import save

    from attar.models.packed import load_packed, save_packed

    with renamed_when_done(out) as temporary:
        sizes = save_packed(temporary, encoder.backbone, image, provenance=provenance)
        whole = len(save(encoder.backbone.state_dict()))
        again = Encoder(load_packed(temporary)[0], encoder.image).eval()
        run = lambda x: [again(torch.from_numpy(x)).numpy()]  # noqa: E731
        parity = {batch: difference(encoder, run, image, batch) for batch in PARITY_BATCHES}
        if max(parity.values()) != 0:
            raise ExportError(f"{out}: the packed network differs from the original; nothing was written.")
    snippet = attar_snippet(out, image, encoder.num_features)
    size = out.stat().st_size
    binary = BinaryWeights(*sizes, whole_bytes=whole, packed_file_bytes=size)
    return ExportResult(out, "packed", size, count_parameters(encoder), snippet, parity, binary=binary)


def _export_onnx(encoder: Encoder, image: ImageSpec, out: Path, classifier: Classifier | None) -> ExportResult:
    network: nn.Module = encoder if classifier is None else Classifying(encoder, classifier.head)
    with renamed_when_done(out) as temporary:
        _write_onnx(encoder, network, image, temporary, classifier)
        session = open_session(temporary)
        run = lambda x: session.run(None, {"images": x})  # noqa: E731
        parity = {batch: difference(network, run, image, batch) for batch in PARITY_BATCHES}
        check_parity(out, parity, encoder.backbone)
        latency = {"PyTorch": latency_of(lambda x: network(torch.from_numpy(x)), image)}
        latency["ONNX Runtime"] = latency_of(run, image)
    return ExportResult(
        out,
        "onnx",
        out.stat().st_size,
        count_parameters(network),
        _onnx_snippet(encoder, image, out, classifier),
        parity,
        latency,
        hardware(),
    )


def _export_int8(
    encoder: Encoder, image: ImageSpec, out: Path, calibration: Images, classifier: Classifier | None
) -> ExportResult:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    network: nn.Module = encoder if classifier is None else Classifying(encoder, classifier.head)
    order = np.random.default_rng(0).permutation(len(calibration))
    num_held_out = min(HELD_OUT, len(order) // 3)
    batches = _inputs(encoder, image, calibration, order[num_held_out:][:CALIBRATION])
    unseen = _inputs(encoder, image, calibration, order[:num_held_out])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    full, prepared = out.with_suffix(".fp32.tmp"), out.with_suffix(".prepared.tmp")
    try:
        with renamed_when_done(out) as temporary, quiet():
            _write_onnx(encoder, network, image, full, classifier)
            quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(temporary),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            session, reference = open_session(temporary), open_session(full)
            latency = {"ONNX Runtime fp32": latency_of(lambda x: reference.run(None, {"images": x}), image)}
            latency["ONNX Runtime int8"] = latency_of(lambda x: session.run(None, {"images": x}), image)
            found, wanted = (
                [np.concatenate(parts) for parts in zip(*(s.run(None, {"images": x}) for x in unseen), strict=True)]
                for s in (session, reference)
            )
            agreement = _agreement(found[0], wanted[0], full.stat().st_size)
            if classifier is not None:
                same = found[1].argmax(axis=1) == wanted[1].argmax(axis=1)
                agreement = replace(agreement, same_class=float(same.mean()))
    finally:
        full.unlink(missing_ok=True)
        prepared.unlink(missing_ok=True)
    return ExportResult(
        out,
        "int8",
        out.stat().st_size,
        count_parameters(network),
        _onnx_snippet(encoder, image, out, classifier),
        latency_ms=latency,
        hardware=hardware(),
        agreement=agreement,
    )


def _agreement(found: np.ndarray, wanted: np.ndarray, full_bytes: int) -> Agreement:
    """Features (N, D) of the quantised network against those in fp32."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # noqa: E731
    ours, theirs = unit(found), unit(wanted)
    neighbours = [(x @ x.T - 4 * np.eye(len(x))).argmax(axis=1) for x in (ours, theirs)]  # never itself
    same = float((neighbours[0] == neighbours[1]).mean())
    return Agreement(float((ours * theirs).sum(axis=1).mean()), same, len(ours), full_bytes)


def _write_onnx(
    encoder: Encoder, network: nn.Module, image: ImageSpec, path: Path, classifier: Classifier | None
) -> None:
    """One file, dynamic batch, with what is needed to use it among the metadata. network: the encoder, or all of it."""
    model = to_onnx(network, image, ["features"] if classifier is None else ["features", "logits"])
    save_onnx(model, path, encoder, image, classes=() if classifier is None else classifier.classes)


def to_onnx(network: nn.Module, image: ImageSpec, outputs: Sequence[str]) -> onnx.ModelProto:
    """A graph of any batch of `images`."""
    example = torch.rand(2, image.channels, image.size, image.size)
    with quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def save_onnx(
    model: onnx.ModelProto, path: Path, encoder: Encoder, image: ImageSpec, *, classes: Sequence[str] = ()
) -> None:
    """Write a graph with what is needed to use it among the metadata. classes: of the logits, in their order."""
    import onnx

    import attar

    metadata = {
        "attar.version": attar.__version__,
        "backbone": encoder.backbone.spec.name,
        "size": str(image.size),
        "channels": str(image.channels),
        "input": f"images, float32 pixels in [0, 1]{'' if _inside(encoder, image) else ', normalised'}, (B, C, H, W)",
        "normalisation": "inside" if _inside(encoder, image) else "outside",
        "mean": json.dumps(list(image.mean)),
        "std": json.dumps(list(image.std)),
        "crop_fraction": f"{image.crop_fraction:g}",
        "num_features": str(encoder.num_features),
        **({"classes": json.dumps(list(classes))} if classes else {}),
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))


def open_session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def difference(
    network: nn.Module, run: Callable[[np.ndarray], Sequence[np.ndarray]], image: ImageSpec, batch: int
) -> float:
    """Largest absolute difference of any output on random pixels, as a share of the output's largest value."""
    pixels = torch.rand(batch, image.channels, image.size, image.size, generator=torch.Generator().manual_seed(batch))
    outputs = network(pixels)
    wanted = [x.numpy() for x in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return float(np.max([share_of_largest(ours, x) for ours, x in zip(run(pixels.numpy()), wanted, strict=True)]))


def share_of_largest(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest absolute difference, as a share of the largest value wanted."""
    if found.shape != wanted.shape:
        raise ExportError(
            f"the exported network gives {found.shape} for a batch of {len(wanted)}, PyTorch {wanted.shape}."
        )
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def check_parity(out: Path, parity: dict[int, float], backbone: Backbone) -> None:
    worst = float(np.max(list(parity.values())))
    if not worst <= TOLERANCE:  # also where a value is not a number
        raise ExportError(
            f"{out}: the ONNX network differs from PyTorch by {worst:.2e} of the largest value (accepted: "
            f"{TOLERANCE:g}). Nothing was written; please report the backbone, {backbone.spec.name}."
        )


def forward_latency(backbone: Backbone, image: ImageSpec) -> float:
    """Median milliseconds of one image through a backbone in PyTorch, on one thread."""
    return latency_of(lambda x: backbone(torch.from_numpy(x)), image, batches=(1,))[1]


def latency_of(
    run: Callable[[np.ndarray], Any],
    image: ImageSpec,
    *,
    batches: Sequence[int] = LATENCY_BATCHES,
    repeats: int = 15,
) -> dict[int, float]:
    """Median milliseconds a batch, on one thread; at least three runs, more while they are quick."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        with torch.no_grad():
            for batch in batches:
                pixels = np.random.default_rng(0).random((batch, image.channels, image.size, image.size), np.float32)
                run(pixels)  # the first one allocates
                times: list[float] = []
                while len(times) < 3 or (len(times) < repeats and sum(times) < LATENCY_SECONDS):
                    began = time.perf_counter()
                    run(pixels)
                    times.append(time.perf_counter() - began)
                found[batch] = round(1000 * statistics.median(times), 3)
    finally:
        torch.set_num_threads(threads)
    return found


def hardware() -> str:
    """The processor's name, for a reader of the latency."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _inputs(
    encoder: Encoder, image: ImageSpec, images: Images, chosen: np.ndarray, *, batch_size: int = 32
) -> list[np.ndarray]:
    """Central views of the chosen images as the graph takes them: pixels in [0, 1], or normalised."""
    from attar.views.augmentation import CentreView

    column = lambda values: torch.tensor(values).view(1, -1, 1, 1)  # noqa: E731
    parts = np.array_split(np.sort(chosen), -(-len(chosen) // batch_size))
    normalised = [CentreView(image)(images.batch(part)) for part in parts]
    if not _inside(encoder, image):
        return [x.numpy() for x in normalised]
    return [(x * column(image.std) + column(image.mean)).clamp(0, 1).numpy() for x in normalised]


def _inside(encoder: Encoder, image: ImageSpec) -> bool:
    """Does the graph normalise by itself?"""
    return encoder.image == image


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def require_one_file(encoder: Encoder) -> None:
    weights = 4 * sum(tensor.numel() for tensor in encoder.state_dict().values())
    if weights > ONE_FILE:
        raise ExportError(
            f"{encoder.backbone.spec.name} has {weights / 1e9:.1f} GB of weights in fp32; one ONNX file holds 2.1 GB. "
            "Distil a smaller student (attar distill), or export safetensors."
        )


def require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingDependency(
                f"{package} is not installed; export to ONNX needs: pip install 'attar[export]'"
            ) from None


@contextlib.contextmanager
def renamed_when_done(out: Path) -> Iterator[Path]:
    """A path beside `out` that becomes `out` if all goes well and vanishes otherwise."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporter talks on stdout, stderr, warnings and logs; errors still come as exceptions."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# ---- what a person pastes ------------------------------------------------------------------------------------------


def preparation(image: ImageSpec) -> str:
    """An image file -> `pixels`, float32 (1, C, H, W) in [0, 1], without attar."""
    size, channels = image.size, image.channels
    if channels not in (1, 3):
        return f"""\
stored = np.load("photo.npy")  # uint8 (H, W, {channels})
planes = [Image.fromarray(stored[:, :, c]) for c in range({channels})]
side = min(planes[0].size) * {image.crop_fraction:g}
left, top = (planes[0].width - side) / 2, (planes[0].height - side) / 2
box = (left, top, left + side, top + side)
planes = [p.resize(({size}, {size}), Image.Resampling.BILINEAR, box=box) for p in planes]
pixels = np.stack([np.asarray(p, np.float32) for p in planes])[None] / 255
"""
    return f"""\
picture = Image.open("photo.jpg").convert("{"L" if channels == 1 else "RGB"}")
side = min(picture.size) * {image.crop_fraction:g}
left, top = (picture.width - side) / 2, (picture.height - side) / 2
box = (left, top, left + side, top + side)
picture = picture.resize(({size}, {size}), Image.Resampling.BILINEAR, box=box)
pixels = np.asarray(picture, np.float32).reshape({size}, {size}, {channels})
pixels = pixels.transpose(2, 0, 1)[None] / 255
"""


def _onnx_snippet(encoder: Encoder, image: ImageSpec, path: Path, classifier: Classifier | None) -> str:
    lines = [preparation(image).rstrip()]
    note = "; normalisation is inside"
    if not _inside(encoder, image):
        column = lambda values: f"np.array({list(values)}, np.float32).reshape(1, -1, 1, 1)"  # noqa: E731
        lines.append(f"pixels = (pixels - {column(image.mean)}) / {column(image.std)}")
        note = ""
    prepared = "\n".join(lines)
    run = f'features = session.run(None, {{"images": pixels}})[0]  # (1, {encoder.num_features}){note}\n'
    if classifier is not None:
        run = f"""\
# (1, {encoder.num_features}) and (1, {len(classifier.classes)}){note}
features, logits = session.run(["features", "logits"], {{"images": pixels}})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
{PROBABILITIES}"""
    return f"""\
{"" if classifier is None else "import json" + 2 * chr(10)}import numpy as np
import onnxruntime
from PIL import Image

{prepared}

session = onnxruntime.InferenceSession({str(path)!r})
{run}"""


PROBABILITIES = """\
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
print(classes[probabilities.argmax()], probabilities.max())
"""


def _with_classes(snippet: str, classifier: Classifier, path: Path) -> str:
    """A snippet that ends in `features`, led on to class scores; torch prints layers as the code that builds them."""
    layers = ", ".join(f"torch.nn.{layer}" for layer in classifier.head.children())
    pillow = "from PIL import Image\n"
    begun = "import json\n\n" + snippet.replace(pillow, pillow + "from safetensors import safe_open\n", 1)
    return f"""\
{begun}
classifier = torch.nn.Sequential({layers})
with safe_open({str(path)!r}, "pt") as file:
    classifier.load_state_dict({{name: file.get_tensor(name) for name in file.keys()}})
    classes = json.loads(file.metadata()["classes"])
logits = classifier.eval()(features)  # (1, {len(classifier.classes)})
print(classes[logits.argmax()], logits.softmax(dim=1).max().item())
"""


def _weights_snippet(encoder: Encoder, format: str, path: Path) -> str:
    """Plain timm where timm can build the network and the names are its own, otherwise attar's own building blocks."""
    backbone, image = encoder.backbone, encoder.image
    spec, network = backbone.spec, backbone.network
    if format == "timm" and type(network).__module__.startswith("timm."):
        imports = "import timm"
        size = f", img_size={spec.image_size}" if hasattr(network, "patch_embed") else ""
        build = f"network = timm.create_model({spec.name!r}, num_classes=0, in_chans={spec.channels}{size})\n"
        if spec.stem == "small":
            conv: Any = network.conv1
            sizes = f"{spec.channels}, {conv.out_channels}, 3, padding=1, bias={conv.bias is not None}"
            build += f"network.conv1, network.maxpool = torch.nn.Conv2d({sizes}), torch.nn.Identity()\n"
    else:
        imports = "from attar.models.backbones import build_backbone"
        options = f"channels={spec.channels}, image_size={spec.image_size}, stem={spec.stem!r}"
        part = ".network" if format == "timm" else ""
        build = f"network = build_backbone({spec.name!r}, {options}){part}\n"
    third_party = ["import numpy as np", "import torch", "from PIL import Image"]
    imported = "\n".join([*third_party, "from safetensors.torch import load_file", imports])
    return f"""\
{imported}

{preparation(image)}
{build}network.load_state_dict(load_file({str(path)!r}))
mean = torch.tensor({list(image.mean)}).view(1, -1, 1, 1)
std = torch.tensor({list(image.std)}).view(1, -1, 1, 1)
features = network.eval()((torch.from_numpy(pixels) - mean) / std)  # (1, {encoder.num_features})
"""


def attar_snippet(folder: Path, image: ImageSpec, num_features: int) -> str:
    """How to load a run folder in Python."""
    return f"""\
import attar
import numpy as np
import torch
from PIL import Image

{preparation(image)}
encode = attar.load({str(folder)!r})
features = encode(torch.from_numpy(pixels))  # (1, {num_features}); normalisation is inside
"""
