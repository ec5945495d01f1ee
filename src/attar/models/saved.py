"""Weights on disk: backbone.safetensors with backbone.json, and likewise the projector and the classifier.

Nothing is unpickled; digests and full coverage are checked, because a teacher that loaded half is a random teacher.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from attar.errors import BackboneError, CheckpointError
from attar.models import every_stage, handcrafted
from attar.models.backbones import Backbone, BackboneSpec, build_backbone, build_small, check_name
from attar.models.heads import MLP

FORMAT = "attar.backbone/1"


def save_backbone(folder: Path, backbone: Backbone, image: ImageSpec, *, provenance: dict[str, Any]) -> None:
    """Write the backbone's weights and everything needed to use them; backbone.json comes last and atomically.

    provenance: where it comes from (method, data and teacher digests, …), JSON.
    """
    digest = _save_weights(folder / "backbone.safetensors", backbone)
    _write_json(
        folder / "backbone.json",
        {
            "format": FORMAT,
            "backbone": backbone.spec.to_json(),
            "image": image.to_json(),
            "num_features": backbone.num_features,
            "sha256": digest,
            "provenance": provenance,
        },
    )


def load_backbone(
    spec: str | Path, *, image_size: int | None = None, channels: int | None = None, pretrained: bool = True
) -> tuple[Backbone, ImageSpec, dict[str, Any]]:
    """A backbone in eval mode, the images it expects, and its provenance.

    Args:
        spec: a run folder (or any folder with backbone.json), or a file of `attar export --format packed`; NAME@FILE
            for a network with the weights of a file (weights_file.py); otherwise "hog", "pixels" or a timm name, whose
            published weights are loaded unless pretrained is False.
        image_size, channels: for names only (NAME@FILE is one); a saved backbone knows its own.

    Raises:
        CheckpointError: a folder without a complete backbone, damaged or tampered weights, or partial coverage.
        BackboneError: an unknown name, or weights that are not at hand.
    """
    folder = Path(spec)
    if folder.is_dir():
        return _load_saved(folder)
    if folder.suffix == ".safetensors" and folder.is_file():
        from attar.models.packed import load_packed

        return load_packed(folder)
    from attar.models import weights_file

    if parts := weights_file.name_and_file(spec):
        return weights_file.load_named(*parts, image_size=image_size, channels=channels)
    name = str(spec)
    if folder.is_file():
        raise CheckpointError(f"{name}: which network are these weights of? Give NAME@{name}, e.g. resnet50@{name}.")
    if os.sep in name or name.startswith("."):
        raise CheckpointError(f"{folder.absolute()} does not exist; give a run folder, or the name of a backbone.")
    fixed = name in handcrafted.NAMES
    try:
        check_name(name)
    except BackboneError as error:
        raise BackboneError(f"there is no folder {name!r} here; as a name: {error}") from None
    if fixed or not pretrained:
        backbone = build_backbone(name, channels=channels or 3, image_size=image_size or 224)
        image = plain_image(image_size or 224, channels or 3)
    else:
        backbone = build_backbone(name, channels=channels or 3, image_size=image_size or 224, pretrained=_is_timm(name))
        image = timm_image(backbone, image_size)
    return backbone.eval(), image, {"name": name, "pretrained": not fixed and pretrained}


def _load_saved(folder: Path) -> tuple[Backbone, ImageSpec, dict[str, Any]]:
    description = folder / "backbone.json"
    if not description.is_file():
        unfinished = (folder / "recipe.yaml").is_file()
        why = "the run is not finished; continue it with --resume" if unfinished else "it is no run of attar"
        raise CheckpointError(f"{folder.absolute()} has no backbone.json: {why}.")
    try:
        values = json.loads(description.read_text())
        if values["format"] != FORMAT:
            raise CheckpointError(f"{description} has format {values['format']!r}; this version reads {FORMAT!r}.")
        spec, image = BackboneSpec.from_json(values["backbone"]), ImageSpec.from_json(values["image"])
        digest, provenance = values["sha256"], values["provenance"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{description} is not a description of a backbone: {error}") from error
    backbone = build_backbone(
        spec.name, channels=spec.channels, image_size=spec.image_size, stem=spec.stem, drop_path=spec.drop_path
    )
    _load_weights(folder / "backbone.safetensors", backbone, digest)
    return backbone.eval(), image, {**provenance, "sha256": digest}


def start_from(backbone: Backbone, spec: str | Path) -> str:
    """Give a new backbone the weights of a finished run or of NAME@FILE, all of them; returns their digest.

    The run's network may have another name as long as all parameters have the same names and shapes, as a network of
    real weights and its binary twin do. stages_NAME takes the weights of NAME, too.

    Raises:
        CheckpointError: no finished run, damaged weights, or another network.
    """
    from attar.models import weights_file

    digest, folder = saved_digest(spec), Path(spec)
    if parts := weights_file.name_and_file(spec):
        if parts[0] not in (backbone.spec.name, backbone.spec.name.removeprefix(every_stage.PREFIX)):
            raise CheckpointError(f"--init {spec} is a {parts[0]}, and the backbone a {backbone.spec.name}.")
        weights_file.fill(backbone, parts[1])
        return digest
    theirs = json.loads((folder / "backbone.json").read_text())["backbone"]["name"]
    network: Any = backbone.network
    read = isinstance(network, every_stage.EveryStage) and not theirs.startswith(every_stage.PREFIX)
    module, cut = (network.whole, {f"network.{name}" for name in network.cut}) if read else (backbone, set())
    try:
        _load_weights(folder / "backbone.safetensors", module, digest, without=cut)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} holds a {theirs}, whose weights do not fit {backbone.spec.name}: {error}"
        ) from None
    return digest


def saved_digest(spec: str | Path) -> str:
    """Of the weights of a finished run, or of NAME@FILE."""
    from attar.models import weights_file

    if parts := weights_file.name_and_file(spec):
        weights_file.check(*parts)
        return file_digest(parts[1])
    folder = Path(spec)
    description = folder / "backbone.json"
    if not description.is_file():
        raise CheckpointError(f"{folder.absolute()} is no finished run: it has no backbone.json.")
    return json.loads(description.read_text())["sha256"]


def load_weights(module: nn.Module, path: Path, *, without: Collection[str] = ()) -> None:
    """Load a .safetensors file into a module; names must match in full, both ways, but for those `without` which.

    Raises:
        CheckpointError: missing file, another format, or keys that are missing or left over (named).
    """
    if not path.is_file():
        raise CheckpointError(f"{path.absolute()} does not exist.")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: weights are read from .safetensors only; other formats can hold code.")
    try:
        state = {name: tensor for name, tensor in load_file(path).items() if name not in without}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    check_coverage(path, module.state_dict(), state)
    module.load_state_dict(state)


def save_head(folder: Path, name: str, head: MLP, *, classes: Sequence[str] = ()) -> None:
    """Keep a head beside its backbone: "projector", whose embedding distillers learn from, or "classifier"."""
    digest = _save_weights(folder / f"{name}.safetensors", head)
    described = {"format": f"attar.{name}/1", "spec": head.spec, "sha256": digest}
    _write_json(folder / f"{name}.json", described | ({"classes": list(classes)} if name == "classifier" else {}))


def load_head(folder: Path, name: str) -> MLP | None:
    """The head of a run in eval mode, or None if it kept none of this name."""
    description = folder / f"{name}.json"
    if not description.is_file():
        return None
    try:
        values = json.loads(description.read_text())
        head = MLP.from_spec(values["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{description} is not a description of a {name}: {error}") from error
    _load_weights(folder / f"{name}.safetensors", head, values["sha256"])
    return head.eval()


def head_digest(folder: Path, name: str) -> str:
    """Of a head's weights; "" if the run kept none of this name."""
    description = folder / f"{name}.json"
    return json.loads(description.read_text())["sha256"] if description.is_file() else ""


def classes_of(folder: Path) -> tuple[str, ...]:
    """Names of the classes that a run's classifier tells apart, in the order of its logits."""
    return tuple(json.loads((folder / "classifier.json").read_text())["classes"])


def _load_weights(path: Path, module: nn.Module, digest: str, *, without: Collection[str] = ()) -> None:
    if path.is_file() and file_digest(path) != digest:
        raise CheckpointError(
            f"{path} is not what was saved: its digest differs from the description beside it. Restore it from a copy."
        )
    load_weights(module, path, without=without)


def check_coverage(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{path} covers {len(wanted) - len(missing) - len(shapes)} of {len(wanted)} tensors; all are needed. "
            f"Missing: {_few(missing)}. Left over: {_few(extra)}. Other shapes: {_few(shapes)}."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "") if names else "none"


def file_digest(path: Path) -> str:
    """sha256 of a file, read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _save_weights(path: Path, module: nn.Module) -> str:
    """Write beside, then rename; returns the file's digest."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}, temporary)
    digest = file_digest(temporary)
    os.replace(temporary, path)
    return digest


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=1))
    os.replace(temporary, path)


def _is_timm(name: str) -> bool:
    from attar.models import small_vits

    plain = name.removeprefix(every_stage.PREFIX)
    if build_small(plain, channels=3) is not None or small_vits.matches(plain):
        raise BackboneError(
            f"{name} has no published weights; as a teacher or for evaluation give a run folder, a timm name, or "
            f"{name}@FILE with weights of your own."
        )
    return True


def plain_image(size: int, channels: int) -> ImageSpec:
    if channels == 3:
        return ImageSpec(size=size, channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return ImageSpec(size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)


def timm_image(backbone: Backbone, image_size: int | None) -> ImageSpec:
    """What timm says the weights were trained with."""
    config: dict[str, Any] | None = getattr(backbone.network, "pretrained_cfg", None)  # type: ignore[assignment]
    if config is None:
        raise BackboneError(
            f"{backbone.spec.name} has no published weights of its own; as a teacher or for evaluation give a run "
            "folder."
        )
    channels, size = backbone.spec.channels, image_size or config["input_size"][-1]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels != len(mean):  # timm sums or repeats the first layer's weights for other channels
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return ImageSpec(size=size, channels=channels, mean=mean, std=std, crop_fraction=config.get("crop_pct") or 1.0)
