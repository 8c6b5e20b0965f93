"""Decimal arithmetic and SALC; none of it exists in 64-bit code."""

from __future__ import annotations

from trapline.processor.language import DE, Cpu, Operand, Value, concat, const, divide, instruction


def _digit_overflows(cpu: Cpu, low: Value) -> Value:
    """Whether the lower digit needs an adjustment."""
    return const(9, 8).below(low & 0xF) | cpu.flags.af


def _adjust_unpacked(cpu: Cpu, correction: int) -> None:
    """ASCII adjustment: six in the low digit and one in AH, both up or both down.

    OF, SF, ZF and PF are undefined in the manual; here as of AL's result.
    """
    accumulator = cpu.register("rax", 16)
    before = accumulator.get()
    adjust = _digit_overflows(cpu, before.low(8))
    result = adjust.select(before + correction, before) & 0xFF0F
    cpu.flags.put_result(result.low(8), cf=adjust, af=adjust, of=const(0, 1))
    accumulator.set(result)


@instruction("37")
def aaa(cpu: Cpu) -> None:
    """Make AL one decimal digit after an addition, and carry into AH."""
    _adjust_unpacked(cpu, 0x106)


@instruction("3F")
def aas(cpu: Cpu) -> None:
    """Make AL one decimal digit after a subtraction, and borrow from AH."""
    _adjust_unpacked(cpu, -0x106)


@instruction("27")
def daa(cpu: Cpu) -> None:
    """Make AL two decimal digits after an addition.

    OF, undefined in the manual, tells as on Zen that AL became negative.
    """
    accumulator = cpu.register("rax", 8)
    before = accumulator.get()
    low = _digit_overflows(cpu, before)
    high = const(0x99, 8).below(before) | cpu.flags.cf
    result = before + low.select(const(6, 8), const(0, 8))
    result = result + high.select(const(0x60, 8), const(0, 8))
    cpu.flags.put_result(result, cf=high, af=low, of=(result & ~before).sign)
    accumulator.set(result)


@instruction("2F")
def das(cpu: Cpu) -> None:
    """Make AL two decimal digits after a subtraction.

    OF, undefined in the manual, tells as on Zen that AL stopped being negative.
    """
    accumulator = cpu.register("rax", 8)
    before, carry = accumulator.get(), cpu.flags.cf
    low = _digit_overflows(cpu, before)
    high = const(0x99, 8).below(before) | carry
    borrow = low & before.below(6)  # SDM 2A, DAS: the first subtraction's own borrow counts too
    result = before - low.select(const(6, 8), const(0, 8))
    result = result - high.select(const(0x60, 8), const(0, 8))
    cpu.flags.put_result(result, cf=high | borrow, af=low, of=(before & ~result).sign)
    accumulator.set(result)


@instruction("D6")
def salc(cpu: Cpu) -> None:
    """AL := CF, in every bit; in no manual of Intel's, in every processor."""
    cpu.register("rax", 8).set(cpu.flags.cf.sign_extend(8))


@instruction("D4 ib")
def aam(cpu: Cpu, base: Operand) -> None:
    """AH, AL := AL divided by the base (10, as assemblers write it) and the remainder.

    CF, OF and AF are undefined in the manual; 0 as on Zen.
    """
    divisor = base.get()
    low = cpu.register("rax", 8).get()
    cpu.fault(divisor.equals(0), DE)
    quotient = divide("udiv", const(0, 8), low, divisor)
    remainder = divide("urem", const(0, 8), low, divisor)
    cpu.flags.put_result(remainder, cf=const(0, 1), of=const(0, 1), af=const(0, 1))
    cpu.register("rax", 16).set(concat(quotient, remainder))


@instruction("D5 ib")
def aad(cpu: Cpu, base: Operand) -> None:
    """AL := AL + AH * base; AH := 0.  CF, OF and AF are undefined in the manual; here 0."""
    accumulator = cpu.register("rax", 16)
    pair = accumulator.get()
    result = pair.low(8) + pair.bits(8, 8) * base.get()
    cpu.flags.put_result(result, cf=const(0, 1), of=const(0, 1), af=const(0, 1))
    accumulator.set(result.zero_extend(16))
