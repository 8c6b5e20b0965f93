"""x87 arithmetic: on two numbers, on one, and the instructions that push a second result."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.registers import FSW_C1, FSW_C2
from trapline.processor.isa.x87_unit import (
    CONDITIONS,
    INDEFINITE,
    OVERFLOW,
    PUSHED,
    UNDERFLOW,
    Unit,
    results,
)
from trapline.processor.language import Cpu, Operand, Value, const, instruction

Description = Callable[..., None]

_NAN, _UNDERFLOW = const(INDEFINITE, 80), const(UNDERFLOW, 16)


def _memory(operation: str, integer: bool) -> Description:
    def description(cpu: Cpu, src: Operand) -> None:
        """ST(0) := ST(0) op memory (or the other way round)."""
        unit = Unit(cpu, src)
        right = src.get()
        empty = unit.is_empty(0)
        target = unit.register(0)
        kind = f"{'i' if integer else 'f'}{src.width}"
        of = (operation, kind)
        result, status = results(cpu, "two", target.get(), right, widths=(80,), of=of)
        status = empty.select(_UNDERFLOW, status)
        with cpu.when(unit.conclude(status, tags=unit.tags | unit.tag(0))):
            target.set(empty.select(_NAN, result))

    return description


def _registers(operation: str, pops: bool) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """dst := dst op src (or the other way round), one of them ST(0); then maybe pop."""
        unit = Unit(cpu)
        empty = unit.is_empty(dst, src)
        of = (operation, "f80")
        result, status = results(cpu, "two", dst.get(), src.get(), widths=(80,), of=of)
        status = empty.select(_UNDERFLOW, status)
        tags = unit.tags | unit.tag(dst)
        if pops:
            tags = unit.popped(tags=tags)
        with cpu.when(unit.conclude(status, moves=int(pops), tags=tags)):
            dst.set(empty.select(_NAN, result))

    return description


def _plain(operation: str) -> Description:
    def description(cpu: Cpu, *operands: Operand) -> None:
        """FADD and its like, with memory or with registers."""
        if operands[0].in_memory:
            _memory(operation, integer=False)(cpu, *operands)
        else:
            _registers(operation, pops=False)(cpu, *operands)

    return description


# With ST(0) as the first operand; a register destination has SUB and SUBR, DIV and DIVR swapped.
for _name, _number, _registers_number in (
    ("add", 0, 0xC0), ("mul", 1, 0xC8), ("sub", 4, 0xE8), ("subr", 5, 0xE0), ("div", 6, 0xF8),
    ("divr", 7, 0xF0),
):  # fmt: skip
    _reach = f"{_registers_number:02X}+i"
    instruction(
        f"D8 /{_number}", f"DC /{_number}", f"D8 {0xC0 + 8 * _number:02X}+i", f"DC {_reach}",
        name="f" + _name,
    )(_plain(_name))  # fmt: skip
    instruction(f"DE {_reach}", name=f"f{_name}p")(_registers(_name, pops=True))
    instruction(f"DA /{_number}", f"DE /{_number}", name="fi" + _name)(_memory(_name, integer=True))


def _one(operation: str, conditions: int = FSW_C1) -> Description:
    def description(cpu: Cpu) -> None:
        """ST(0) := op ST(0)."""
        unit = Unit(cpu)
        target = unit.register(0)
        empty = unit.is_empty(0)
        result, status = results(cpu, "one", target.get(), widths=(80,), of=(operation,))
        status = empty.select(_UNDERFLOW, status)
        with cpu.when(unit.conclude(status, conditions=conditions, tags=unit.tags | unit.tag(0))):
            target.set(empty.select(_NAN, result))

    return description


instruction("D9 FA", name="fsqrt")(_one("sqrt"))
instruction("D9 FC", name="frndint")(_one("rndint"))
instruction("D9 F0", name="f2xm1")(_one("2xm1"))
# C2: the argument was too large, and ST(0) is what it was.
instruction("D9 FE", name="fsin")(_one("sin", FSW_C1 | FSW_C2))
instruction("D9 FF", name="fcos")(_one("cos", FSW_C1 | FSW_C2))


def _sign(change: Callable[[Value], Value]) -> Description:
    def description(cpu: Cpu) -> None:
        """The sign of ST(0), whatever it holds."""
        unit = Unit(cpu)
        target = unit.register(0)
        empty = unit.is_empty(0)
        status = empty.select(_UNDERFLOW, const(0, 16))
        with cpu.when(unit.conclude(status, tags=unit.tags | unit.tag(0))):
            target.set(empty.select(_NAN, change(target.get())))

    return description


instruction("D9 E0", name="fchs")(_sign(lambda value: value ^ 1 << 79))
instruction("D9 E1", name="fabs")(_sign(lambda value: value & (1 << 79) - 1))


@instruction("D9 FD")
def fscale(cpu: Cpu) -> None:
    """ST(0) := ST(0) * 2 ** (ST(1) cut off)."""
    _with_second(cpu, "scale")


def _with_second(cpu: Cpu, operation: str) -> None:
    unit = Unit(cpu)
    target = unit.register(0)
    empty = unit.is_empty(0, 1)
    args = target.get(), unit.register(1).get()
    result, status = results(cpu, "two", *args, widths=(80,), of=(operation, "f80"))
    status = empty.select(_UNDERFLOW, status)
    with cpu.when(unit.conclude(status, tags=unit.tags | unit.tag(0))):
        target.set(empty.select(_NAN, result))


def _into_second(operation: str) -> Description:
    def description(cpu: Cpu) -> None:
        """ST(1) := op(ST(0), ST(1)); pop."""
        unit = Unit(cpu)
        target = unit.register(1)
        empty = unit.is_empty(0, 1)
        args = unit.register(0).get(), target.get()
        result, status = results(cpu, "two", *args, widths=(80,), of=(operation, "f80"))
        status = empty.select(_UNDERFLOW, status)
        tags = unit.popped(tags=unit.tags | unit.tag(1))
        with cpu.when(unit.conclude(status, moves=1, tags=tags)):
            target.set(empty.select(_NAN, result))

    return description


instruction("D9 F1", name="fyl2x")(_into_second("yl2x"))
instruction("D9 F3", name="fpatan")(_into_second("patan"))
instruction("D9 F9", name="fyl2xp1")(_into_second("yl2xp1"))


def _remainder(operation: str) -> Description:
    def description(cpu: Cpu) -> None:
        """ST(0) := the remainder of ST(0) by ST(1), or (C2) a step towards it.

        C0, C3 and C1 are the quotient's low bits; without a quotient C0 and C3 stay.
        """
        unit = Unit(cpu)
        target = unit.register(0)
        empty = unit.is_empty(0, 1)
        args = target.get(), unit.register(1).get()
        result, status = results(cpu, "remainder", *args, widths=(80,), of=(operation,))
        status = empty.select(_UNDERFLOW, status)
        result = empty.select(_NAN, result)
        unmasked = status.low(3) & ~unit.control.low(3)
        none = result.bits(64, 15).equals(0x7FFF) | unmasked.differs(0)
        changed = none.select(const(FSW_C1 | FSW_C2, 16), const(CONDITIONS, 16))
        status = status & (const(~CONDITIONS, 16) | changed)
        status = none.select(status & ~(FSW_C1 | FSW_C2), status)
        with cpu.when(unit.conclude(status, conditions=changed, tags=unit.tags | unit.tag(0))):
            target.set(result)

    return description


instruction("D9 F8", name="fprem")(_remainder("prem"))
instruction("D9 F5", name="fprem1")(_remainder("prem1"))


def _with_push(operation: str, conditions: int = FSW_C1) -> Description:
    def description(cpu: Cpu) -> None:
        """ST(0) := one result; push the other, unless (C2) the argument was too large."""
        unit = Unit(cpu)
        target = unit.register(0)
        empty, full = unit.is_empty(0), unit.is_full()
        fault = empty | full
        first, second, status = results(cpu, "pair", target.get(), widths=(80, 80), of=(operation,))
        status = full.select(const(OVERFLOW, 16), status)
        status = empty.select(_UNDERFLOW, status)
        reached = status.bit(10) ^ 1  # C2
        tags = unit.tags | unit.tag(0)
        tags = reached.select(tags | unit.tag(PUSHED), tags)
        step = reached.select(const(-1, 3), const(0, 3))
        with cpu.when(unit.conclude(status, conditions=conditions, moves=step, tags=tags)):
            target.set(fault.select(_NAN, first))
            with cpu.when(reached):
                unit.register(PUSHED).set(fault.select(_NAN, second))

    return description


instruction("D9 F4", name="fxtract")(_with_push("xtract"))
instruction("D9 F2", name="fptan")(_with_push("ptan", FSW_C1 | FSW_C2))
instruction("D9 FB", name="fsincos")(_with_push("sincos", FSW_C1 | FSW_C2))
