"""Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.

The count is taken modulo 32, or 64 for 64-bit operands.  A count of 0 changes no flag; the
destination is written all the same.  OF, documented for a count of 1, follows the same formula
for every count, and a shift sets AF: both as Zen does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from trapline.processor.language import Cpu, Operand, Value, concat, const, divide, instruction


def _count(count: Operand, width: int) -> Value:
    """The count as a value of the operand's width."""
    masked = count.get().low(8) & (63 if width == 64 else 31)
    return masked.zero_extend(width) if width > 8 else masked


def _roomy(value: Value) -> Value:
    """Bytes and words can be shifted by more than their width: give them room for it."""
    return value.zero_extend(max(value.width, 32))


def _shift_left(before: Value, count: Value) -> Value:
    return (_roomy(before) << _roomy(count)).low(before.width)


def _shift_right(before: Value, count: Value) -> Value:
    return (_roomy(before) >> _roomy(count)).low(before.width)


def _shift_right_signed(before: Value, count: Value) -> Value:
    roomy = before.sign_extend(max(before.width, 32))
    return roomy.ashr(_roomy(count)).low(before.width)


def _one_less(count: Value) -> Value:
    """count - 1, for a count that is not 0."""
    return count - 1 & (63 if count.width == 64 else 31)


def _unless_zero(cpu: Cpu, count: Value) -> AbstractContextManager[None]:
    return nullcontext() if cpu.form.shifts else cpu.when(count.differs(0))


def _put_shifted(cpu: Cpu, count: Value, result: Value, carry: Value, overflow: Value) -> None:
    with _unless_zero(cpu, count):
        cpu.flags.put_result(result, cf=carry, of=overflow, af=const(1, 1))


def _put_rotated(cpu: Cpu, count: Value, carry: Value, overflow: Value) -> None:
    with _unless_zero(cpu, count):
        cpu.flags.put(cf=carry, of=overflow)


def _top_two_differ(result: Value) -> Value:
    return result.sign ^ result.bit(result.width - 2)


def _shift_left_by(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """dst := dst << count; CF is the last bit out."""
    by = _count(count, dst.width)
    before = dst.update(lambda old: _shift_left(old, by))
    result, carry = _shift_left(before, by), _shift_left(before, _one_less(by)).sign
    _put_shifted(cpu, by, result, carry, result.sign ^ carry)


instruction("C0 /4", "C1 /4", "D0 /4", "D1 /4", "D2 /4", "D3 /4", name="shl")(_shift_left_by)
instruction("C0 /6", "C1 /6", "D0 /6", "D1 /6", "D2 /6", "D3 /6", name="sal")(_shift_left_by)


@instruction("C0 /5", "C1 /5", "D0 /5", "D1 /5", "D2 /5", "D3 /5")
def shr(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """dst := dst >> count, zeros coming in."""
    by = _count(count, dst.width)
    before = dst.update(lambda old: _shift_right(old, by))
    result, carry = _shift_right(before, by), _shift_right(before, _one_less(by)).bit(0)
    _put_shifted(cpu, by, result, carry, _top_two_differ(result))


@instruction("C0 /7", "C1 /7", "D0 /7", "D1 /7", "D2 /7", "D3 /7")
def sar(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """dst := dst >> count, copies of the sign coming in."""
    by = _count(count, dst.width)
    before = dst.update(lambda old: _shift_right_signed(old, by))
    result = _shift_right_signed(before, by)
    carry = _shift_right_signed(before, _one_less(by)).bit(0)
    _put_shifted(cpu, by, result, carry, const(0, 1))


def _rotate_left(before: Value, count: Value) -> Value:
    mask = before.width - 1
    return before << (count & mask) | before >> (-count & mask)


def _rotate_right(before: Value, count: Value) -> Value:
    return _rotate_left(before, -count)


@instruction("C0 /0", "C1 /0", "D0 /0", "D1 /0", "D2 /0", "D3 /0")
def rol(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """Rotate dst left; CF is a copy of the bit that came in last."""
    by = _count(count, dst.width)
    result = _rotate_left(dst.update(lambda old: _rotate_left(old, by)), by)
    _put_rotated(cpu, by, result.bit(0), result.sign ^ result.bit(0))


@instruction("C0 /1", "C1 /1", "D0 /1", "D1 /1", "D2 /1", "D3 /1")
def ror(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """Rotate dst right; CF is a copy of the bit that came in last."""
    by = _count(count, dst.width)
    result = _rotate_right(dst.update(lambda old: _rotate_right(old, by)), by)
    _put_rotated(cpu, by, result.sign, _top_two_differ(result))


def _rotate_with_carry(
    cpu: Cpu, dst: Operand, count: Operand, rotate: Callable[[Value, Value], Value]
) -> tuple[Value, Value]:
    """Rotate CF:dst; the count as it was given, and the new CF:dst."""
    width = dst.width
    given = _count(count, width)
    by = given
    if width < 32:  # bytes and words can go round more than once
        by = divide("urem", const(0, width), given, const(width + 1, width))
    by, carry = by.zero_extend(width + 1), cpu.flags.cf
    before = dst.update(lambda old: rotate(concat(carry, old), by).low(width))
    return given, rotate(concat(carry, before), by)


@instruction("C0 /2", "C1 /2", "D0 /2", "D1 /2", "D2 /2", "D3 /2")
def rcl(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """Rotate CF:dst left, a ring of one bit more than dst has."""
    width = dst.width
    given, ring = _rotate_with_carry(
        cpu, dst, count, lambda old, by: old << by | old >> (const(width, width + 1) - by) >> 1
    )
    _put_rotated(cpu, given, ring.sign, ring.sign ^ ring.bit(width - 1))


@instruction("C0 /3", "C1 /3", "D0 /3", "D1 /3", "D2 /3", "D3 /3")
def rcr(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """Rotate CF:dst right, a ring of one bit more than dst has."""
    width = dst.width
    given, ring = _rotate_with_carry(
        cpu, dst, count, lambda old, by: old >> by | old << (const(width, width + 1) - by) << 1
    )
    _put_rotated(cpu, given, ring.sign, _top_two_differ(ring.low(width)))


def _shift_in_left(before: Value, incoming: Value, count: Value) -> Value:
    """The upper part of before:incoming, shifted left.

    Words can be shifted by more than 16; then, as on Zen, `incoming` comes in once more.
    """
    width = before.width
    if width == 16:
        ring = concat(concat(before, incoming), incoming).zero_extend(64)
        return (ring << count.zero_extend(64)).bits(32, 16)
    return before << count | incoming >> 1 >> (count ^ width - 1)


def _shift_in_right(before: Value, incoming: Value, count: Value) -> Value:
    """The lower part of incoming:before, shifted right."""
    width = before.width
    if width == 16:
        ring = concat(concat(incoming, incoming), before).zero_extend(64)
        return (ring >> count.zero_extend(64)).low(16)
    return before >> count | incoming << 1 << (count ^ width - 1)


@instruction("0F A4 /r", "0F A5 /r")
def shld(cpu: Cpu, dst: Operand, src: Operand, count: Operand) -> None:
    """dst := dst << count, the top bits of src coming in."""
    by, incoming = _count(count, dst.width), src.get()
    before = dst.update(lambda old: _shift_in_left(old, incoming, by))
    result, carry = _shift_in_left(before, incoming, by), _shift_left(before, _one_less(by)).sign
    _put_shifted(cpu, by, result, carry, result.sign ^ carry)


@instruction("0F AC /r", "0F AD /r")
def shrd(cpu: Cpu, dst: Operand, src: Operand, count: Operand) -> None:
    """dst := dst >> count, the low bits of src coming in."""
    by, incoming = _count(count, dst.width), src.get()
    before = dst.update(lambda old: _shift_in_right(old, incoming, by))
    result = _shift_in_right(before, incoming, by)
    _put_shifted(cpu, by, result, _shift_right(before, _one_less(by)).bit(0),
                 _top_two_differ(result))  # fmt: skip
