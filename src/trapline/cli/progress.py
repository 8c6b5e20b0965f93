"""Says that code is being compiled for first use, when that takes long enough to be noticed."""

from __future__ import annotations

import contextlib
import sys
import time

PATIENCE = 1.0  # seconds before the first word
PAUSE = 3.0  # and between two


class Progress:
    """Called after each batch with the number of instruction forms compiled so far.

    Whole lines, as the program may be writing to the same terminal.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._next = 0.0

    def __call__(self, compiled: int) -> None:
        now = time.monotonic()
        if self._started is None:
            self._started = now
            self._next = now + PATIENCE
        if now < self._next:
            return
        self._next = now + PAUSE
        seconds = now - self._started
        text = f"compiling for first use: {compiled} instruction forms in {seconds:.0f} s"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"trapline: {text} (kept for the next run)\n")
            sys.stderr.flush()
