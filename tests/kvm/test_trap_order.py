"""Whose the bus lock's #DB is, and what it comes before (the rules of reference A.1 and A.3)."""

from __future__ import annotations

import pytest

from tests.kvm.guest import (
    DATA,
    PAGE_DIRECTORY,
    USER_CODE,
    Guest,
    handle,
    long_mode,
)
from trapline.arch import msr, paging
from trapline.kvm import DebugRegs, Kvm, exits, open_kvm

LOCK_XADD, HLT, SPIN = b"\xf0\x0f\xc1\x07", b"\xf4", b"\xeb\xfe"
NEXT = USER_CODE + len(LOCK_XADD)
TABLES = 0x300000  # page tables in a 2 MiB page of their own
MODELS = [(cpu, engine) for cpu in ("sapphire-rapids", "zen5") for engine in ("interp", "jit")]


@pytest.fixture(params=MODELS)
def kvm(request: pytest.FixtureRequest) -> Kvm:
    cpu, engine = request.param
    return open_kvm(cpu=cpu, engine=engine)


def guest_of(kvm: Kvm, code: bytes) -> Guest:
    """CPL 3, BLD on; the handler of #DB halts."""
    guest = long_mode(kvm, code + SPIN, cpl=3)
    guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: msr.DEBUGCTL_BLD})
    handle(guest, 1, HLT)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = DATA + 0x3E, 1
    return guest


@pytest.mark.parametrize(
    "after", [b"\xcd\x40", b"\xcc", b"\x0f\x05", b"\x0f\x0b", b"\x8e\xd1", b"\xf1"]
)
def test_the_trap_comes_before_whatever_follows(kvm: Kvm, after: bytes) -> None:
    """INT n, INT3, SYSCALL, UD2, MOV SS, INT1: not begun when the #DB is delivered."""
    guest = guest_of(kvm, LOCK_XADD + after)
    for vector in (0x40, 3, 6):
        handle(guest, vector, b"\x0f\x0b", dpl=3)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(guest.vcpu.regs.rsp) == NEXT
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF07F0


def test_a_breakpoint_on_the_next_instruction_is_an_exception_of_its_own(kvm: Kvm) -> None:
    """The trap first (group 4), then the fault (group 7), with B0 and bit 11 as it was left."""
    guest = guest_of(kvm, LOCK_XADD + b"\x90")
    handle(guest, 1, b"\x48\xff\xc3\x48\x83\xfb\x02\x74\x02\x48\xcf" + HLT)  # twice, then hlt
    guest.vcpu.set_debugregs(DebugRegs([NEXT, 0, 0, 0], 0xFFFF0FF0, 0x401))
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 2
    assert guest.memory.quad(guest.vcpu.regs.rsp) == NEXT
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF07F1


def test_an_instruction_that_faults_has_locked_nothing(kvm: Kvm) -> None:
    """The second half of the operand lies on an absent page: #PF, and no #DB when it is done with
    a page there, but one."""
    guest = guest_of(kvm, LOCK_XADD)
    handle(guest, 14, HLT)
    guest.vcpu.regs.rdi = 0x3FFFFE  # the last two bytes that are mapped
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(guest.vcpu.regs.rsp + 8) == USER_CODE
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0
    assert guest.memory.read(0x3FFFFE, 2) == b"\0\0"


def test_accessed_bits_in_uncached_tables_are_no_bus_lock(kvm: Kvm) -> None:
    """Locked by the processor itself, at CPL 3, in memory that is not write-back: not counted,
    as AMD documents it and as the model has it on Intel."""
    guest = guest_of(kvm, b"\x8b\x07\x0f\x0b")  # mov eax, [rdi]; ud2
    handle(guest, 6, HLT)
    uncached = paging.PTE_PCD | paging.PTE_PWT
    memory = guest.memory
    leaf = paging.PTE_P | paging.PTE_W | paging.PTE_U
    for page in range(512):
        memory.write_quads(TABLES + 8 * page, page << 12 | leaf)
    memory.write_quads(PAGE_DIRECTORY, TABLES | leaf | uncached)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert memory.quad(TABLES + 8 * (DATA >> 12)) & paging.PTE_A
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0
    assert memory.quad(guest.vcpu.regs.rsp) == USER_CODE + 2


def test_descriptors_that_straddle_a_line_are_no_bus_lock(kvm: Kvm) -> None:
    """MOV to DS sets the accessed bit of a descriptor across two lines, at CPL 3."""
    guest = guest_of(kvm, b"\x8e\xd8\x0f\x0b")  # mov ds, eax; ud2
    handle(guest, 6, HLT)
    sregs = guest.vcpu.get_sregs()
    table = guest.memory.read(sregs.gdt.base, 0x40)
    moved = DATA + 0x1000 - 0x20 - 4  # 0x20 of it: the descriptor lies across 0x1000's line
    guest.memory.write(moved, table)
    guest.memory.write(moved + 0x25, bytes([table[0x25] & ~1]))
    sregs.gdt.base = moved
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rax = 0x23
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.read(moved + 0x25, 1)[0] & 1
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0
