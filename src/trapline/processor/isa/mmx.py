"""What every instruction on MMX registers does to the x87 state they are part of; EMMS."""

from __future__ import annotations

from trapline.arch.registers import FSW_TOP
from trapline.processor.isa.x87_unit import ready
from trapline.processor.language import Cpu, Operand, Place, Value, concat, const, instruction


def enter_mmx(cpu: Cpu) -> None:
    """SDM 3A, "Effect of MMX Instructions on x87 FPU Tag Word": TOP := 0, all registers valid.

    A pending x87 exception is raised first.
    """
    ready(cpu)
    status = cpu.register("fsw", 16)
    status.set(status.get() & ~FSW_TOP)
    cpu.register("ftw").set(const(0xFF, 64))


def write_mmx(cpu: Cpu, dst: Operand, value: Value) -> None:
    """A result in an MMX register: the significand, and all ones where the exponent is."""
    place = Place("operand", 80, dst.index)
    cpu.write(place, concat(const(0xFFFF, 16), value))


@instruction("NP 0F 77", unit="mmx")
def emms(cpu: Cpu) -> None:
    """All x87 registers empty."""
    enter_mmx(cpu)
    cpu.register("ftw").set(const(0, 64))
