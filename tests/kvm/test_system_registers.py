"""Control registers, MSRs, CPUID and modes: what the guest may load and what it then sees."""

from __future__ import annotations

import struct

import pytest

from tests.kvm.guest import (
    GDT,
    KERNEL_CODE,
    PAGE_DIRECTORY,
    PDPT,
    PML4,
    Guest,
    handle,
    long_mode,
    real_mode,
)
from trapline.arch import cpuid, msr, registers
from trapline.arch.cpuid import CpuidEntry
from trapline.arch.descriptor import AR_CODE64, AR_DATA32, build_segment
from trapline.kvm import Kvm, exits

HLT = b"\xf4"
AT = 0x8000  # where the boot code lies
BOOT = bytes.fromhex(
    "fa"  # cli
    "660f0116000f"  # lgdtl [0x0f00]
    "0f20e0 6683c820 0f22e0"  # cr4 |= PAE
    "66b800100000 0f22d8"  # cr3 := 0x1000
    "66b9800000c0 0f32 660d00010000 0f30"  # EFER |= LME
    "0f20c0 660d01000080 0f22c0"  # cr0 |= PG | PE
    "66ea008100000800"  # jmp 0x08:0x8100
)
LONG = bytes.fromhex("48b88877665544332211 f4")  # mov rax, 0x1122334455667788; hlt
LMA = registers.EFER_LMA


def test_a_guest_boots_itself_from_real_to_long_mode(kvm: Kvm) -> None:
    """CR0, CR4, EFER and a far jump, all by the guest: every intercepted register is passed."""
    guest = real_mode(kvm, HLT)
    memory = guest.memory
    guest.vcpu.set_cpuid2(kvm.get_supported_cpuid())
    memory.write(AT, BOOT)
    memory.write(0x8100, LONG)
    memory.write_quads(PML4, PDPT | 7)
    memory.write_quads(PDPT, PAGE_DIRECTORY | 7)
    memory.write_quads(PAGE_DIRECTORY, 0x87)
    memory.write_quads(GDT, 0, build_segment(0, 0xFFFFFFFF, AR_CODE64))
    memory.write_quads(GDT + 16, build_segment(0, 0xFFFFFFFF, AR_DATA32))
    memory.write(0xF00, struct.pack("<HI", 0x17, GDT))
    guest.vcpu.regs.rip = AT
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x1122334455667788
    sregs = guest.vcpu.get_sregs()
    assert sregs.efer & LMA and sregs.cs.l
    assert sregs.cr0 & registers.CR0_PG and sregs.cr4 == registers.CR4_PAE
    guest.close()


def test_sregs_round_trip(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.fs.base, sregs.cr2, sregs.cr8 = 0x7FFF12345678, 0x1234, 5
    sregs.gdt.limit = 0x1F
    guest.vcpu.set_sregs(sregs)
    seen = guest.vcpu.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "gdt", "idt"):
        assert getattr(seen, name) == getattr(sregs, name), name
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        assert getattr(seen, name) == getattr(sregs, name), name
    guest.close()


@pytest.mark.parametrize(
    "change",
    [
        {"efer": registers.EFER_LME | LMA, "cr4": 0},
        {"efer": registers.EFER_LME},  # LMA must go with PG and LME
        {"efer": 0},  # CS.L without long mode
        {"cr0": registers.CR0_PG},
        {"cr0": registers.CR0_PG | registers.CR0_PE | registers.CR0_ET | registers.CR0_NW},
        {"cr3": PML4 | 1 << 60},
        {"cr3": PML4 | registers.CR3_NOFLUSH},
        {"cr4": registers.CR4_PAE | 1 << 30},
    ],
)
def test_sregs_that_cannot_stand_together_are_einval(kvm: Kvm, change: dict[str, int]) -> None:
    """kvm_is_valid_sregs()."""
    guest = long_mode(kvm, HLT)
    sregs = guest.vcpu.get_sregs()
    for name, word in change.items():
        setattr(sregs, name, word)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_sregs(sregs)
    guest.close()


def test_cr3_is_as_wide_as_physical_addresses(software: Kvm) -> None:
    """kvm_vcpu_is_legal_cr3(), by the guest's CPUID; outside of long mode nobody asks."""
    guest = long_mode(software, HLT)
    sizes = cpuid.find(software.get_supported_cpuid(), 0x80000008)
    assert sizes is not None
    bits = sizes.eax & 0xFF
    sregs = guest.vcpu.get_sregs()
    sregs.cr3 = 1 << bits - 1
    guest.vcpu.set_sregs(sregs)
    sregs.cr3 = 1 << bits
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_sregs(sregs)
    sregs.cr0 = registers.CR0_ET | registers.CR0_CD | registers.CR0_NW
    sregs.efer = sregs.cs.l = 0
    guest.vcpu.set_sregs(sregs)


@pytest.mark.parametrize("vectors", [(0x30, 0x90), (0x91, 0xC0), (0x21, 0x3F, 0xFF)])
def test_of_several_interrupts_in_sregs_the_first_is_taken(
    kvm: Kvm, vectors: tuple[int, ...]
) -> None:
    """__set_sregs(): find_first_bit() of the bitmap."""
    guest = long_mode(kvm, HLT)
    sregs = guest.vcpu.get_sregs()
    for vector in vectors:
        sregs.interrupt_bitmap[vector >> 6] |= 1 << (vector & 63)
    guest.vcpu.set_sregs(sregs)
    events = guest.vcpu.get_vcpu_events()
    assert (events.interrupt_injected, events.interrupt_nr) == (1, vectors[0])
    guest.close()


def test_a_vcpu_begins_as_after_reset(kvm: Kvm) -> None:
    """SDM 3A, "Processor State After Reset"."""
    guest = Guest(kvm)
    regs, sregs = guest.vcpu.get_regs(), guest.vcpu.get_sregs()
    assert (regs.rip, regs.rflags, regs.rsp) == (0xFFF0, 2, 0)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
    assert (sregs.ss.selector, sregs.ss.base, sregs.ss.limit, sregs.ss.type) == (0, 0, 0xFFFF, 3)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x60000010, 0, 0, 0)
    assert sregs.apic_base == 0xFEE00900
    assert guest.vcpu.get_fpu().fcw == 0x37F
    guest.close()


# -- what the guest may load --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "name"),
    [
        (b"\x0f\x22\xc0", 0x80010013 & ~1, "cr0"),  # PG without PE
        (b"\x0f\x22\xc0", 0xA0010033, "cr0"),  # NW without CD
        (b"\x0f\x22\xc0", 0x00010013 | 1, "cr0"),  # leaving paging in 64-bit code
        (b"\x0f\x22\xe0", 0, "cr4"),  # PAE off in long mode
        (b"\x0f\x22\xe0", registers.CR4_PAE | 1 << 30, "cr4"),
        (b"\x0f\x22\xe0", registers.CR4_PAE | registers.CR4_VMXE, "cr4"),
    ],
)
def test_values_kvm_refuses_are_gp_in_the_guest(
    kvm: Kvm, code: bytes, value: int, name: str
) -> None:
    guest = long_mode(kvm, code + HLT)
    handler = handle(guest, 13, HLT)
    before = getattr(guest.vcpu.get_sregs(), name)
    guest.vcpu.regs.rax = value
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert getattr(guest.vcpu.get_sregs(), name) == before
    guest.close()


def test_bits_the_guest_owns_change_without_the_hypervisor(kvm: Kvm) -> None:
    """TS by MOV and CLTS, OSFXSR in CR4; userspace reads them, and the guest reads no VMXE, NE."""
    code = b"\x0f\x20\xc3" + b"\x48\x83\xcb\x08" + b"\x0f\x22\xc3" + HLT  # cr0 |= TS
    guest = long_mode(kvm, code + b"\x0f\x06" + b"\x0f\x20\xe1" + HLT)  # clts; mov rcx, cr4
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.get_sregs().cr0 & registers.CR0_TS
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert not guest.vcpu.get_sregs().cr0 & registers.CR0_TS
    assert guest.vcpu.regs.rcx == guest.vcpu.get_sregs().cr4
    assert not guest.vcpu.regs.rcx & registers.CR4_VMXE
    guest.close()


def test_xsetbv_takes_x87_and_sse(software: Kvm) -> None:
    """And CPUID follows: OSXSAVE with CR4, the size with XCR0."""
    code = b"\x0f\x01\xd1" + b"\x31\xc9" + b"\x0f\x01\xd0" + HLT  # xsetbv; xor ecx; xgetbv; hlt
    guest = long_mode(software, code)
    handle(guest, 13, b"\x31\xc0" + HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= registers.CR4_OSXSAVE
    guest.vcpu.set_sregs(sregs)
    for wanted, seen in ((3, 3), (2, 0), (7, 0), (1, 1)):
        regs = guest.vcpu.regs
        regs.rip, regs.rax, regs.rdx, regs.rcx = KERNEL_CODE, wanted, 0, 0
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == seen
    assert guest.vcpu.get_xcrs() == {0: 1}
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_xcrs({0: 4})


# -- CPUID --------------------------------------------------------------------------------------


def asked(guest: Guest, function: int, index: int = 0) -> tuple[int, int, int, int]:
    regs = guest.vcpu.regs
    regs.rip, regs.rax, regs.rcx = KERNEL_CODE, function, index
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return regs.rax, regs.rbx, regs.rcx, regs.rdx


def test_the_guest_sees_the_leaves_it_was_given(software: Kvm) -> None:
    guest = long_mode(software, b"\x0f\xa2" + HLT)
    guest.vcpu.set_cpuid2(
        [
            CpuidEntry(0, eax=7, ebx=0x756E6547, ecx=0x6C65746E, edx=0x49656E69),
            CpuidEntry(1, eax=0x806F8, ecx=1),
            CpuidEntry(7, 0, 1, eax=1, ecx=1 << 24),
            CpuidEntry(7, 1, 1, eax=0x55),
        ]
    )
    assert asked(guest, 0) == (7, 0x756E6547, 0x6C65746E, 0x49656E69)
    assert asked(guest, 7)[2] & 1 << 24
    assert asked(guest, 7, 1)[0] == 0x55
    assert asked(guest, 7, 2) == (0, 0, 0, 0)
    assert asked(guest, 2) == (0, 0, 0, 0)
    guest.close()


def test_intel_answers_beyond_its_last_leaf_with_the_last(software: Kvm) -> None:
    guest = long_mode(software, b"\x0f\xa2" + HLT)
    assert asked(guest, 0x20) == asked(guest, 0xD)
    assert asked(guest, 0x12345678) == asked(guest, 0xD)


def test_supported_leaves_hide_what_is_not_virtualized(software: Kvm) -> None:
    entries = software.get_supported_cpuid()
    shown = (cpuid.CX16, cpuid.POPCNT, cpuid.SSE4_2, cpuid.XSAVE, cpuid.HYPERVISOR, cpuid.X2APIC)
    hidden = (cpuid.VMX, cpuid.AVX, cpuid.TSC_DEADLINE)
    assert all(cpuid.has(entries, feature) for feature in shown)
    assert not any(cpuid.has(entries, feature) for feature in hidden)
    leaf = cpuid.find(entries, 0xD, 0)
    assert leaf is not None
    assert leaf.eax == 3


def test_osxsave_in_cpuid_follows_cr4(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\xa2" + HLT)
    bit = cpuid.OSXSAVE.mask
    assert not asked(guest, 1)[2] & bit
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= registers.CR4_OSXSAVE
    guest.vcpu.set_sregs(sregs)
    assert asked(guest, 1)[2] & bit
    guest.close()


# -- MSRs ---------------------------------------------------------------------------------------


def test_msrs_written_by_the_guest_are_read_by_userspace_and_back(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x30" + HLT)  # wrmsr
    words = {
        msr.IA32_STAR: 0x0023001000000000,
        msr.IA32_LSTAR: 0x7FFF00001000,
        msr.IA32_FMASK: 0x700,
        msr.IA32_KERNEL_GS_BASE: 0x1234000,
        msr.IA32_FS_BASE: 0x7777000,
        msr.IA32_SYSENTER_EIP: 0x4444,
        msr.IA32_PAT: 0x0007040600070401,
    }
    for index, word in words.items():
        regs = guest.vcpu.regs
        regs.rip, regs.rcx = KERNEL_CODE, index
        regs.rax, regs.rdx = word & 0xFFFFFFFF, word >> 32
        assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.get_msrs(words) == words
    assert guest.vcpu.fs_base == 0x7777000
    guest.close()


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (msr.TEST_CTRL, 1),
        (msr.IA32_CORE_CAPABILITIES, 0),
        (msr.IA32_LSTAR, 1 << 62),
        (msr.IA32_EFER, 1 << 4),
    ],
)
def test_refused_msr_writes_are_gp(kvm: Kvm, index: int, word: int) -> None:
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    handler = handle(guest, 13, HLT)
    regs = guest.vcpu.regs
    regs.rcx, regs.rax, regs.rdx = index, word & 0xFFFFFFFF, word >> 32
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    guest.close()


def test_a_pat_with_a_reserved_type_is_gp(software: Kvm) -> None:
    test_refused_msr_writes_are_gp(software, msr.IA32_PAT, 2)


def test_the_time_stamp_counter_begins_near_zero_and_can_be_set(software: Kvm) -> None:
    guest = long_mode(software, b"\x0f\x31" + HLT)  # rdtsc
    guest.vcpu.set_msrs({msr.IA32_TSC: 1 << 60})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    seen = guest.vcpu.regs.rdx << 32 | guest.vcpu.regs.rax
    assert 1 << 60 < seen < (1 << 60) + (1 << 40)
    assert seen < guest.vcpu.get_msrs([msr.IA32_TSC])[msr.IA32_TSC] < (1 << 60) + (1 << 41)


def test_every_listed_msr_can_be_read(software: Kvm) -> None:
    guest = long_mode(software, HLT)
    indices = software.get_msr_index_list()
    assert list(guest.vcpu.get_msrs(indices)) == indices


# -- instructions with nothing behind them -------------------------------------------------------


def test_vmx_instructions_are_undefined_for_guests(software: Kvm) -> None:
    guest = long_mode(software, b"\x0f\x01\xc4" + HLT)  # vmxoff
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
