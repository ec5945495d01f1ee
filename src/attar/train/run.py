"""The run folder: where everything about one execution lies (see the README for the list of files)."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

import yaml

from attar.errors import RunError

MARKER = "attar.run/1"


class RunFolder:
    """Paths and small files of a run. `create` claims the folder for writing; `open` reads an existing one."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def has_begun(self) -> bool:
        """Has a step been taken? Before the first one there is nothing to lose."""
        steps = self.path / "metrics.jsonl"
        return self.is_complete or self.checkpoint.exists() or (steps.is_file() and steps.stat().st_size > 0)

    @property
    def is_complete(self) -> bool:
        return (self.path / "backbone.json").is_file()

    @property
    def is_part(self) -> bool:
        """Is it a network that a run trained and keeps beside its own, as RUN/teacher?"""
        return "part" in (self.read_json("backbone.json") or {}).get("provenance", {})

    @classmethod
    def create(cls, path: str | Path, *, resume: bool, needed_bytes: int = 0) -> RunFolder:
        """Make or reopen the folder for writing.

        Raises:
            RunError: the folder is in use (another process, a finished or unfinished run without resume, or
                foreign files), cannot be made, or the disk is nearly full.
        """
        cls.check(path, resume=resume)
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._claim()
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise RunError(f"cannot write to {run.path}: {why}. Choose another --out.") from error
        free = shutil.disk_usage(run.path).free
        if free < needed_bytes:
            raise RunError(
                f"{run.path}: no space: {free / 1e6:.0f} MB are free on this disk, and the run needs about "
                f"{needed_bytes / 1e6:.0f} MB (two checkpoints and the weights). Free some space, or choose an --out "
                "on another disk."
            )
        return run

    @classmethod
    def check(cls, path: str | Path, *, resume: bool) -> None:
        """What `create` would refuse, without making anything."""
        run = cls(Path(path))
        recipe = run / "recipe.yaml"
        if recipe.exists() and not resume and run.has_begun:
            raise RunError(
                f"{run.path} already holds a run. Continue it with --resume, or choose another --out; nothing was "
                "changed."
            )
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file; --out names a folder.")
        if run.path.is_dir() and not recipe.exists() and any(p.name != ".lock" for p in run.path.iterdir()):
            raise RunError(
                f"{run.path} is not empty and is no run of attar. Choose another --out; nothing was changed."
            )
        _check_parent(run.path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        run = cls(Path(path))
        if not (run / "recipe.yaml").is_file():
            raise RunError(
                f"{run.path.absolute()} is not a run: it has no recipe.yaml. Give the --out folder of a training."
            )
        return run

    def _claim(self) -> None:
        """One writer a folder. The lock is the system's, so it is gone with the process, however that ended."""
        try:
            import fcntl
        except ImportError:  # Windows: no advisory lock
            return
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115  held until release()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise RunError(
                    f"{self.path} is being written by another process. Wait for it, or choose another --out."
                ) from None
            raise

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            (self.path / ".lock").unlink(missing_ok=True)

    def write_recipe(self, values: dict[str, Any]) -> None:
        write_atomically(self / "recipe.yaml", yaml.safe_dump({"format": MARKER, **values}, sort_keys=False))

    def read_recipe(self) -> dict[str, Any]:
        try:
            values = yaml.safe_load((self / "recipe.yaml").read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"{self / 'recipe.yaml'} cannot be read: {error}.") from None
        if not isinstance(values, dict) or values.get("format") != MARKER:
            raise RunError(f"{self / 'recipe.yaml'} is not a recipe of attar ({MARKER}).")
        return values

    def write_json(self, name: str, values: Any) -> None:
        write_atomically(self / name, json.dumps(values, indent=1))

    def read_json(self, name: str) -> Any:
        if not (self / name).is_file():
            return None
        try:
            return json.loads((self / name).read_text())
        except ValueError as error:
            raise RunError(f"{self / name} is damaged: {error}. Delete it, or restore it from a copy.") from None


def check_writable(path: str | Path) -> Path:
    """The path of a file to write, with its folder made; before the work whose result it shall hold.

    Raises:
        RunError: it names a folder, or its folder cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise RunError(f"--out {path} is a folder; name a file in it.")
    _check_parent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {os.strerror(error.errno or 0)}. Choose another --out.") from error
    return path


def _check_parent(path: Path) -> None:
    """The nearest folder above that exists must be one, and writable."""
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if nearest == path.absolute():
        nearest = nearest if nearest.is_dir() else nearest.parent
    if not nearest.is_dir():
        raise RunError(f"cannot write {path}: {nearest} is a file, not a folder. Choose another --out.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {path}: {nearest} is not writable. Choose another --out.")


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
