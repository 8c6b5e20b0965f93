"""Nested paging in AMD's format: what a #VMEXIT(NPF) says, flags, rights and memory types."""

from __future__ import annotations

import struct

from tests.processor.svm.machine import (
    CODE,
    DATA,
    DIRECTORY,
    HLT,
    LOCK_XADD,
    PML4,
    SPIN,
    Machine,
)
from trapline.arch import registers, svm
from trapline.arch.paging import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_PCD, PTE_PS, PTE_U, PTE_W
from trapline.arch.svm import ExitCode, Intercept

ROOT, SECOND, THIRD, LEAVES = 0x100000, 0x101000, 0x102000, 0x103000
TABLE = PTE_P | PTE_W | PTE_U
FINAL, WALK = 1 << 32, 1 << 33


class Nested(Machine):
    """The guest's first 2 MiB through 4 KiB pages that map to themselves."""

    def __init__(self, code: bytes, cpl: int = 0, engine: str = "interp") -> None:
        super().__init__(code, cpl, engine)
        for at, entry in ((ROOT, SECOND), (SECOND, THIRD), (THIRD, LEAVES)):
            self.ram.load(at, struct.pack("<Q", entry | TABLE))
        for i in range(512):
            self.entry(i << 12, i << 12 | TABLE)
        self.write(nested_ctl=svm.NESTED_CTL_NP, nested_cr3=ROOT)

    def entry(self, guest_physical: int, entry: int) -> None:
        self.ram.load(LEAVES + (guest_physical >> 9), struct.pack("<Q", entry))

    def leaf(self, guest_physical: int) -> int:
        return self.quad(LEAVES + (guest_physical >> 9))


def test_a_guest_runs_through_its_tables(engine: str) -> None:
    machine = Nested(b"\x89\x07" + HLT, engine=engine)  # mov [rdi], eax
    machine.entry(DATA, DATA + 0x5000 | TABLE)
    machine.state.rdi = DATA + 8
    machine.write(rax=0x1234)
    assert machine.enter().code == ExitCode.HLT
    assert machine.quad(DATA + 0x5008) == 0x1234
    assert machine.quad(DATA + 8) == 0


def test_flags_are_set_in_every_level(engine: str) -> None:
    machine = Nested(b"\x89\x07\x8b\x06" + HLT, engine=engine)  # and mov eax, [rsi]
    machine.state.rdi, machine.state.rsi = DATA, DATA + 0x1000
    machine.enter()
    assert machine.leaf(DATA) & (PTE_A | PTE_D) == PTE_A | PTE_D
    assert machine.leaf(DATA + 0x1000) & (PTE_A | PTE_D) == PTE_A
    for table in (ROOT, SECOND, THIRD):
        assert machine.quad(table) & PTE_A


def test_an_absent_page_says_what_was_tried(engine: str) -> None:
    machine = Nested(b"\x89\x07" + HLT, engine=engine)
    machine.entry(DATA, 0)
    machine.state.rdi = DATA + 0x123
    exit = machine.enter()
    assert (exit.code, exit.info_2) == (ExitCode.NPF, DATA + 0x123)
    assert exit.info_1 == FINAL | 4 | 2
    assert machine.read("rip") == CODE
    machine.entry(DATA, DATA | TABLE)
    assert machine.enter().code == ExitCode.HLT


def test_a_read_only_page_is_present(engine: str) -> None:
    machine = Nested(b"\x8b\x07\x89\x07" + HLT, engine=engine)
    machine.entry(DATA, DATA | PTE_P | PTE_U)
    machine.state.rdi = DATA
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (ExitCode.NPF, FINAL | 4 | 2 | 1)
    assert machine.read("rip") == CODE + 2


def test_fetching_from_a_no_execute_page(engine: str) -> None:
    machine = Nested(HLT, engine=engine)
    machine.entry(CODE, CODE | TABLE | PTE_NX)
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2) == (ExitCode.NPF, FINAL | 16 | 4 | 1, CODE)


def test_a_supervisor_page_is_nobodys(engine: str) -> None:
    machine = Nested(b"\x8b\x07", engine=engine)
    machine.entry(DATA, DATA | PTE_P | PTE_W)
    machine.state.rdi = DATA
    exit = machine.enter()
    assert (exit.code, exit.info_2) == (ExitCode.NPF, DATA)


def test_the_walk_of_the_guests_own_tables_is_a_user_write(engine: str) -> None:
    machine = Nested(HLT, engine=engine)
    machine.entry(0x1000, 0x1000 | PTE_P | PTE_U)  # its PML4, read-only
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (ExitCode.NPF, WALK | 4 | 2 | 1)
    assert exit.info_2 >> 12 == 1


def test_a_reserved_bit_is_reported(engine: str) -> None:
    machine = Nested(HLT, engine=engine)
    machine.ram.load(ROOT, struct.pack("<Q", SECOND | TABLE | PTE_PS))
    exit = machine.enter()
    assert exit.code == ExitCode.NPF
    assert exit.info_1 & 8


def test_a_large_page(engine: str) -> None:
    machine = Nested(b"\x8b\x07" + HLT, engine=engine)
    machine.ram.load(THIRD, struct.pack("<Q", TABLE | PTE_PS))
    machine.ram.load(DATA + 0x10, b"\x2a")
    machine.state.rdi = DATA + 0x10
    assert machine.enter().code == ExitCode.HLT
    assert machine.state.rax == 0x2A


def test_an_uncached_nested_page_makes_a_lock_a_bus_lock(engine: str) -> None:
    machine = Nested(LOCK_XADD + SPIN, engine=engine)
    machine.entry(DATA, DATA | TABLE | PTE_PCD)
    machine.intercept(Intercept.BUS_LOCK)
    machine.state.rdi = DATA
    assert machine.enter().code == ExitCode.BUS_LOCK


def test_a_malformed_pdpte_shows_only_when_it_is_used(engine: str) -> None:
    """APM 2, "Legacy PAE Mode" of nested paging: it is part of the walk, a reserved bit in it a
    page fault."""
    machine = Nested(b"\x8b\x07" + HLT, engine=engine)  # mov eax, [rdi]
    machine.write(efer=registers.EFER_SVME, cs_attributes=0xC9B)
    machine.ram.load(PML4, struct.pack("<2Q", DIRECTORY | PTE_P, DIRECTORY | PTE_P | 1 << 5))
    machine.state.rdi = DATA
    assert machine.enter().code == ExitCode.HLT
    machine.vmcb.write("intercept_2", 1 << 14)
    machine.write(rip=CODE)
    machine.state.rdi = 1 << 30 | DATA
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2) == (0x4E, 1 | 8, 1 << 30 | DATA)
