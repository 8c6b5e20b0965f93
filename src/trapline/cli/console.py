"""What a guest prints, passed on to stdout byte by byte as it comes."""

from __future__ import annotations

import os
import select
import sys

_PLAIN = b"\x1b[0m\x1b[?25h"  # no colour, the cursor visible


class Console:
    """Writes past Python's buffers, so that nothing is held back when a run is cut short."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._last = b"\n"

    def send(self, data: bytes) -> None:
        """Called on the vCPU's thread."""
        while True:
            try:
                os.write(self._descriptor, data)
                break
            except BlockingIOError:
                select.select([], [self._descriptor], [])
        self._last = data[-1:]

    def finish(self) -> None:
        """Leave a terminal as a person wants it back."""
        if not os.isatty(self._descriptor):
            return
        os.write(self._descriptor, _PLAIN)
        if self._last != b"\n" and sys.stderr.isatty():
            os.write(self._descriptor, b"\n")
