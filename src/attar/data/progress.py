"""A progress bar on stderr with the remaining time; without a terminal one line every tenth."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger("attar")

QUIET_SECONDS = 5.0  # without a terminal, work shorter than this is not worth a line


class Progress:
    """Use as a context; `advance` may be called by one thread at a time."""

    def __init__(self, what: str, total: int, *, shown: bool, done: int = 0):
        self.what, self.total, self.shown, self.done = what, total, shown, done
        self._start = done
        self._began = time.monotonic()
        self._next = done + total / 10
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self.shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
        return self

    def advance(self, number: int = 1) -> None:
        self.done += number
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self.shown and self.done >= self._next:
            self._next = self.done + self.total / 10
            spent = time.monotonic() - self._began
            if spent > QUIET_SECONDS:
                left = spent / max(self.done - self._start, 1) * (self.total - self.done)
                logger.info("%s: %d of %d, %.0f s left", self.what, self.done, self.total, left)

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
