"""Divisions that mostly fit, comparisons that are often equal, counts near the width."""

from __future__ import annotations

from iced_x86 import Mnemonic, OpCodeOperandKind, Register

from tests.against import values
from tests.against.draft import Draft
from tests.against.shapes.registry import RAX, RDX, finishes

_K, _M, _R = OpCodeOperandKind, Mnemonic, Register


@finishes("DIV", "IDIV")
def _divide(draft: Draft) -> None:
    """Mostly a quotient that fits, near the edges often."""
    source, operand = draft.source, draft.operands[0]
    width = _operand_width(draft)
    signed = draft.form.mnemonic == _M.IDIV
    divisor = draft.read(operand) & (1 << width) - 1
    if source.random() < 0.2 or divisor == 0:
        return
    quotient = values.integer(source, width)
    if signed:
        divisor, quotient = _signed(divisor, width), _signed(quotient, width)
    remainder = source.randrange(abs(divisor))
    dividend = quotient * divisor + (-remainder if quotient * divisor < 0 else remainder)
    if width == 8:
        draft.write(_R.AX, dividend)
    else:
        low, high = _PAIRS[width]
        if draft.write(high, dividend >> width & (1 << width) - 1):
            draft.write(low, dividend & (1 << width) - 1)


_PAIRS = {16: (_R.AX, _R.DX), 32: (_R.EAX, _R.EDX), 64: (_R.RAX, _R.RDX)}


def _operand_width(draft: Draft) -> int:
    return 8 * draft.size


def _signed(value: int, width: int) -> int:
    return value - (value >> width - 1 << width)


@finishes("CMPXCHG")
def _compare_exchange(draft: Draft) -> None:
    if draft.source.random() < 0.5:
        accumulator = {1: _R.AL, 2: _R.AX, 4: _R.EAX, 8: _R.RAX}[draft.size]
        draft.write(accumulator, draft.read(draft.operands[0]))


@finishes("CMPXCHG8B", "CMPXCHG16B")
def _compare_exchange_wide(draft: Draft) -> None:
    if draft.source.random() < 0.6 and draft.is_free(RAX) and draft.is_free(RDX):
        half = draft.size // 2
        low, high = (_R.EAX, _R.EDX) if half == 4 else (_R.RAX, _R.RDX)
        draft.write(low, int.from_bytes(draft.content[:half], "little"))
        draft.write(high, int.from_bytes(draft.content[half:], "little"))


@finishes("ROL", "ROR", "RCL", "RCR", "SHL", "SHR", "SAL", "SAR", "SHLD", "SHRD")
def _shift(draft: Draft) -> None:
    if _K.CL in draft.kinds:
        draft.write(_R.CL, values.count(draft.source))


@finishes("BT", "BTS", "BTR", "BTC")
def _bit_string(draft: Draft) -> None:
    """A bit offset in a register reaches far beyond the operand: mostly not too far."""
    second = draft.operands[1]
    if draft.form.memory and draft.kinds[1] != _K.IMM8 and draft.source.random() < 0.9:
        reach = draft.source.choice((64, 1024, 8192))
        width = _operand_width(draft)
        value = draft.source.randrange(-reach, reach) & (1 << width) - 1
        draft.write(second, value)


@finishes("AAM")
def _adjust_base(draft: Draft) -> None:
    draft.operands = [draft.source.choice((10, 10, 16, 0, 1, 255, 7))]
