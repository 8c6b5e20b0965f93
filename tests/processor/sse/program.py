"""A few instructions on either engine: as code in flat memory, run until the UD2 behind them."""

from __future__ import annotations

import struct

from tests.processor.jit.flat import CODE, DATA, UD2, flat_core, load_code, run_to_fault
from trapline.processor.core import Core
from trapline.processor.fault import Fault
from trapline.processor.memory import Ram

ENGINES = ("interp", "jit")
UNDEFINED = 6


class Program:
    """The processor after some code; `fault` is None if it reached the end."""

    def __init__(self, engine: str) -> None:
        self.core: Core = flat_core(engine)
        self.state = self.core.state
        self.fault: Fault | None = None

    def put(self, offset: int, content: bytes) -> None:
        """Bytes in the data page."""
        assert isinstance(self.core.bus, Ram)
        self.core.bus.load(DATA + offset, content)

    def word(self, offset: int, size: int = 4) -> int:
        assert isinstance(self.core.bus, Ram)
        start = DATA + offset
        return int.from_bytes(self.core.bus.bytes[start : start + size], "little")

    def run(self, code: bytes) -> Program:
        load_code(self.core, code + UD2)
        self.core.memory.mode_changed()
        fault = run_to_fault(self.core)
        at_end = self.state.rip == CODE + len(code)
        self.fault = None if at_end and fault.vector == UNDEFINED else fault
        return self

    @property
    def vector(self) -> int | None:
        return None if self.fault is None else self.fault.vector

    @property
    def done(self) -> int:
        """Bytes of the code that have been executed."""
        return self.state.rip - CODE


def at(opcode: str, offset: int) -> bytes:
    """An instruction whose operand is [DATA + offset]; `opcode` ends with /r's reg field."""
    start, register = opcode.split("/")
    modrm = 0x04 | int(register) << 3
    return bytes.fromhex(start) + bytes((modrm, 0x25)) + struct.pack("<I", DATA + offset)
