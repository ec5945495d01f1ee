"""Export: the backbone in a format to deploy, checked against the original before it is handed over.

    safetensors   the weights, with a loading snippet       timm    the same under timm's names
    onnx          normalisation inside; parity and latency  int8    ONNX, statically quantised

The ONNX graph takes `images`, float pixels in [0, 1], (B, C, H, W) with any B, and gives `features` (B, D).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attar.data.images import Images, ImageSpec
from attar.errors import AttarError, MissingDependency, RecipeError, unknown_name
from attar.models.backbones import Backbone
from attar.models.encoder import Encoder

if TYPE_CHECKING:
    import onnxruntime

FORMATS = {"onnx": ".onnx", "safetensors": ".safetensors", "timm": ".timm.safetensors", "int8": ".int8.onnx"}
OPSET = 18
PARITY_BATCHES = (1, 7)
LATENCY_BATCHES = (1, 32)
TOLERANCE = 1e-3  # of the largest feature: fp32 kernels of two runtimes agree to about 1e-5


class ExportError(AttarError):
    """An export that does not compute what the original computes; nothing is left behind."""


@dataclass(frozen=True)
class ExportResult:
    """What was written and what it is worth.

    parity: batch size -> largest difference to PyTorch, as a share of the largest feature. latency_ms: runtime ->
    batch size -> median milliseconds of a batch on one CPU thread. cosine: int8 only, mean similarity of its
    features to those in fp32 on the calibration images.
    """

    path: Path
    format: str
    bytes: int
    num_parameters: int
    snippet: str
    parity: dict[int, float] = field(default_factory=dict)
    latency_ms: dict[str, dict[int, float]] = field(default_factory=dict)
    cosine: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    def text(self) -> str:
        lines = [f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.num_parameters / 1e6:.2f} M parameters"]
        if self.parity:
            worst = ", ".join(f"batch {b}: {value:.1e}" for b, value in self.parity.items())
            lines.append(f"parity with PyTorch (largest difference, share of the largest feature): {worst}")
        if self.cosine is not None:
            lines.append(f"features against fp32: cosine similarity {self.cosine:.4f} on the calibration images")
        for runtime, by_batch in self.latency_ms.items():
            times = ", ".join(f"batch {b}: {ms:.2f} ms" for b, ms in by_batch.items())
            lines.append(f"latency of {runtime}, one CPU thread: {times}")
        return "\n".join([*lines, "", self.snippet])


def export_backbone(
    backbone: Backbone,
    image: ImageSpec,
    *,
    format: str,
    out: Path,
    calibration: Images | None = None,
) -> ExportResult:
    """Write a backbone to `out` (beside it first, then renamed) and check what was written.

    Args:
        format: onnx, safetensors, timm or int8. calibration: images for int8, a few hundred.

    Raises:
        RecipeError: an unknown format, int8 without calibration images, or images it would ignore.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the exported network differs from the original.
    """
    if format not in FORMATS:
        raise RecipeError(unknown_name("format", format, FORMATS))
    if (calibration is not None) != (format == "int8"):
        raise RecipeError(
            "int8 needs images to calibrate with: --calibration SOURCE."
            if format == "int8"
            else f"--calibration would be ignored: it belongs to int8, not to {format}."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(backbone, image).cpu().float().eval()
    if format in ("safetensors", "timm"):
        return _export_weights(encoder, format, out)
    _require_onnx()
    if format == "onnx":
        return _export_onnx(encoder, out)
    assert calibration is not None
    return _export_int8(encoder, out, calibration)


def _export_weights(encoder: Encoder, format: str, out: Path) -> ExportResult:
    from safetensors.torch import save_file

    backbone = encoder.backbone
    state = backbone.timm_state_dict() if format == "timm" else backbone.state_dict()
    with _renamed_when_done(out) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, temporary)
    snippet = _timm_snippet(encoder, out) if format == "timm" else _attar_snippet(encoder, out)
    return ExportResult(out, format, out.stat().st_size, _num_parameters(encoder), snippet)


def _export_onnx(encoder: Encoder, out: Path) -> ExportResult:
    with _renamed_when_done(out) as temporary:
        _write_onnx(encoder, temporary)
        session = _session(temporary)
        parity = {batch: _difference(encoder, session, batch) for batch in PARITY_BATCHES}
        if max(parity.values()) > TOLERANCE:
            raise ExportError(
                f"{out}: the ONNX network differs from PyTorch by {max(parity.values()):.2e} of the largest feature "
                f"(accepted: {TOLERANCE:g}). Nothing was written; please report the backbone, "
                f"{encoder.backbone.spec.name}."
            )
        latency = {"PyTorch": _latency(lambda x: encoder(torch.from_numpy(x)), encoder.image)}
        latency["ONNX Runtime"] = _latency(lambda x: session.run(None, {"images": x}), encoder.image)
    return ExportResult(
        out, "onnx", out.stat().st_size, _num_parameters(encoder), _onnx_snippet(encoder, out), parity, latency
    )


def _export_int8(encoder: Encoder, out: Path, calibration: Images) -> ExportResult:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = _pixels(encoder.image, calibration)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    full, prepared = out.with_suffix(".fp32.tmp"), out.with_suffix(".prepared.tmp")
    try:
        with _renamed_when_done(out) as temporary, _quiet():
            _write_onnx(encoder, full)
            quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(temporary),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            session, reference = _session(temporary), _session(full)
            latency = {"ONNX Runtime fp32": _latency(lambda x: reference.run(None, {"images": x}), encoder.image)}
            latency["ONNX Runtime int8"] = _latency(lambda x: session.run(None, {"images": x}), encoder.image)
            ours = np.concatenate([session.run(None, {"images": b})[0] for b in batches])
            theirs = np.concatenate([reference.run(None, {"images": b})[0] for b in batches])
    finally:
        full.unlink(missing_ok=True)
        prepared.unlink(missing_ok=True)
    cosine = (ours * theirs).sum(1) / np.maximum(np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1), 1e-12)
    return ExportResult(
        out,
        "int8",
        out.stat().st_size,
        _num_parameters(encoder),
        _onnx_snippet(encoder, out),
        latency_ms=latency,
        cosine=float(cosine.mean()),
    )


def _write_onnx(encoder: Encoder, path: Path) -> None:
    """One file, dynamic batch, with what is needed to use it among the metadata."""
    import onnx

    import attar

    size, channels = encoder.image.size, encoder.image.channels
    example = torch.rand(2, channels, size, size)
    with _quiet():
        program = torch.onnx.export(
            encoder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    metadata = {
        "attar.version": attar.__version__,
        "backbone": encoder.backbone.spec.name,
        "size": str(size),
        "channels": str(channels),
        "input": "images, float32 pixels in [0, 1], (B, C, H, W)",
        "num_features": str(encoder.num_features),
        "crop_fraction": f"{encoder.image.crop_fraction:g}",
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))


def _session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _difference(encoder: Encoder, session: onnxruntime.InferenceSession, batch: int) -> float:
    """Largest absolute difference on random pixels, as a share of the largest feature."""
    size, channels = encoder.image.size, encoder.image.channels
    images = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(batch))
    wanted = encoder(images).numpy()
    found = session.run(None, {"images": images.numpy()})[0]
    if found.shape != wanted.shape:
        raise ExportError(f"the ONNX network gives {found.shape} for a batch of {batch}, PyTorch {wanted.shape}.")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def _latency(run: Callable[[np.ndarray], Any], image: ImageSpec, *, repeats: int = 15) -> dict[int, float]:
    """Median milliseconds a batch, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        with torch.no_grad():
            for batch in LATENCY_BATCHES:
                pixels = np.random.default_rng(0).random((batch, image.channels, image.size, image.size), np.float32)
                for _ in range(2):
                    run(pixels)
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    run(pixels)
                    times.append(time.perf_counter() - began)
                found[batch] = round(1000 * statistics.median(times), 3)
    finally:
        torch.set_num_threads(threads)
    return found


def _pixels(image: ImageSpec, images: Images, *, limit: int = 256, batch_size: int = 32) -> list[np.ndarray]:
    """Central views of up to `limit` images as float pixels in [0, 1]."""
    from attar.views.augmentation import CentreView

    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:limit])
    view = CentreView(image)
    column = lambda values: torch.tensor(values).view(1, -1, 1, 1)  # noqa: E731
    normalised = (view(images.batch(part)) for part in np.array_split(chosen, max(-(-len(chosen) // batch_size), 1)))
    return [(x * column(image.std) + column(image.mean)).clamp(0, 1).numpy() for x in normalised]


def _num_parameters(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.parameters())


def _require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingDependency(
                f"{package} is not installed; export to ONNX needs: pip install 'attar[export]'"
            ) from None


@contextlib.contextmanager
def _renamed_when_done(out: Path) -> Iterator[Path]:
    """A path beside `out` that becomes `out` if all goes well and vanishes otherwise."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _preparation(image: ImageSpec) -> str:
    """PIL image -> `pixels`, float32 (1, C, H, W) in [0, 1], without attar."""
    mode = {1: "L", 3: "RGB"}.get(image.channels, "RGB")
    return f"""\
picture = Image.open("photo.jpg").convert("{mode}")
side = min(picture.size) * {image.crop_fraction:g}
left, top = (picture.width - side) / 2, (picture.height - side) / 2
box = (left, top, left + side, top + side)
picture = picture.resize(({image.size}, {image.size}), Image.Resampling.BILINEAR, box=box)
pixels = np.asarray(picture, np.float32).reshape({image.size}, {image.size}, {image.channels})
pixels = pixels.transpose(2, 0, 1)[None] / 255
"""


def _onnx_snippet(encoder: Encoder, path: Path) -> str:
    return f"""\
import numpy as np
import onnxruntime
from PIL import Image

{_preparation(encoder.image)}
session = onnxruntime.InferenceSession({str(path)!r})
features = session.run(None, {{"images": pixels}})[0]  # (1, {encoder.num_features}); normalisation is inside
"""


def _timm_snippet(encoder: Encoder, path: Path) -> str:
    spec, image = encoder.backbone.spec, encoder.image
    if not _is_plain_timm(encoder.backbone):
        return _attar_snippet(encoder, path.parent)
    return f"""\
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

{_preparation(image)}
network = timm.create_model({spec.name!r}, num_classes=0, in_chans={spec.channels}{_timm_size(encoder.backbone)})
network.load_state_dict(load_file({str(path)!r}))
mean = torch.tensor({list(image.mean)}).view(1, -1, 1, 1)
std = torch.tensor({list(image.std)}).view(1, -1, 1, 1)
features = network.eval()((torch.from_numpy(pixels) - mean) / std)  # (1, {encoder.num_features})
"""


def _is_plain_timm(backbone: Backbone) -> bool:
    """A network that timm builds as it is: not an own one, and without a changed stem."""
    return type(backbone.network).__module__.startswith("timm.") and backbone.spec.stem == "standard"


def _timm_size(backbone: Backbone) -> str:
    return f", img_size={backbone.spec.image_size}" if hasattr(backbone.network, "patch_embed") else ""


def _attar_snippet(encoder: Encoder, path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    return f"""\
import attar
import numpy as np
import torch
from PIL import Image

{_preparation(encoder.image)}
encode = attar.load({str(folder)!r})
features = encode(torch.from_numpy(pixels))  # (1, {encoder.num_features}); normalisation is inside
"""


def snippet_of(run: Path, backbone: Backbone, image: ImageSpec) -> str:
    """How to load a run from Python: for a report."""
    return _attar_snippet(Encoder(backbone, image), run)
