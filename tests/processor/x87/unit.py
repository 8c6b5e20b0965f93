"""x87 code on either engine: a stack of numbers, a piece of memory, and what becomes of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import frexp, isinf, isnan, ldexp
from typing import Any

from tests.processor.jit.flat import CODE, DATA, UD2, flat_core, load_code, run_to_fault
from trapline.processor.core import Core
from trapline.processor.fault import Fault
from trapline.processor.memory import Ram

IE, DE, ZE, OE, UE, PE, SF, ES = (1 << bit for bit in range(8))
C0, C1, C2, C3, B = 1 << 8, 1 << 9, 1 << 10, 1 << 14, 1 << 15
FLAGS = 0x7F
MASKED = 0x37F  # the control word after FNINIT

INDEFINITE = 0xFFFFC000000000000000
QUIET = 0x7FFFC000000000000123
SIGNALLING = 0x7FFF8000000000000123
INFINITY = 0x7FFF8000000000000000
DENORMAL = 1
LARGEST = 0x7FFEFFFFFFFFFFFFFFFF
TINIEST = 0x00018000000000000000  # of the normal numbers
EMPTY = None

Number = float | int | None  # an int is a bit pattern; None an empty register


def bits(number: float) -> int:
    """The 80-bit pattern of a number."""
    sign = struct.pack(">d", number)[0] >> 7 << 79
    if number == 0:
        return sign
    if isinf(number):
        return sign | INFINITY
    fraction, exponent = frexp(abs(number))
    return sign | exponent - 1 + 0x3FFF << 64 | int(fraction * 2**64)


def number(pattern: int) -> float:
    """The number a pattern stands for; a NaN if there is none."""
    exponent, significand = pattern >> 64 & 0x7FFF, pattern & (1 << 64) - 1
    if exponent == 0x7FFF:
        magnitude = float("nan") if significand << 1 & (1 << 64) - 1 else float("inf")
    else:
        magnitude = ldexp(significand, max(exponent, 1) - 0x3FFF - 63)
    return magnitude if isnan(magnitude) or not pattern >> 79 else -magnitude


class After:
    """The state after the code, at the fault that ended it."""

    def __init__(self, core: Core, fault: Fault, length: int) -> None:
        self.core, self.state = core, core.state
        self.vector = fault.vector
        self.error_code, self.cr2 = fault.error_code, fault.cr2
        self.offset = core.state.rip - CODE
        self.finished = fault.vector == 6 and self.offset == length

    def __getattr__(self, name: str) -> int:
        word = getattr(self.state, name)
        assert isinstance(word, int)
        return word

    @property
    def top(self) -> int:
        return self.fsw >> 11 & 7

    @property
    def flags(self) -> int:
        """The exceptions and the stack fault."""
        return self.fsw & FLAGS

    def bits(self, index: int) -> int:
        return self.state.x87(self.top + index & 7)

    @property
    def stack(self) -> list[float | None]:
        """ST(0) to ST(7), None where empty."""
        return [
            number(self.bits(index)) if self.ftw >> (self.top + index & 7) & 1 else None
            for index in range(8)
        ]

    @property
    def values(self) -> list[float | None]:
        """The stack without the empty registers at its end."""
        found = self.stack
        while found and found[-1] is None:
            found.pop()
        return found

    def memory(self, size: int, offset: int = 0) -> bytes:
        assert isinstance(self.core.bus, Ram)
        return bytes(self.core.bus.bytes[DATA + offset : DATA + offset + size])


def prepare(engine: str, stack: Sequence[Number] = (), memory: bytes = b"", **slots: int) -> Core:
    """A processor with numbers on its x87 stack, bytes at RDI, and the slots given."""
    core = flat_core(engine)
    assert isinstance(core.bus, Ram)
    state: Any = core.state
    top = slots.get("fsw", 0) >> 11 & 7
    state.ftw = 0
    for index, given in enumerate(stack):
        if given is not None:
            physical = top + index & 7
            state.set_x87(physical, given if isinstance(given, int) else bits(given))
            state.ftw |= 1 << physical
    state.rdi = DATA
    for name, word in slots.items():
        setattr(state, name, word)
    core.bus.load(DATA, memory)
    return core


def run(
    engine: str, code: str, stack: Sequence[Number] = (), memory: bytes = b"", **slots: int
) -> After:
    """Run instructions, given in hexadecimal, up to their end or a fault."""
    core = prepare(engine, stack, memory, **slots)
    content = bytes.fromhex(code)
    load_code(core, content + UD2)
    return After(core, run_to_fault(core), len(content))


def done(
    engine: str, code: str, stack: Sequence[Number] = (), memory: bytes = b"", **slots: int
) -> After:
    """As `run`, where nothing may fault."""
    after = run(engine, code, stack, memory, **slots)
    assert after.finished, (after.vector, after.offset)
    return after
