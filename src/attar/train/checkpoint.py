"""Checkpoints: tensors (safetensors) and JSON, written atomically, refused when damaged or foreign.

    checkpoint/latest                the name of the newest complete one
    checkpoint/step-00000120/        tensors.safetensors, state.json, manifest.json (digests, whose it is)

A new one is written beside the old one, flushed to disk, and only then named in `latest`; the old one goes last.
A full disk or a kill at any moment therefore leaves a complete checkpoint. Nothing in a file is ever executed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from attar.errors import CheckpointError
from attar.models.saved import file_digest

FORMAT = "attar.checkpoint/1"


def save_checkpoint(folder: Path, state: dict[str, Any], *, step: int, identity: dict[str, Any]) -> Path:
    """Write `state` (nested dicts and lists of tensors, numbers, strings, None) as the newest checkpoint.

    identity: what the checkpoint belongs to (method, backbone, recipe …); compared when it is loaded.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk; the previous one stays valid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}"
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        tensors: dict[str, torch.Tensor] = {}
        skeleton = _take_tensors(state, "", tensors)
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(skeleton))
        digests = {part: file_digest(temporary / part) for part in ("tensors.safetensors", "state.json")}
        manifest = {"format": FORMAT, "step": step, "identity": identity, "sha256": digests}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for part in temporary.iterdir():
            _flush(part)
        _flush(temporary)
        shutil.rmtree(folder / name, ignore_errors=True)  # the same step again: after a resume
        os.replace(temporary, folder / name)
        _point(folder, name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        why = "no space is left on the disk" if full else str(error)
        raise CheckpointError(
            f"could not save a checkpoint in {folder}: {why}. The previous checkpoint is intact; "
            f"free some space and continue with --resume."
        ) from error
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    return folder / name


def has_checkpoint(folder: Path) -> bool:
    return (folder / "latest").is_file()


def load_checkpoint(folder: Path, *, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """The newest checkpoint's state, verified.

    Raises:
        CheckpointError: missing, damaged, tampered with, of another program, or of another run (identity differs;
            the text names the fields).
    """
    if not has_checkpoint(folder):
        raise CheckpointError(f"no checkpoint in {folder}: the file 'latest' is missing. Nothing was saved yet.")
    current = folder / (folder / "latest").read_text().strip()
    try:
        manifest = json.loads((current / "manifest.json").read_text())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{current} is not a checkpoint of attar: its manifest.json cannot be read.") from error
    if found != FORMAT:
        raise CheckpointError(f"{current} has format {found!r}; this version reads {FORMAT!r}.")
    for part in ("tensors.safetensors", "state.json"):
        if not (current / part).is_file() or file_digest(current / part) != manifest.get("sha256", {}).get(part):
            raise CheckpointError(
                f"{current / part} is not what was saved: its digest differs from the manifest. It is damaged or was "
                "changed; restore it from a copy, or start the run anew in another folder."
            )
    if identity is not None:
        _compare(current, manifest["identity"], json.loads(json.dumps(identity)))
    tensors = load_file(current / "tensors.safetensors")
    return _put_tensors(json.loads((current / "state.json").read_text()), tensors)


def _compare(where: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
    if differing:
        pairs = "; ".join(f"{k}: saved {saved.get(k)!r}, now {wanted.get(k)!r}" for k in differing[:6])
        raise CheckpointError(
            f"{where} belongs to another run ({pairs}). Resume with the settings of its recipe.yaml, or choose another "
            "--out."
        )


def _point(folder: Path, name: str) -> None:
    pointer = folder / ".latest.tmp"
    pointer.write_text(name)
    _flush(pointer)
    os.replace(pointer, folder / "latest")
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON skeleton of a state; tensors move to `tensors` under their path. Dicts keep the type of their keys."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _take_tensors(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_take_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"a checkpoint holds tensors, numbers and text; {path} is a {type(value).__name__}")


def _put_tensors(skeleton: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    (kind, content), *_ = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_tensors(item, tensors) for key, item in content}
    if kind == "list":
        return [_put_tensors(item, tensors) for item in content]
    return content
