"""What an instruction raises instead of completing.  Faults leave the state as it was."""

from __future__ import annotations


class Fault(Exception):
    """An architectural exception: vector, error code (None where there is none), CR2 for #PF."""

    def __init__(
        self, vector: int, error_code: int | None = None, cr2: int | None = None, payload: int = 0
    ) -> None:
        super().__init__(vector, error_code, cr2)
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2
        self.payload = payload  # for #DB faults: the causes, positive polarity


class Undefined(Fault):
    """#UD for an instruction Trapline does not implement; the report names it."""

    def __init__(self, text: str = "", code: bytes = b"") -> None:
        super().__init__(6)
        self.text = text
        self.code = code


class HostLimit(Exception):
    """The host cannot give what the guest needs (memory, a file); one plain sentence."""
