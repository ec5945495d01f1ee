"""Leaving cleanly: SIGTERM and Ctrl-C ask the loop to save and stop."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

logger = logging.getLogger("attar")


class Signals:
    """SIGTERM and Ctrl-C ask the loop to save and leave; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.received = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        logger.warning("%s: saving a checkpoint at the end of this step, then leaving.", signal.Signals(number).name)

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
