"""Descriptors 0 to 2 where whoever started the command has closed them.

A file of the command's own must never become the program's standard input or output: the numbers
are taken at once, and closed again before the program's first instruction.
"""

from __future__ import annotations

import contextlib
import os

_STANDARD = range(3)


def take_closed() -> None:
    """Open something at each that is closed: reads and writes fail as they did (open(2), O_PATH),
    and it closes on exec, as nothing does that the command was started with."""
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open("/", os.O_PATH | os.O_CLOEXEC)  # at the lowest free number, which this is


def give_back() -> None:
    """Close them again: from here on they are the program's."""
    for number in _STANDARD:
        with contextlib.suppress(OSError):
            if not os.get_inheritable(number):
                os.close(number)
