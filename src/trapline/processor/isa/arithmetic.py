"""Addition and subtraction: ADD, ADC, SUB, SBB, CMP, NEG, INC, DEC."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, Value, instruction


@instruction("00 /r", "01 /r", "02 /r", "03 /r", "04", "05", "80 /0", "81 /0", "83 /0",
             lock="allowed")  # fmt: skip
def add(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst + src."""
    addend = src.get()
    before = dst.update(lambda old: old + addend)
    cpu.flags.after_add(before + addend, addend)


@instruction("28 /r", "29 /r", "2A /r", "2B /r", "2C", "2D", "80 /5", "81 /5", "83 /5",
             lock="allowed")  # fmt: skip
def sub(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst - src."""
    subtrahend = src.get()
    before = dst.update(lambda old: old - subtrahend)
    cpu.flags.after_sub(before - subtrahend, subtrahend)


@instruction("38 /r", "39 /r", "3A /r", "3B /r", "3C", "3D", "80 /7", "81 /7", "83 /7")
def cmp(cpu: Cpu, left: Operand, right: Operand) -> None:
    """The flags of left - right."""
    minuend, subtrahend = left.get(), right.get()
    cpu.flags.after_sub(minuend - subtrahend, subtrahend)


def _put_sum(cpu: Cpu, before: Value, addend: Value, result: Value) -> None:
    """All six flags of before + addend + carry = result; the carries are in the operands."""
    cpu.flags.put_result(
        result,
        cf=((before & addend) | ((before | addend) & ~result)).sign,
        of=((before ^ result) & (addend ^ result)).sign,
        af=(before ^ addend ^ result).bit(4),
    )


def _put_difference(cpu: Cpu, before: Value, subtrahend: Value, result: Value) -> None:
    """All six flags of before - subtrahend - borrow = result."""
    cpu.flags.put_result(
        result,
        cf=((~before & subtrahend) | ((~before | subtrahend) & result)).sign,
        of=((before ^ subtrahend) & (before ^ result)).sign,
        af=(before ^ subtrahend ^ result).bit(4),
    )


@instruction("10 /r", "11 /r", "12 /r", "13 /r", "14", "15", "80 /2", "81 /2", "83 /2",
             lock="allowed")  # fmt: skip
def adc(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst + src + CF."""
    addend, carry = src.get(), cpu.flags.cf.zero_extend(dst.width)
    before = dst.update(lambda old: old + addend + carry)
    _put_sum(cpu, before, addend, before + addend + carry)


@instruction("18 /r", "19 /r", "1A /r", "1B /r", "1C", "1D", "80 /3", "81 /3", "83 /3",
             lock="allowed")  # fmt: skip
def sbb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst - src - CF."""
    subtrahend, borrow = src.get(), cpu.flags.cf.zero_extend(dst.width)
    before = dst.update(lambda old: old - subtrahend - borrow)
    _put_difference(cpu, before, subtrahend, before - subtrahend - borrow)


@instruction("F6 /3", "F7 /3", lock="allowed")
def neg(cpu: Cpu, dst: Operand) -> None:
    """dst := 0 - dst."""
    before = dst.update(lambda old: -old)
    cpu.flags.after_sub(-before, before)


@instruction("FE /0", "FF /0", "40+r", lock="allowed")
def inc(cpu: Cpu, dst: Operand) -> None:
    """dst := dst + 1; CF keeps its value."""
    before = dst.update(lambda old: old + 1)
    cpu.flags.after_inc(before + 1)


@instruction("FE /1", "FF /1", "48+r", lock="allowed")
def dec(cpu: Cpu, dst: Operand) -> None:
    """dst := dst - 1; CF keeps its value."""
    before = dst.update(lambda old: old - 1)
    cpu.flags.after_dec(before - 1)
