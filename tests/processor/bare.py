"""A bare processor for tests of its parts: the parts, RAM, and page tables built in it."""

from __future__ import annotations

from typing import Any, cast

from trapline.arch.paging import PTE_A, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.arch.registers import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from trapline.processor.cpuid import model
from trapline.processor.memory import Memory, Ram
from trapline.processor.msr import Msrs
from trapline.processor.state import State

FLAT = PTE_P | PTE_W | PTE_U


class Bare:
    """What `Core` offers to its parts, without engines."""

    def __init__(self, name: str = "sapphire-rapids", size: int = 16 << 20) -> None:
        self.state = State()
        self.model = model(name)
        self.bus = Ram(size)
        self.guest: Any = None
        self.observer: Any = None
        self.flushed: list[int] = []
        self.state.cr0 = CR0_PE
        self.state.pat = 0x0007040600070406
        self.state.dr7 = 0x400
        self.state.dr6 = 0xFFFF0FF0
        self.msrs = Msrs(cast(Any, self))
        self.memory = Memory(cast(Any, self))
        self.msrs.mtrrs.write(0x2FF, 0x806)

    def flush_translations(self, host: int, size: int = 1) -> None:
        self.flushed.append(host & ~0xFFF)

    def mappings_changed(self) -> None:
        """There is no native code here."""

    def word(self, physical: int, size: int = 8) -> int:
        return int.from_bytes(self.bus.bytes[physical : physical + size], "little")

    def set_word(self, physical: int, word: int, size: int = 8) -> None:
        self.bus.bytes[physical : physical + size] = word.to_bytes(size, "little")

    def enter_long_mode(self, cr3: int, cpl: int = 0) -> None:
        state = self.state
        state.cr3, state.cr4 = cr3, CR4_PAE | state.cr4
        state.efer = EFER_LME | EFER_LMA | EFER_NXE
        state.cr0 = CR0_PE | CR0_PG | CR0_WP
        self.set_cpl(cpl)
        self.memory.mode_changed()

    def set_cpl(self, cpl: int) -> None:
        self.state.cpl = cpl
        self.memory.privilege_changed()


class Tables:
    """Page tables of eight-byte entries, taken from RAM upwards of `start`."""

    def __init__(self, bare: Bare, start: int = 0x100000, levels: int = 4) -> None:
        self.bare, self._free, self.levels = bare, start, levels
        self.root = self.new()

    def new(self) -> int:
        self._free += 0x1000
        return self._free - 0x1000

    def entry(self, linear: int, level: int = 1, flags: int = FLAT) -> int:
        """The physical address of the entry for an address at a level; tables are made."""
        table = self.root
        for above in range(self.levels, level, -1):
            at = table + 8 * (linear >> (3 + 9 * above) & 0x1FF)
            if not self.bare.word(at) & PTE_P:
                self.bare.set_word(at, self.new() | flags)
            table = self.bare.word(at) & 0xFFFFFFFFFF000
        return table + 8 * (linear >> (3 + 9 * level) & 0x1FF)

    def map(self, linear: int, physical: int, flags: int = FLAT, level: int = 1) -> int:
        """Map a page (of the size of the level); where its entry stands."""
        at = self.entry(linear, level)
        self.bare.set_word(at, physical | flags | (PTE_PS if level > 1 else 0))
        return at


MARKED = PTE_A | PTE_D
