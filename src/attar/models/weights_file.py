"""A network by name with the weights of a file, NAME@FILE: published ones without a connection, or somebody else's.

FILE holds tensors under the names that the network's own parameters have: all of them, and at most a classifier
besides. Nothing in it is executed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import BackboneError, CheckpointError
from attar.models import handcrafted
from attar.models.backbones import Backbone, build_backbone, check_name, published_config
from attar.models.every_stage import EveryStage
from attar.models.saved import check_coverage, file_digest, plain_image, timm_image

logger = logging.getLogger("attar")

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("module.", "whole.", "network.", "_orig_mod.")  # of DataParallel, of `attar export`, of torch.compile


def name_and_file(spec: str | Path) -> tuple[str, Path] | None:
    """The parts of "NAME@FILE"; None for anything else, and for a folder or file that is called so.

    >>> name_and_file("resnet50@weights/resnet50.pth")[0]
    'resnet50'
    >>> name_and_file("runs/a@b") is None
    True
    """
    name, _, file = str(spec).partition("@")
    if not name or not file or "/" in name or os.sep in name or Path(spec).exists():
        return None
    return name, Path(file).expanduser()


def is_there(spec: str | Path) -> bool:
    """A folder or file, or NAME@FILE of a file."""
    parts = name_and_file(spec)
    return parts[1].exists() if parts else Path(spec).exists()


def has_no_size(spec: str | Path) -> bool:
    """NAME@FILE of a network that nobody published weights of, or of one with the stem for small images, which nobody
    did either: nothing tells what images it is for.

    Raises:
        BackboneError, CheckpointError: as `check`, and a file that holds no tensors.
    """
    parts = name_and_file(spec)
    if parts is None:
        return False
    published = published_config(parts[0])
    if published is None or published.first_conv != "conv1":  # only ResNets and their kin have such a stem
        return published is None
    check(*parts)
    return _input_held(build_backbone(parts[0]), read_tensors(parts[1]))[1] == "small"


def absolute(spec: str | Path) -> str:
    """The same from any folder: a path or NAME@FILE with the file's whole path; a name as it is."""
    if parts := name_and_file(spec):
        return f"{parts[0]}@{parts[1].absolute()}"
    return str(Path(spec).absolute()) if Path(spec).exists() else str(spec)


def check(name: str, path: Path) -> None:
    """What can be said before anything is read.

    Raises:
        BackboneError, CheckpointError: an unknown network or one without weights; a file that is missing or of
            another kind.
    """
    check_name(name)
    if name in handcrafted.NAMES:
        raise BackboneError(f"{name}@{path}: {name} has no weights; leave @{path} out.")
    if path.is_dir():
        raise CheckpointError(f"{name}@{path}: {path} is a folder; give a file, or of a run the folder alone.")
    if not path.is_file():
        raise CheckpointError(f"{name}@{path}: there is no file {path.absolute()}.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: weights are read from {', '.join(SUFFIXES)} files.")


def load_named(
    name: str, path: Path, *, image_size: int | None = None, channels: int | None = None
) -> tuple[Backbone, ImageSpec, dict[str, Any]]:
    """As `attar.models.saved.load_backbone`.

    Channels and stem are the file's. It says nothing of the images its network was trained on, so they are taken to be
    normalised as timm says of this network's published weights, or by ImageNet's statistics for other networks and for
    the stem for small images; said aloud.

    Raises:
        BackboneError, CheckpointError: as `check` and `fill`.
    """
    check(name, path)
    published = published_config(name)
    size = image_size or (published.input_size[-1] if published else 224)
    backbone = build_backbone(name, channels=channels or 3, image_size=size)
    held = read_tensors(path)
    own, stem = _input_held(backbone, held)
    channels = channels or own
    if (channels, stem) != (backbone.spec.channels, backbone.spec.stem):
        backbone = build_backbone(name, channels=channels, image_size=size, stem=stem)
    _fill(backbone, held, path)
    if stem == "small":
        logger.info("%s: a first layer of 3 x 3, taken for the stem for small images (stride 1, no pooling).", path)
    known = stem == "standard" and bool(getattr(backbone.network, "pretrained_cfg", None))
    image = timm_image(backbone, size) if known else plain_image(size, channels)
    logger.info(
        "%s: its images are taken to have %d x %d pixels, mean (%s), standard deviation (%s): %s.",
        path,
        size,
        size,
        ", ".join(f"{value:.3g}" for value in image.mean),
        ", ".join(f"{value:.3g}" for value in image.std),
        f"what timm says of {name}" if known else "the usual ones",
    )
    return backbone.eval(), image, {"name": name, "file": str(path.absolute()), "sha256": file_digest(path)}


def fill(backbone: Backbone, path: Path) -> None:
    """Give a network the weights of a file, all of them; the file may hold a classifier besides.

    A first layer for other channels and positions of another grid are fitted to the network as timm does it.

    Raises:
        CheckpointError: not a file of tensors; tensors that are missing, left over, or of other shapes.
    """
    _fill(backbone, read_tensors(path), path)


def _fill(backbone: Backbone, held: dict[str, Tensor], path: Path) -> None:
    network, cut = _held_by_files(backbone)
    wanted = network.state_dict()
    found = _without_wrapper(held, wanted)
    heads = tuple(f"{name}." for name in _named(backbone, "classifier"))
    state = {n: t for n, t in found.items() if n in wanted or not (n in cut or (heads and n.startswith(heads)))}
    for name, tensor in wanted.items():
        if name.endswith(".num_batches_tracked"):  # old files have none; nothing is computed from them
            state.setdefault(name, tensor)
    _fit_input(network, wanted, state, first_layers=_named(backbone, "first_conv"))
    try:
        check_coverage(path, wanted, state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The names and shapes must be those of {backbone.spec.name} (stem {backbone.spec.stem}, "
            f"{backbone.spec.channels} channels, {backbone.spec.image_size} pixels). Of a run, give the folder."
        ) from None
    network.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch archive by name; a common wrapper is taken off.

    Raises:
        CheckpointError: a damaged file, or one that holds something else, or several networks.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage and each kind of content has its own
        raise CheckpointError(
            f"{path} is damaged, or holds something else than tensors, which is not read because it could run code "
            f"({type(error).__name__}). Where it comes from, keep the tensors alone: torch.save(network.state_dict(), "
            "FILE)."
        ) from error
    if _are_tensors(held):
        return dict(held)
    parts = {str(key): part for key, part in held.items() if _are_tensors(part)} if isinstance(held, Mapping) else {}
    if len(parts) != 1:
        several = f"several networks ({', '.join(parts)})" if parts else f"no tensors by name (a {type(held).__name__})"
        raise CheckpointError(f"{path} holds {several}; give a file with the state_dict of one network.")
    return dict(next(iter(parts.values())))


def _input_held(backbone: Backbone, held: dict[str, Tensor]) -> tuple[int, str]:
    """Channels and stem of a file's network, by its first layer; the backbone's own where that tells neither."""
    wanted = _held_by_files(backbone)[0].state_dict()
    named = [f"{layer}.weight" for layer in _named(backbone, "first_conv")]
    first = next((n for n in named or wanted if n in wanted and wanted[n].ndim == 4), "")
    tensor = _without_wrapper(held, wanted).get(first)
    channels, stem = backbone.spec.channels, backbone.spec.stem
    if tensor is None or tensor.ndim != 4:
        return channels, stem
    if tensor.shape[1] != wanted[first].shape[1]:  # equal says nothing more: a first layer may see some channels only
        channels = tensor.shape[1]
    if first == "conv1.weight" and tensor.shape[-1] == 3 < wanted[first].shape[-1]:
        stem = "small"
    return channels, stem


def _held_by_files(backbone: Backbone) -> tuple[nn.Module, frozenset[str]]:
    """The network whose tensors files hold, and the names of those that are not needed: stages_NAME takes NAME's."""
    network: Any = backbone.network
    return (network.whole.network, network.cut) if isinstance(network, EveryStage) else (network, frozenset())


def _named(backbone: Backbone, part: str) -> tuple[str, ...]:
    """The layers that timm calls a network's first_conv or classifier; none of others' networks."""
    config: Mapping[str, Any] = getattr(backbone.network, "pretrained_cfg", None) or {}
    given = config.get(part)
    return (given,) if isinstance(given, str) else tuple(given or ())


def _are_tensors(held: Any) -> bool:
    if not isinstance(held, Mapping) or not held:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items())


def _without_wrapper(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without a prefix that all of them have and the network's own do not."""
    while prefix := next((p for p in WRAPPERS if all(n.startswith(p) for n in found)), None):
        if not found or any(n.startswith(prefix) for n in wanted):
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _fit_input(
    network: nn.Module, wanted: Mapping[str, Tensor], state: dict[str, Tensor], *, first_layers: tuple[str, ...]
) -> None:
    """The first layer of three channels for others, and positions of a square grid for another; in place."""
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    for name in (f"{layer}.weight" for layer in first_layers):
        given, own = state.get(name), wanted.get(name)
        if given is not None and own is not None and given.ndim == own.ndim == 4 and given.shape[1] == 3:
            state[name] = adapt_input_conv(own.shape[1], given)
    given, own = state.get("pos_embed"), wanted.get("pos_embed")
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if given is not None and own is not None and given.ndim == 3 and grid and given.shape != own.shape:
        prefix = own.shape[1] - grid[0] * grid[1]  # class tokens and registers, where these have places
        if prefix >= 0 and round((given.shape[1] - prefix) ** 0.5) ** 2 == given.shape[1] - prefix:
            state["pos_embed"] = resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)
