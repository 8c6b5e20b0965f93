"""One instruction on one engine: flat memory, a state by keywords, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trapline.processor import isa
from trapline.processor.decode import Decoded, decode, disassemble
from trapline.processor.fault import Fault
from trapline.processor.flags import AF, CF, OF, PF, SF, ZF
from trapline.processor.interp import execute
from trapline.processor.state import State

__all__ = ["After", "Machine", "isa"]

FLAGS = {"cf": CF, "pf": PF, "af": AF, "zf": ZF, "sf": SF, "of": OF}
ENTRY = 0x4000
STACK = 0x7000  # where RSP is unless a test says otherwise
SIZE = 0x20000
SEGMENT_BASES = {"fs": 0x1000, "gs": 0x2000}
_MASK = (1 << 64) - 1
_NON_CANONICAL = (0, (1 << 17) - 1)


class Memory:
    """A megabyte's eighth from address 0; elsewhere accesses fault.  Remembers the order."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)
        self.accesses: list[tuple[str, int, int]] = []

    def _note(self, kind: str, linear: int, size: int) -> None:
        if linear + size > SIZE:
            raise Fault(14, 4 if kind == "read" else 6, max(linear, SIZE))
        self.accesses.append((kind, linear, size))

    def read(self, linear: int, size: int) -> int:
        self._note("read", linear, size)
        return int.from_bytes(self.bytes[linear : linear + size], "little")

    def write(self, linear: int, size: int, word: int) -> None:
        self._note("write", linear, size)
        self.bytes[linear : linear + size] = word.to_bytes(size, "little")

    def update(self, linear: int, size: int, change: Callable[[int], int], locked: bool) -> int:
        self._note("locked" if locked else "update", linear, size)
        before = int.from_bytes(self.bytes[linear : linear + size], "little")
        self.bytes[linear : linear + size] = change(before).to_bytes(size, "little")
        return before


class Machine:
    """What the reference engine asks of a processor."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.state = State()
        self.memory = Memory()
        self.microcode: list[tuple[str, tuple[int, ...]]] = []

    def linearize(self, segment: str, offset: int, size: int, is_write: bool) -> int:
        linear = SEGMENT_BASES.get(segment, 0) + offset & _MASK
        if self.bits != 64:
            return linear & 0xFFFFFFFF
        if linear >> 47 not in _NON_CANONICAL:
            raise Fault(12 if segment == "ss" else 13, 0)
        return linear

    def run_microcode(self, name: str, instruction: Decoded, args: Sequence[int]) -> int | None:
        self.microcode.append((name, tuple(args)))
        return None


class After:
    """The state after an instruction: registers by name, `flags` as a set of names."""

    def __init__(self, machine: Machine, fault: Fault | None, length: int) -> None:
        self._machine = machine
        self.fault = None if fault is None else fault.vector
        self.error_code = None if fault is None else fault.error_code
        self.microcode = machine.microcode
        self.accesses = machine.memory.accesses
        self.length = length

    def __getattr__(self, name: str) -> int:
        word = getattr(self._machine.state, name)
        assert isinstance(word, int)
        return word

    @property
    def flags(self) -> set[str]:
        word = self._machine.state.arithmetic_flags
        return {name for name, mask in FLAGS.items() if word & mask}

    @property
    def moved(self) -> int:
        """How far RIP is from where the instruction stood."""
        return self.rip - ENTRY

    def word(self, linear: int, size: int = 8) -> int:
        return int.from_bytes(self._machine.memory.bytes[linear : linear + size], "little")


def _prepare(machine: Machine, given: dict[str, Any]) -> None:
    state = machine.state
    state.rip, state.rsp, state.cpl = ENTRY, STACK, 3
    state.cs_limit = 0xFFFF if machine.bits == 16 else 0xFFFFFFFF
    state.rflags = 2 | given.pop("system", 0)
    state.arithmetic_flags = sum(FLAGS[name] for name in given.pop("flags", "").split())
    for linear, content in given.pop("memory", {}).items():
        machine.memory.bytes[linear : linear + len(content)] = content
    for name, word in given.items():
        setattr(state, name, word & _MASK)


def interp(text: str, code: str, bits: int = 64, stack: int | None = None, **given: Any) -> After:
    """Run one instruction on the reference engine.

    `text` is what `code` disassembles to; `flags` names those set, "cf zf"; `system` is the rest
    of RFLAGS; `memory` maps addresses to bytes; everything else is a register or a slot.
    """
    machine = Machine(bits)
    _prepare(machine, given)
    instruction = decode(bytes.fromhex(code), ENTRY, bits, stack or bits)
    assert instruction is not None and instruction.length == len(bytes.fromhex(code))
    shown = disassemble(instruction.code, ENTRY, bits)
    assert shown == text, shown
    fault = None
    try:
        while not execute(machine, instruction):
            pass
    except Fault as raised:
        fault = raised
    return After(machine, fault, instruction.length)
