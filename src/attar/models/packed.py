"""A binary network in one small file: a bit for each binary weight, one scale a channel, everything else as it is.

The file is safetensors, with the description (network, images, provenance, digest) in its header. What is loaded from
it computes exactly what was saved. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import CheckpointError, RecipeError
from attar.models.backbones import Backbone, BackboneSpec, build_backbone
from attar.models.binary import BinaryConv2d, scales

FORMAT = "attar.packed/1"


def save_packed(path: Path, backbone: Backbone, image: ImageSpec, *, provenance: dict[str, Any]) -> tuple[int, int]:
    """Write the file; returns the bytes of the binary layers' weights as they were (fp32) and as they are now.

    Raises:
        RecipeError: the network has no binary weights.
    """
    layers = binary_layers(backbone)
    if not layers:
        raise RecipeError(
            f"packed holds the signs of binary weights, and {backbone.spec.name} has none. Use safetensors or int8; "
            "binary networks are reactnet, bnn_resnet8, …"
        )
    state = {name: t.detach().cpu().contiguous() for name, t in backbone.state_dict().items()}
    full = packed = 0
    for name in layers:
        weight = state.pop(f"{name}.weight").float()
        bits, scale = pack(weight)
        state |= {f"{name}.bits": bits, f"{name}.scale": scale}
        full += 4 * weight.numel()
        packed += bits.numel() + 4 * scale.numel()
    description = {
        "format": FORMAT,
        "backbone": backbone.spec.to_json(),
        "image": image.to_json(),
        "sha256": _digest(state),
        "provenance": provenance,
    }
    save_file(state, path, metadata={"attar": json.dumps(description)})
    return full, packed


def load_packed(path: Path) -> tuple[Backbone, ImageSpec, dict[str, Any]]:
    """The backbone in eval mode, the images it expects, and its provenance.

    Raises:
        CheckpointError: another file, a damaged one, or one that does not cover the network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("attar", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no packed network (attar export --format packed); give its run folder, or say which network "
            f"the weights are of: NAME@{path}."
        )
    if _digest(state) != description["sha256"]:
        raise CheckpointError(f"{path} is not what was saved: its digest differs. Restore it from a copy.")
    spec, image = BackboneSpec.from_json(description["backbone"]), ImageSpec.from_json(description["image"])
    backbone = build_backbone(spec.name, channels=spec.channels, image_size=spec.image_size)
    wanted = backbone.state_dict()
    for name in binary_layers(backbone):
        bits, scale = state.pop(f"{name}.bits", None), state.pop(f"{name}.scale", None)
        if bits is not None and scale is not None:
            state[f"{name}.weight"] = unpack(bits, scale, wanted[f"{name}.weight"].shape)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not cover {spec.name}: {error}") from error
    return backbone.eval(), image, {**description["provenance"], "sha256": description["sha256"]}


def binary_layers(network: nn.Module) -> list[str]:
    """Names of the layers whose weights are binary in the forward pass."""
    return [n for n, m in network.named_modules() if isinstance(m, BinaryConv2d) and m.binary_weights]


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signs as bits, uint8 (ceil(n / 8),), 1 for w >= 0, most significant first; scales fp32 (C,)."""
    return torch.from_numpy(np.packbits((weight >= 0).numpy().reshape(-1))), scales(weight)


def unpack(bits: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """Weights of two values a channel, scale * sign."""
    ones = np.unpackbits(bits.numpy(), count=shape.numel()).reshape(shape)
    return scale.view(-1, 1, 1, 1) * (2 * torch.from_numpy(ones).float() - 1)


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
