"""What every instruction on MMX registers does to the x87 state they are part of; EMMS."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, Place, Value, concat, const, instruction

_MF = 16
_ERROR_SUMMARY = 7  # of the x87 status word
_TOP = 0x3800


def enter_mmx(cpu: Cpu) -> None:
    """SDM 3A, "Effect of MMX Instructions on x87 FPU Tag Word": TOP := 0, all registers valid.

    A pending x87 exception is raised first.
    """
    status = cpu.register("fsw", 16)
    before = status.get()
    cpu.fault(before.bit(_ERROR_SUMMARY), _MF)
    status.set(before & ~_TOP)
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
