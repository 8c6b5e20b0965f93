"""x87 comparisons, to the condition codes or to EFLAGS; FXAM."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.registers import FSW_C0, FSW_C1, FSW_C2, FSW_C3
from trapline.processor.isa.x87_unit import CONDITIONS, UNDERFLOW, Unit, computed
from trapline.processor.language import Cpu, Operand, Value, const, instruction

Description = Callable[..., None]

_UNORDERED = FSW_C0 | FSW_C2 | FSW_C3


def _finish(unit: Unit, status: Value, pops: int) -> None:
    """The codes change even if an unmasked exception is pending then; only the pop waits.
    (Measured on AMD; SDM 2, FCOM, says they do not.)"""
    tags = unit.popped(pops) if pops else None
    unit.conclude(status, conditions=CONDITIONS, moves=pops, tags=tags)


def _compare(quiet: bool, pops: int = 0, integer: bool = False) -> Description:
    def description(cpu: Cpu, *operands: Operand) -> None:
        """ST(0) with a register or with memory; `quiet`: a quiet NaN is not invalid."""
        src = operands[-1] if operands else None
        in_memory = src is not None and src.in_memory
        unit = Unit(cpu, src if in_memory else None)
        if src is None:
            src = unit.register(1)
        right = src.get()
        second: int | Operand = src if operands else 1
        empty = unit.is_empty(0) if in_memory else unit.is_empty(0, second)
        kind = f"{'i' if integer else 'f'}{src.width}"
        status = computed(cpu, "compare", unit.register(0).get(), right, of=(kind, quiet))
        _finish(unit, empty.select(const(UNDERFLOW | _UNORDERED, 16), status), pops)

    return description


instruction("D8 /2", "DC /2", "D8 D0+i", "DC D0+i", name="fcom")(_compare(False))
instruction("D8 /3", "DC /3", "D8 D8+i", "DC D8+i", "DE D0+i", name="fcomp")(_compare(False, 1))
instruction("DE D9", name="fcompp")(_compare(False, 2))
instruction("DD E0+i", name="fucom")(_compare(True))
instruction("DD E8+i", name="fucomp")(_compare(True, 1))
instruction("DA E9", name="fucompp")(_compare(True, 2))
instruction("DE /2", "DA /2", name="ficom")(_compare(False, integer=True))
instruction("DE /3", "DA /3", name="ficomp")(_compare(False, 1, integer=True))


def _compare_to_flags(quiet: bool, pops: int) -> Description:
    def description(cpu: Cpu, left: Operand, right: Operand) -> None:
        """ST(0) with ST(i), to ZF, PF and CF.  C1 changes only with a stack underflow (measured on
        AMD; SDM 2, FCOMI, has it always cleared)."""
        unit = Unit(cpu)
        empty = unit.is_empty(left, right)
        status = computed(cpu, "compare", left.get(), right.get(), of=("f80", quiet))
        status = empty.select(const(UNDERFLOW | _UNORDERED, 16), status)
        off = const(0, 1)
        cpu.flags.put(
            zf=status.bit(14), pf=status.bit(10), cf=status.bit(8), of=off, sf=off, af=off
        )
        cleared = empty.select(const(FSW_C1, 16), const(0, 16))
        tags = unit.popped(pops) if pops else None
        unit.conclude(status & ~_UNORDERED, conditions=cleared, moves=pops, tags=tags)

    return description


instruction("DB F0+i", name="fcomi")(_compare_to_flags(False, 0))
instruction("DF F0+i", name="fcomip")(_compare_to_flags(False, 1))
instruction("DB E8+i", name="fucomi")(_compare_to_flags(True, 0))
instruction("DF E8+i", name="fucomip")(_compare_to_flags(True, 1))


@instruction("D9 E4")
def ftst(cpu: Cpu) -> None:
    """ST(0) with 0."""
    unit = Unit(cpu)
    empty = unit.is_empty(0)
    status = computed(cpu, "compare", unit.register(0).get(), const(0, 80), of=("f80", False))
    _finish(unit, empty.select(const(UNDERFLOW | _UNORDERED, 16), status), 0)


@instruction("D9 E5")
def fxam(cpu: Cpu) -> None:
    """What kind of number ST(0) is; C1 its sign.  Empty is an answer, not a fault."""
    unit = Unit(cpu)
    value = unit.register(0).get()
    status = computed(cpu, "examine", value)
    sign = value.sign.select(const(FSW_C1, 16), const(0, 16))
    empty = (unit.tags & unit.tag(0)).equals(0)
    status = empty.select(const(FSW_C0 | FSW_C3, 16) | sign, status)
    unit.conclude(status, conditions=CONDITIONS)
