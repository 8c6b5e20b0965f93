"""One x87 instruction, as its caller in the engine would run it on softfloat."""

from __future__ import annotations

from collections.abc import Callable

from tests.processor.softfloat.host import X87Record, X87Result
from tests.processor.softfloat.patterns import Source
from trapline.processor.softfloat import BEFORE, Context


def random_control(source: Source, masked: bool) -> int:
    """Any rounding and precision; all exceptions masked, or any mask."""
    masks = 0x3F if masked else source.random.getrandbits(6)
    return source.random.getrandbits(2) << 10 | source.random.choice((0, 2, 3, 3)) << 8 | masks


def soft(record: X87Record, operation: Callable[[Context], int]) -> tuple[int, int, int]:
    """(ST0, flags, C1): the operand stays if an unmasked exception came before the result."""
    context = Context.from_control_word(record.control)
    result = operation(context)
    if context.settle() & BEFORE:
        return record.a, context.flags, 0
    return result, context.flags, int(context.rounded_up)


def outcome(host: X87Result) -> tuple[int, int, int]:
    return host.stack[0], host.flags, host.c1


def describe(record: X87Record) -> str:
    fields = (record.a, record.b, record.memory, record.control)
    return "a={:#x} b={:#x} memory={:#x} control={:#x}".format(*fields)
