"""Progress for people, on stderr: a bar with the remaining time on a terminal, otherwise a line every tenth."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger("attar")


class TrainingBar:
    """Progress with the remaining time on a terminal; otherwise one line every tenth of the run, on stderr."""

    def __init__(self, shown: bool, epochs: int, start: int, total: int):
        self.shown, self.epochs, self.start, self.total = shown, epochs, start, total
        self.began = time.monotonic()
        self.next_line = 0.1
        self._progress: Any = None

    def __enter__(self) -> TrainingBar:
        if not self.shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        if console.is_terminal:
            self._progress = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._progress.start()
            self._task = self._progress.add_task("training", total=self.total, completed=self.start, text="")
        return self

    def show(self, step: int, terms: dict[str, float]) -> None:
        if not self.shown:
            return
        epoch = min(step * self.epochs // self.total + 1, self.epochs)
        text = f"epoch {epoch}/{self.epochs}  loss {terms.get('loss', float('nan')):.4f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
        elif step / self.total >= self.next_line:
            left = (time.monotonic() - self.began) / max(step - self.start, 1) * (self.total - step)
            logger.info("%3.0f%%  %s  %s left", 100 * step / self.total, text, _clock(left))
            self.next_line = step / self.total + 0.1

    def __exit__(self, *exc: Any) -> None:
        if self._progress is not None:
            self._progress.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
