"""One SSE instruction, as its caller in the engine would run it on softfloat."""

from __future__ import annotations

from collections.abc import Callable

from iced_x86 import Instruction, Register

from tests.processor.softfloat.host import SseRecord, assemble
from tests.processor.softfloat.patterns import Source
from trapline.processor.softfloat import Context


def random_mxcsr(source: Source, masked: bool) -> int:
    """Any rounding, DAZ and FTZ; all exceptions masked, or any mask."""
    mxcsr = source.random.getrandbits(2) << 13 | source.random.choice((0, 0, 0x40, 0x8000, 0x8040))
    return mxcsr | (0x1F80 if masked else source.random.getrandbits(6) << 7)


def soft(mxcsr: int, operation: Callable[[Context], int]) -> tuple[int | None, int, bool]:
    """(result or None, new flags, faulted) as the instruction's caller makes of it."""
    context = Context.from_mxcsr(mxcsr)
    result = operation(context)
    unmasked = context.settle()
    return (None if unmasked else result), context.flags, unmasked != 0


def registers(code: int, *operands: int) -> bytes:
    """`code` with XMM0, XMM1, .. as its operands, or the registers given."""
    if len(operands) == 0:
        operands = (Register.XMM0, Register.XMM1)
    if len(operands) == 2:
        return assemble(Instruction.create_reg_reg(code, *operands))
    return assemble(Instruction.create_reg_reg_reg(code, *operands))


def describe(record: SseRecord) -> str:
    fields = (record.a, record.b, record.c, record.rax, record.mxcsr)
    return "a={:#x} b={:#x} c={:#x} rax={:#x} mxcsr={:#x}".format(*fields)
