"""What a run writes while it trains: one JSON object a step, TensorBoard scalars, a progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from attar.errors import TrainingError


class JsonLines:
    """A file of one JSON object a line. Opening at a step drops later rows, so a resumed run has no row twice."""

    def __init__(self, path: Path, *, from_step: int = 0):
        kept = []
        if path.exists() and from_step > 0:
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a line cut by a kill
                    continue
                if row["step"] < from_step:
                    kept.append(line)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(path)
        self._file: TextIO = open(path, "a")  # noqa: SIM115  closed by close()

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file; a last line cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class MetricsLog:
    """metrics.jsonl and TensorBoard, fed every step; values stay on the device until `flush`.

    `flush` is where a non-finite loss is noticed, so the loop flushes before every checkpoint: a checkpoint never
    holds what came after one.
    """

    def __init__(self, folder: Path, *, from_step: int, tensorboard: bool):
        self._rows = JsonLines(folder / "metrics.jsonl", from_step=from_step)
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor | float]]] = []
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step or None)

    def add(self, row: dict[str, Any], terms: dict[str, Tensor | float]) -> None:
        """row: plain numbers with step; terms: loss and every named term, tensors or numbers."""
        self._pending.append((row, terms))

    def flush(self) -> dict[str, float]:
        """Write what is pending; returns the last row's terms.

        Raises:
            TrainingError: at a non-finite loss, naming the step and the terms.
        """
        last: dict[str, float] = {}
        pending, self._pending = self._pending, []
        for row, terms in pending:
            last = {name: _number(value) for name, value in terms.items()}
            written = {name: value if math.isfinite(value) else str(value) for name, value in last.items()}
            self._rows.write({**row, **written})
            if self._board is not None:
                for name, value in {**last, "learning_rate": row["lr"]}.items():
                    self._board.add_scalar(name, value, row["step"])
            if not math.isfinite(last["loss"]):
                self._rows.flush()
                raise TrainingError(_non_finite(row["step"], last, row["lr"]))
        self._rows.flush()
        return last

    def close(self) -> None:
        self._rows.close()
        if self._board is not None:
            self._board.close()


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def _non_finite(step: int, terms: dict[str, float], lr: float) -> str:
    listed = ", ".join(f"{name}={value:.4g}" for name, value in terms.items())
    return (
        f"the loss is not finite at step {step} ({listed}; learning rate {lr:.3g}). The last checkpoint is from "
        "before. Try a lower --lr, a longer warm-up (-s warmup_fraction=0.1), clipping (-s clip_gradient=1.0) or "
        "--precision fp32."
    )
