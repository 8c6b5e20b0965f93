"""Control registers, on the way between modes: what the hypervisor looks at, and what it mends."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.kvm.guest import (
    CS0,
    GDT,
    IDT,
    KERNEL_CODE,
    PAGE_DIRECTORY,
    PDPT,
    PML4,
    TR,
    TSS,
    Guest,
    handle,
    long_mode,
)
from trapline.arch import cpuid, descriptor, registers
from trapline.arch.descriptor import SystemType, build_segment
from trapline.kvm import Kvm, Segment, exits, open_kvm

DONE, GP = 0x55, 13
OUT_DONE = b"\xe6\x55"
UPPER = 1 << 40
PAE_PAGING_ON = b"\xb8\x20\x06\x00\x00\x0f\x22\xe0"  # mov eax, 620h; mov cr4, eax
LONG_MODE_ON = bytes.fromhex("b9 80 00 00 c0 31 d2 b8 00 01 00 00 0f 30")  # EFER.LME
PAGING_ON = bytes.fromhex("0f 20 c0 0d 00 00 00 80 0f 22 c0")  # or eax, 80000000h
PAGING_OFF = bytes.fromhex("0f 20 c0 25 ff ff ff 7f 0f 22 c0")


@pytest.fixture(params=["sapphire-rapids", "zen5"])
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    yield open_kvm(cpu=request.param, force_emulation_prefix=1)


def port(guest: Guest) -> int:
    exit = guest.vcpu.run()
    guest.close()
    assert isinstance(exit, exits.Io), exit
    return exit.port


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("0f 22 e0", registers.CR4_PAE | registers.CR4_OSFXSR | registers.CR4_OSXMMEXCPT),
        ("0f 22 c0", 0x80000033 | registers.CR0_CD),
        ("0f 23 f8", 0x400),
    ],
    ids=["cr4", "cr0", "dr7"],
)
@pytest.mark.parametrize("upper", [0, UPPER])
def test_only_the_low_half_counts_in_compatibility_mode(
    kvm: Kvm, code: str, word: int, upper: int
) -> None:
    """kvm_register_read(); without bus locks shown to the guest, MOV DR exits."""
    guest = long_mode(kvm, bytes.fromhex(code) + OUT_DONE)
    guest.vcpu.set_cpuid2(
        entry.with_feature(cpuid.BUS_LOCK_DETECT, False)
        if (entry.function, entry.index) == (7, 0)
        else entry
        for entry in kvm.get_supported_cpuid()
    )
    handle(guest, GP, bytes((0xE6, GP)))
    sregs = guest.vcpu.get_sregs()
    sregs.cs = Segment.from_attributes(CS0, 0, 0xFFFFFFFF, descriptor.AR_CODE32)
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rax = word | upper
    assert port(guest) == DONE


def protected(kvm: Kvm, code: bytes) -> Guest:
    """32-bit protected mode; the tables of this module's neighbour are there for later."""
    guest = long_mode(kvm, code)
    sregs = guest.vcpu.get_sregs()
    sregs.efer, sregs.cr0, sregs.cr4 = 0, registers.CR0_PE | registers.CR0_NE, 0x600
    sregs.cs = Segment.from_attributes(CS0, 0, 0xFFFFFFFF, descriptor.AR_CODE32)
    guest.memory.write(IDT + 8 * GP, struct.pack("<HHHH", 0x8D00, CS0, 0x8E00, 0))
    guest.memory.write(0x8D00, bytes((0xE6, GP)))
    guest.memory.write_quads(GDT + CS0, build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE32))
    guest.vcpu.set_sregs(sregs)
    return guest


def test_a_short_tss_becomes_a_long_one_on_the_way_to_long_mode(kvm: Kvm) -> None:
    """enter_lmode(): VM entry would refuse it (SDM 3C, "Checks on Guest Segment Registers"), and
    the guest loads TR when it is there."""
    load_tr = b"\xb8" + struct.pack("<I", TR) + b"\x0f\x00\xd8"
    load_cr3 = b"\xb8" + struct.pack("<I", PML4) + b"\x0f\x22\xd8"
    code = load_tr + PAE_PAGING_ON + load_cr3 + LONG_MODE_ON + PAGING_ON + OUT_DONE
    guest = protected(kvm, code)
    rights = descriptor.AR_P | SystemType.TSS16_AVAILABLE
    guest.memory.write_quads(GDT + TR, build_segment(TSS, 0x2B, rights))
    assert port(guest) == DONE


def test_cs_l_means_nothing_outside_of_ia_32e_mode(kvm: Kvm) -> None:
    """is_64_bit_mode(): paging may be switched off."""
    jump = b"\xea" + struct.pack("<IH", KERNEL_CODE + 7, CS0)
    guest = protected(kvm, jump + PAGING_OFF + OUT_DONE)
    guest.memory.write_quads(PDPT, PAGE_DIRECTORY | 1, 0, 0, 0)
    code = build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE32) | 1 << 53
    guest.memory.write_quads(GDT + CS0, code)
    sregs = guest.vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = sregs.cr0 | registers.CR0_PG, PDPT, 0x620
    guest.vcpu.set_sregs(sregs)
    assert port(guest) == DONE


def test_cr3_stays_where_the_pdptes_at_the_new_one_are_malformed(kvm: Kvm) -> None:
    """kvm_set_cr3() looks at them first; the emulator's, for MOV CR3 itself does not exit."""
    mov_cr3 = b"\xb8\x00\x70\x00\x00" + b"\x0f\x0bkvm" + b"\x0f\x22\xd8"
    guest = protected(kvm, mov_cr3 + OUT_DONE)
    guest.memory.write_quads(PDPT, PAGE_DIRECTORY | 1, 0, 0, 0)
    guest.memory.write_quads(0x7000, PAGE_DIRECTORY | 1 | 0x1E0, 0, 0, 0)
    sregs = guest.vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = sregs.cr0 | registers.CR0_PG, PDPT, 0x620
    guest.vcpu.set_sregs(sregs)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Io) and exit.port == GP
    assert guest.vcpu.get_sregs().cr3 == PDPT
    guest.close()


@pytest.mark.parametrize(("bits", "vector"), [(52, DONE), (40, GP)])
def test_cr3_is_no_wider_than_the_guests_physical_addresses(
    kvm: Kvm, bits: int, vector: int
) -> None:
    """kvm_vcpu_is_legal_cr3(), by CPUID.80000008h; what is there is found in no slot."""
    guest = long_mode(kvm, b"\x0f\x0bkvm" + b"\x0f\x22\xd8" + OUT_DONE)
    guest.vcpu.set_cpuid2(
        replace(entry, eax=entry.eax & ~0xFF | bits) if entry.function == 0x80000008 else entry
        for entry in kvm.get_supported_cpuid()
    )
    handle(guest, GP, bytes((0xE6, GP)))
    guest.vcpu.regs.rax = PML4 | 1 << 45
    if vector == GP:
        assert port(guest) == GP
        return
    assert not isinstance(guest.vcpu.run(), exits.Io)
    assert guest.vcpu.get_sregs().cr3 == PML4 | 1 << 45
    guest.close()
