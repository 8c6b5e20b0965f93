"""String instructions: MOVS, CMPS, SCAS, STOS, LODS, with their repeat prefixes.

MOVSD and CMPSD are also SSE instructions' names; the operands tell which is meant.
INS and OUTS are with the port instructions.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.flag import DF
from trapline.processor.isa.sse_shared import scalar_compare_double, scalar_move_double
from trapline.processor.language import Cpu, Operand, Value, const, instruction


class _Index:
    """RSI or RDI, of the address size, about to move by one element."""

    def __init__(self, cpu: Cpu, name: str, width: int) -> None:
        self._register = cpu.register(name, cpu.form.address_width)
        self._down = cpu.register("system_flags").get().bit(DF)
        self._step = width // 8
        self._position = self._register.get()

    @property
    def offset(self) -> Value:
        return self._position.zero_extend(64)

    def move(self) -> None:
        width = self._register.width
        step = self._down.select(const(-self._step, width), const(self._step, width))
        self._register.set(self._position + step)


def _repeated(cpu: Cpu, element: Callable[[], None]) -> None:
    if not cpu.form.repeat:
        element()
        return
    with cpu.repeat(cpu.register("rcx", cpu.form.address_width)):
        element()


def _repeated_while(cpu: Cpu, compare: Callable[[], Value]) -> None:
    """`compare` handles one element and tells whether it was equal: REPE goes on while elements
    are, REPNE while they are not."""
    if not cpu.form.repeat:
        compare()
        return
    equal: list[Value] = []

    def until() -> Value:
        return equal[0] if cpu.form.repeat == "repne" else equal[0] ^ 1

    with cpu.repeat(cpu.register("rcx", cpu.form.address_width), until):
        equal.append(compare())


def _move(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """[ES:RDI] := [RSI]; both indexes move on."""

    def element() -> None:
        source, destination = _Index(cpu, "rsi", dst.width), _Index(cpu, "rdi", dst.width)
        value = cpu.memory(src.index, source.offset, dst.width).get()
        cpu.memory("es", destination.offset, dst.width).set(value)
        source.move()
        destination.move()

    _repeated(cpu, element)


def _compare(cpu: Cpu, left: Operand, right: Operand) -> None:
    """The flags of [RSI] - [ES:RDI]; both indexes move on."""
    width = left.width

    def element() -> Value:
        source, destination = _Index(cpu, "rsi", width), _Index(cpu, "rdi", width)
        minuend = cpu.memory(left.index, source.offset, width).get()
        subtrahend = cpu.memory("es", destination.offset, width).get()
        cpu.flags.after_sub(minuend - subtrahend, subtrahend)
        source.move()
        destination.move()
        return minuend.equals(subtrahend)

    _repeated_while(cpu, element)


def _scan(cpu: Cpu, accumulator: Operand, dst: Operand) -> None:
    """The flags of the accumulator - [ES:RDI]; the index moves on."""
    width = accumulator.width

    def element() -> Value:
        destination = _Index(cpu, "rdi", width)
        minuend = accumulator.get()
        subtrahend = cpu.memory("es", destination.offset, width).get()
        cpu.flags.after_sub(minuend - subtrahend, subtrahend)
        destination.move()
        return minuend.equals(subtrahend)

    _repeated_while(cpu, element)


def _store(cpu: Cpu, dst: Operand, accumulator: Operand) -> None:
    """[ES:RDI] := the accumulator; the index moves on."""

    def element() -> None:
        destination = _Index(cpu, "rdi", accumulator.width)
        cpu.memory("es", destination.offset, accumulator.width).set(accumulator.get())
        destination.move()

    _repeated(cpu, element)


def _load(cpu: Cpu, accumulator: Operand, src: Operand) -> None:
    """The accumulator := [RSI]; the index moves on."""

    def element() -> None:
        source = _Index(cpu, "rsi", accumulator.width)
        accumulator.set(cpu.memory(src.index, source.offset, accumulator.width).get())
        source.move()

    _repeated(cpu, element)


for _suffix, _opcode in (("b", 0), ("w", 1), ("d", 1), ("q", 1)):
    if _suffix != "d":
        instruction(f"A{4 + _opcode:X}", name="movs" + _suffix)(_move)
        instruction(f"A{6 + _opcode:X}", name="cmps" + _suffix)(_compare)
    instruction(f"A{10 + _opcode:X}", name="stos" + _suffix)(_store)
    instruction(f"A{12 + _opcode:X}", name="lods" + _suffix)(_load)
    instruction(f"A{14 + _opcode:X}", name="scas" + _suffix)(_scan)


@instruction("A5", "F2 0F 10 /r", "F2 0F 11 /r")
def movsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The string move of 32 bits, or SSE2's move of one double."""
    if "xmm" in (dst.kind, src.kind):
        scalar_move_double(cpu, dst, src)
    else:
        _move(cpu, dst, src)


@instruction("A7", "F2 0F C2 /r ib")
def cmpsd(cpu: Cpu, left: Operand, right: Operand, *predicate: Operand) -> None:
    """The string comparison of 32 bits, or SSE2's comparison of one double."""
    if predicate:
        scalar_compare_double(cpu, left, right, *predicate)
    else:
        _compare(cpu, left, right)
