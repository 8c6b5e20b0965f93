"""One instruction on the reference engine: flat memory, a state by keywords, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from trapline.processor.decode import Decoded, decode, disassemble
from trapline.processor.fault import Fault
from trapline.processor.flags import AF, CF, OF, PF, SF, ZF
from trapline.processor.interp import execute
from trapline.processor.state import State

FLAGS = {"cf": CF, "pf": PF, "af": AF, "zf": ZF, "sf": SF, "of": OF}
ENTRY = 0x4000
STACK = 0x7000  # where RSP is unless a test says otherwise
SIZE = 0x20000
SEGMENT_BASES = {"fs": 0x1000, "gs": 0x2000}
_MASK = (1 << 64) - 1
_NON_CANONICAL = (0, (1 << 17) - 1)


class Writable(Protocol):
    """What takes bytes by slice."""

    def __setitem__(self, where: slice, content: bytes, /) -> None: ...


class Memory:
    """128 KiB from address 0; elsewhere accesses fault.  Remembers the order."""

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

    def __init__(self, machine: Machine, fault: Fault | None, instruction: Decoded) -> None:
        self.machine = machine
        self.fault = None if fault is None else fault.vector
        self.error_code = None if fault is None else fault.error_code
        self.microcode = machine.microcode
        self.accesses = machine.memory.accesses
        self.instruction = instruction

    def __getattr__(self, name: str) -> int:
        word = getattr(self.machine.state, name)
        assert isinstance(word, int)
        return word

    @property
    def flags(self) -> set[str]:
        word = self.machine.state.arithmetic_flags
        return {name for name, mask in FLAGS.items() if word & mask}

    @property
    def length(self) -> int:
        return self.instruction.length

    @property
    def moved(self) -> int:
        """How far RIP is from where the instruction stood."""
        return self.rip - ENTRY

    def word(self, linear: int, size: int = 8) -> int:
        return int.from_bytes(self.machine.memory.bytes[linear : linear + size], "little")


def prepare(state: State, memory: Writable, given: dict[str, Any]) -> None:
    """Put what a test gives into a state that is otherwise all zeros."""
    state.rip, state.rsp, state.cpl = ENTRY, STACK, 3
    state.cs_limit = 0xFFFFFFFF
    for name, word in given.items():
        match name:
            case "system":
                state.system_flags = 2 | word
            case "flags":
                state.arithmetic_flags = sum(FLAGS[flag] for flag in word.split())
            case "memory":
                for linear, content in word.items():
                    memory[linear : linear + len(content)] = content
            case _:
                setattr(state, name, word & _MASK)


def interp(text: str, code: str, bits: int = 64, stack: int | None = None, **given: Any) -> After:
    """Run one instruction on the reference engine.

    `text` is what `code` disassembles to; `flags` names those set, "cf zf"; `system` is the rest
    of RFLAGS; `memory` maps addresses to bytes; everything else is a register or a slot.
    """
    machine = Machine(bits)
    prepare(machine.state, machine.memory.bytes, given)
    instruction = decode(bytes.fromhex(code), ENTRY, bits, stack or bits)
    assert instruction is not None and instruction.length == len(bytes.fromhex(code))
    shown = disassemble(instruction.code, ENTRY, bits)
    assert shown == text, shown
    fault = None
    try:
        while not execute(cast(Any, machine), instruction):
            pass
    except Fault as raised:
        fault = raised
    return After(machine, fault, instruction)
