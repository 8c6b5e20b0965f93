"""INT n, INT3, INTO, INT1 and IRET."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, instruction


@instruction("CD ib", name="int")
def int_(cpu: Cpu, vector: Operand) -> None:
    """Call the handler of a vector."""
    cpu.microcode("int")


@instruction("CC")
def int3(cpu: Cpu) -> None:
    """#BP."""
    cpu.microcode("int3")


@instruction("CE")
def into(cpu: Cpu) -> None:
    """#OF if OF is set."""
    cpu.microcode("into")


@instruction("F1")
def int1(cpu: Cpu) -> None:
    """#DB that no breakpoint caused (ICEBP)."""
    cpu.microcode("int1")


@instruction("CF")
def iret(cpu: Cpu) -> None:
    """Return from a handler, 16-bit frame."""
    cpu.microcode("iret")


@instruction("CF")
def iretd(cpu: Cpu) -> None:
    """Return from a handler, 32-bit frame."""
    cpu.microcode("iretd")


@instruction("REX.W CF")
def iretq(cpu: Cpu) -> None:
    """Return from a handler, 64-bit frame."""
    cpu.microcode("iretq")
