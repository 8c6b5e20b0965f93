"""The flags one by one, and LAHF and SAHF.  CLI and STI, which need a privilege, are elsewhere."""

from __future__ import annotations

from trapline.processor.language import Cpu, concat, const, instruction

DF = 10  # its position in RFLAGS
_IN_AH = {"cf": 0, "pf": 2, "af": 4, "zf": 6, "sf": 7}


@instruction("F8")
def clc(cpu: Cpu) -> None:
    """CF := 0."""
    cpu.flags.put(cf=const(0, 1))


@instruction("F9")
def stc(cpu: Cpu) -> None:
    """CF := 1."""
    cpu.flags.put(cf=const(1, 1))


@instruction("F5")
def cmc(cpu: Cpu) -> None:
    """CF := not CF."""
    cpu.flags.put(cf=cpu.flags.cf ^ 1)


@instruction("FC")
def cld(cpu: Cpu) -> None:
    """DF := 0: string instructions go up."""
    word = cpu.register("system_flags")
    word.set(word.get() & ~(1 << DF))


@instruction("FD")
def std(cpu: Cpu) -> None:
    """DF := 1: string instructions go down."""
    word = cpu.register("system_flags")
    word.set(word.get() | 1 << DF)


@instruction("9F")
def lahf(cpu: Cpu) -> None:
    """AH := SF ZF 0 AF 0 PF 1 CF."""
    word = const(1 << 1, 8)
    for name, position in _IN_AH.items():
        word = word | getattr(cpu.flags, name).zero_extend(8) << position
    accumulator = cpu.register("rax", 16)
    accumulator.set(concat(word, accumulator.get().low(8)))


@instruction("9E")
def sahf(cpu: Cpu) -> None:
    """SF, ZF, AF, PF, CF := AH."""
    word = cpu.register("rax", 16).get().bits(8, 8)
    cpu.flags.put(**{name: word.bit(position) for name, position in _IN_AH.items()})
