"""Which functions shape which instructions, and what they share."""

from __future__ import annotations

from collections.abc import Callable

from iced_x86 import Mnemonic

from tests.against.addressing import Unreachable
from tests.against.draft import Draft

Shape = Callable[[Draft], None]
PREPARE: dict[int, Shape] = {}
FINISH: dict[int, Shape] = {}

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)


def prepares(*names: str) -> Callable[[Shape], Shape]:
    """Run before operands are chosen."""
    return _into(PREPARE, names)


def finishes(*names: str) -> Callable[[Shape], Shape]:
    """Run after operands are chosen."""
    return _into(FINISH, names)


def _into(table: dict[int, Shape], names: tuple[str, ...]) -> Callable[[Shape], Shape]:
    def register(shape: Shape) -> Shape:
        for name in names:
            mnemonic = getattr(Mnemonic, name)
            if mnemonic in table:
                raise ValueError(f"{name} is shaped twice")
            table[mnemonic] = shape
        return shape

    return register


def with_garbage(draft: Draft, value: int) -> int:
    """A 32-bit address or count leaves the register's upper half to anything."""
    if draft.way.address_bits < draft.form.bits:
        return value & 0xFFFF_FFFF | draft.source.getrandbits(32) << 32
    return value


def address(draft: Draft, offset: int) -> int:
    """What a register must hold to address `offset`."""
    offset &= (1 << 64) - 1
    if offset >> draft.way.address_bits:
        raise Unreachable
    return with_garbage(draft, offset)
