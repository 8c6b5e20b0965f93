"""A case in the making: its operands, and the state that is filled in around them."""

from __future__ import annotations

from random import Random

from iced_x86 import OpCodeInfo

from tests.against import values
from tests.against.addressing import place, plan
from tests.against.assemble import BRANCHES, IMMEDIATES, IMPLIED, Operand, kinds
from tests.against.forms import Form, float_units
from tests.against.layout import ENTRY, NON_CANONICAL, PAGE, UNMAPPED
from tests.against.operands import GENERAL, KINDS_MM, KINDS_XMM, element_kind, memory_size
from tests.against.state import AC, DF, ID, NT, STATUS


class Draft:
    """A case in the making."""

    def __init__(self, form: Form, number: int, source: Random) -> None:
        self.form, self.number, self.source = form, number, source
        self.kinds = kinds(form.code)
        self.explicit = [kind for kind in self.kinds if kind not in IMPLIED]
        self.described = OpCodeInfo(form.code)
        self.size = memory_size(form.code)
        self.element = element_kind(form.code)
        mmx = any(kind in KINDS_MM for kind in self.kinds)
        self.is_vector = mmx or any(kind in KINDS_XMM for kind in self.kinds)
        kind = self.element if self.element in values.KINDS and source.random() < 0.8 else ""
        self.vector_kind = kind or source.choice(values.KINDS)
        self.registers = values.registers(source, 16)
        if form.bits == 32:
            self.registers = [value & 0xFFFF_FFFF for value in self.registers[:8]] + [0] * 8
        self.float = values.float_state(
            source, self.vector_kind, mmx=mmx, uses=float_units(form.code)
        )
        self.flags = _flags(source)
        self.way = plan(number, form.bits, form.name)
        self.operands: list[Operand] = []  # those the opcode does not imply
        self.linear: int | None = None  # of the memory operand
        self.content = b""  # what is put there
        self.memory: list[tuple[int, bytes]] = []
        self.pinned: set[int] = set()  # registers that must keep their value
        self.address_registers: set[int] = set()
        self.faulty = False  # an access already leads nowhere: the others must not
        self.entry = ENTRY
        self.landing: int | None = None  # where an indirect branch goes

    def put(self, size: int, *, writes: bool, locked: bool = False) -> int:
        """A linear address for an access, remembering whether it faults."""
        where = place(self.source, size, writes=writes, locked=locked, calm=self.faulty)
        self.faulty = self.faulty or where.faults
        if self.form.bits == 32 and where.linear >= NON_CANONICAL:
            # Cut to 32 bits it could be anywhere, in the worker's own memory too.
            return UNMAPPED + where.linear % (PAGE // 2)
        return where.linear

    def pin(self, number: int, value: int) -> None:
        self.registers[number] = value & (1 << self.form.bits) - 1
        self.pinned.add(number)

    def is_free(self, number: int) -> bool:
        """Whether a register may still change without moving an operand."""
        return number not in self.pinned and number not in self.address_registers

    def names_register(self, position: int) -> bool:
        """Whether the n-th explicit operand is a register, for numbers look the same."""
        numeric = self.explicit[position] in IMMEDIATES | BRANCHES
        return isinstance(self.operands[position], int) and not numeric

    def read(self, operand: Operand) -> int:
        """The value of a general register or of the memory operand."""
        if isinstance(operand, int) and operand in GENERAL:
            number, shift, width = GENERAL[operand]
            return self.registers[number] >> shift & (1 << width) - 1
        return int.from_bytes(self.content, "little")

    def write(self, operand: Operand, value: int) -> bool:
        """Give an operand a value; False if that would move another operand."""
        if isinstance(operand, int) and operand in GENERAL:
            number, shift, width = GENERAL[operand]
            if not self.is_free(number):
                return False
            mask = (1 << width) - 1 << shift
            self.registers[number] = self.registers[number] & ~mask | value << shift & mask
            return True
        self.content = (value & (1 << 8 * self.size) - 1).to_bytes(self.size, "little")
        return True


def _flags(source: Random) -> int:
    flags = source.getrandbits(12) & STATUS
    for flag, chance in ((DF, 0.2), (ID, 0.05), (NT, 0.05), (AC, 0.03)):
        if source.random() < chance:
            flags |= flag
    return flags
