"""The lazy arithmetic flags: what cc_kind, cc_dst and cc_src mean.

A flag-setting instruction stores its result and second operand and says which rule applies;
whoever needs a flag computes it.  `materialise` is the rule book; the fast engine has the same
rules as native code and is tested against this.
"""

from __future__ import annotations

from enum import IntEnum

CF, PF, AF, ZF, SF, OF = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
_PARITY = tuple(PF if bin(i).count("1") % 2 == 0 else 0 for i in range(256))


class CcKind(IntEnum):
    """Rule = base + log2(width / 8).  cc_dst is the result, sign-extended to 64 bits."""

    EXPLICIT = 0  # cc_src holds the flags themselves
    ADD = 4  # cc_src: second addend
    SUB = 8  # cc_src: subtrahend
    LOGIC = 12  # CF = OF = 0, AF cleared (the manual leaves AF undefined)
    INC = 16  # cc_src: CF before, in bit 0
    DEC = 20  # cc_src: CF before, in bit 0


def materialise(kind: int, dst: int, src: int) -> int:
    """The arithmetic flags in RFLAGS positions."""
    if kind == CcKind.EXPLICIT:
        return src
    width = 8 << (kind & 3)
    mask = (1 << width) - 1
    sign = 1 << width - 1
    result = dst & mask
    flags = _PARITY[result & 0xFF]
    if not result:
        flags |= ZF
    if result & sign:
        flags |= SF
    rule = kind & ~3
    if rule == CcKind.LOGIC:
        return flags
    if rule == CcKind.ADD:
        addend = src & mask
        before = result - addend & mask
        if result < addend:
            flags |= CF
        if (before ^ result) & (addend ^ result) & sign:
            flags |= OF
        return flags | (before ^ addend ^ result) & AF
    if rule == CcKind.SUB:
        subtrahend = src & mask
        before = result + subtrahend & mask
        if before < subtrahend:
            flags |= CF
        if (before ^ subtrahend) & (before ^ result) & sign:
            flags |= OF
        return flags | (before ^ subtrahend ^ result) & AF
    return flags | src & CF | _step(rule, result, sign)


def _step(rule: int, result: int, sign: int) -> int:
    """OF and AF of INC and DEC."""
    if rule == CcKind.INC:
        return (OF if result == sign else 0) | (0 if result & 0xF else AF)
    return (OF if result == sign - 1 else 0) | (AF if result & 0xF == 0xF else 0)
