"""PAE paging: the four PDPTEs that the hypervisor loads in the guest's place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kvm.guest import Guest, Memory
from trapline.arch import descriptor, registers
from trapline.kvm import Dtable, Kvm, Segment, abi, exits, open_kvm

CODE, HANDLER, GDT, IDT = 0x1000, 0x3000, 0x4000, 0x5000
TABLES = 0x40000000  # guest-physical, in a slot that nothing else touches
BEYOND = 0x80000000  # in no slot
PAGING_ON = b"\x0f\x22\xc0"  # mov cr0, eax
LOAD_CR3 = b"\x0f\x22\xd9"  # mov cr3, ecx
HLT = b"\xf4"
PROTECTED = registers.CR0_PE | registers.CR0_ET | registers.CR0_NE


@pytest.fixture(params=[("sapphire-rapids", "interp"), ("sapphire-rapids", "jit"), ("zen5", "jit")])
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    cpu, engine = request.param
    yield open_kvm(cpu=cpu, engine=engine)


def pae_guest(kvm: Kvm, code: bytes, cr3: int = TABLES, pdpte: int | None = None) -> Guest:
    """32-bit protected mode, CR4.PAE set and CR0.PG not yet; the page tables in a page of their
    own, which the guest has never touched."""
    guest = Guest(kvm)
    tables = Memory(0x4000)
    guest.vm.set_user_memory_region(1, 0, TABLES, 0x4000, tables.address)
    guest.tables = tables  # type: ignore[attr-defined]
    tables.write_quads(0x20, TABLES + 0x1000 | 1 if pdpte is None else pdpte)
    tables.write_quads(0x0, TABLES + 0x1000 | 1 if pdpte is None else pdpte)
    tables.write_quads(0x1000, 0x83, 0x200083)
    guest.memory.write(CODE, code)
    guest.memory.write(HANDLER, HLT)
    guest.memory.write_quads(GDT, 0, descriptor.build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE32))
    gate = (HANDLER & 0xFFFF) | 0x08 << 16 | 0x8E00 << 32 | HANDLER >> 16 << 48
    for vector in (13, 14):
        guest.memory.write_quads(IDT + 8 * vector, gate)
    sregs = guest.vcpu.get_sregs()
    make = Segment.from_attributes
    sregs.cs = make(0x08, 0, 0xFFFFFFFF, descriptor.AR_CODE32)
    for name in ("ds", "es", "ss"):
        setattr(sregs, name, make(0x10, 0, 0xFFFFFFFF, descriptor.AR_DATA32))
    sregs.gdt, sregs.idt = Dtable(GDT, 0xF), Dtable(IDT, 0x7F)
    sregs.cr0, sregs.cr3, sregs.cr4 = PROTECTED, cr3, registers.CR4_PAE
    guest.vcpu.set_sregs(sregs)
    regs = guest.vcpu.regs
    regs.rip, regs.rflags, regs.rsp = CODE, 2, 0x9000
    regs.rax, regs.rcx = PROTECTED | registers.CR0_PG, cr3
    return guest


def test_paging_begins_with_tables_nobody_has_touched(kvm: Kvm) -> None:
    """MOV to CR0 exits; the hypervisor reads the PDPTEs where its own tables lead nowhere yet."""
    guest = pae_guest(kvm, PAGING_ON + HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == CODE + len(PAGING_ON) + 1
    assert guest.vcpu.get_sregs().cr0 & registers.CR0_PG


def test_mov_to_cr3_loads_them_too(kvm: Kvm) -> None:
    guest = pae_guest(kvm, PAGING_ON + LOAD_CR3 + HLT)
    guest.vcpu.regs.rcx = TABLES + 0x20
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == CODE + len(PAGING_ON + LOAD_CR3) + 1
    assert guest.vcpu.get_sregs().cr3 == TABLES + 0x20


@pytest.mark.parametrize("pdpte", [3, 1 | 1 << 52, 1 | 1 << 63])
def test_a_malformed_one_is_gp(kvm: Kvm, pdpte: int) -> None:
    """SDM 3A, "PDPTE Registers"; paging stays off."""
    guest = pae_guest(kvm, PAGING_ON + HLT, pdpte=pdpte)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == HANDLER + 1
    assert not guest.vcpu.get_sregs().cr0 & registers.CR0_PG


def test_tables_outside_of_memory_are_gp(kvm: Kvm) -> None:
    """load_pdptrs(): what cannot be read cannot be loaded."""
    guest = pae_guest(kvm, PAGING_ON + HLT, cr3=BEYOND)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == HANDLER + 1


def paging_sregs(guest: Guest, cr3: int) -> None:
    sregs = guest.vcpu.get_sregs()
    sregs.cr0, sregs.cr3 = PROTECTED | registers.CR0_PG, cr3
    guest.vcpu.set_sregs(sregs)


def test_userspace_may_switch_paging_on(kvm: Kvm) -> None:
    guest = pae_guest(kvm, HLT)
    paging_sregs(guest, TABLES)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == CODE + 1


def test_userspace_may_name_tables_that_are_not_there(kvm: Kvm) -> None:
    """KVM_SET_SREGS does not look; what then becomes of the guest is not the caller's error."""
    guest = pae_guest(kvm, HLT)
    paging_sregs(guest, BEYOND)
    exit = guest.vcpu.run()
    assert not isinstance(exit, exits.Hlt)


def test_an_event_survives_an_entry_that_must_first_map_the_tables(kvm: Kvm) -> None:
    """The slot moves while an exception waits: SVM's entry meets a nested page fault on the
    PDPTEs, and the exception is injected all the same."""
    guest = pae_guest(kvm, b"\x90" + HLT)
    paging_sregs(guest, TABLES)
    extra = Memory(0x1000)
    guest.vm.set_user_memory_region(2, 0, BEYOND, 0x1000, extra.address)  # all tables are dropped
    events = guest.vcpu.get_vcpu_events()
    events.exception_injected, events.exception_nr = 1, 13
    events.exception_has_error_code, events.exception_error_code = 1, 0x58
    events.flags &= ~abi.VCPUEVENT_VALID_SHADOW
    guest.vcpu.set_vcpu_events(events)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == HANDLER + 1
    assert guest.memory.read(guest.vcpu.regs.rsp, 4) == b"\x58\0\0\0"
