"""How things go wrong for the user: one plain sentence, a hint, and the right exit status."""

from __future__ import annotations

import contextlib
import os
import sys

TOOL_ERROR = 2
NOT_FOUND = 127
NOT_EXECUTABLE = 126
BROKEN_PIPE = 128 + 13


class Failure(Exception):
    """Ends the command; `sentence` says what is wrong, `hint` what to do about it."""

    def __init__(self, sentence: str, hint: str = "", status: int = TOOL_ERROR) -> None:
        super().__init__(sentence)
        self.sentence, self.hint, self.status = sentence, hint, status


def complain(sentence: str, hint: str = "") -> None:
    """Say it on stderr, if there is one."""
    text = f"trapline: {sentence}\n"
    if hint:
        text += f"  help: {hint}\n"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def reason(error: OSError) -> str:
    """The system's words for an error, without numbers and paths."""
    return error.strerror or str(error)


def silence(descriptor: int) -> None:
    """Point a descriptor whose reader has gone at /dev/null, so that nothing complains at exit."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
