"""Errors a user can cause. Each text says where, what was given, what is accepted, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


class AttarError(ValueError):
    """Base of all errors that a user's input can cause. The command line prints its text without a traceback."""


class DataError(AttarError):
    """A source that cannot be read, is empty, or lacks what was asked of it."""


class ShapeError(AttarError):
    """Tensors whose shapes do not fit; the text names both shapes."""


class RecipeError(AttarError):
    """A setting that does not exist, has the wrong type or range, or would be ignored."""


class BackboneError(AttarError):
    """An unknown backbone, or one that cannot take the images it is given."""


class CheckpointError(AttarError):
    """A checkpoint or weights file that is missing, foreign, damaged or does not fit."""


class RunError(AttarError):
    """A run folder that cannot be used: occupied, incomplete, or not a run."""


class RunChanged(RunError):
    """A folder that holds something else than what was asked for. found: what, as a sentence; advice: what to do."""

    def __init__(self, found: str, advice: str = ""):
        super().__init__(f"{found} {advice}".strip())
        self.found = found


class TrainingError(AttarError):
    """Training that had to stop: non-finite loss or collapse."""


class MissingDependency(AttarError, ImportError):
    """An optional package is needed for what was asked; the text says how to install it."""


def unknown_name(kind: str, given: str, known: Iterable[str], *, limit: int = 12) -> str:
    """Text for an unknown name: the known ones, nearest first.

    >>> unknown_name("method", "simcrl", ["moco", "simclr"])
    "unknown method 'simcrl'. Did you mean simclr? Known: simclr, moco."
    """
    ranked = sorted(known, key=lambda name: (-SequenceMatcher(None, given, name).ratio(), name))
    listed = ", ".join(ranked[:limit]) + (f", … ({len(ranked)} in all)" if len(ranked) > limit else "")
    close = ranked and SequenceMatcher(None, given, ranked[0]).ratio() >= 0.6
    hint = f"Did you mean {ranked[0]}? " if close else ""
    return f"unknown {kind} {given!r}. {hint}Known: {listed}."
