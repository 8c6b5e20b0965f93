"""Instructions on device memory: what the VMM is asked, and that the guest sees plain memory."""

from __future__ import annotations

import pytest

from tests.kvm.emulator.devices import (
    DEVICE,
    DEVICE_PHYSICAL,
    ROM,
    ROM_PHYSICAL,
    Vmm,
    map_device,
)
from tests.kvm.guest import DATA, GDT, IDT, Guest, Memory, handle, long_mode
from trapline.arch.registers import RFLAGS_TF
from trapline.kvm import Fpu, Kvm, Regs, abi, exits

HLT = b"\xf4"
PATTERN = bytes(range(1, 65)) * 192

# With rdi and rsi at the operand, rcx = 3, rax = 0x0807060504030201, rdx and rbx something.
FORMS = {
    "mov r8, m": "8a 07",
    "mov r16, m": "66 8b 07",
    "mov r32, m": "8b 07",
    "mov r64, m": "48 8b 07",
    "mov m, r8": "88 0f",
    "mov m, r16": "66 89 0f",
    "mov m, r32": "89 0f",
    "mov m, r64": "48 89 0f",
    "mov m, imm32": "c7 07 78 56 34 12",
    "movzx": "0f b6 07",
    "movsx": "48 0f be 07",
    "movsxd": "48 63 07",
    "add r, m": "48 03 07",
    "add m, r": "48 01 0f",
    "lock add m, r": "f0 48 01 0f",
    "adc m, imm": "80 17 7f",
    "cmp m, r": "48 39 0f",
    "test m, r": "48 85 0f",
    "inc m": "ff 07",
    "neg m": "f7 1f",
    "not m": "f7 17",
    "xor m, r": "31 0f",
    "xchg m, r": "48 87 0f",
    "xadd m, r": "0f c1 0f",
    "lock cmpxchg, equal": "f0 0f b1 0f",
    "cmpxchg, different": "48 ff c8 48 0f b1 0f",
    "cmpxchg8b": "f0 0f c7 0f",
    "cmpxchg16b, aligned": "f0 48 0f c7 0f",
    "bts m, r": "0f ab 0f",
    "shl m, cl": "48 d3 27",
    "rcr m, cl": "d2 1f",
    "shld m, r, cl": "48 0f a5 0f",
    "mul m": "48 f7 27",
    "imul r, m": "48 0f af 07",
    "div m": "31 d2 f7 37",
    "bsf": "0f bc 07",
    "popcnt": "f3 0f b8 07",
    "setc m": "f9 0f 92 07",
    "cmovnz": "0f 45 07",
    "bswap after load": "8b 07 0f c8",
    "push m": "ff 37",
    "pop m": "ff 77 08 8f 07",
    "movs": "48 8d 77 20 a4",
    "rep movs": "48 8d 77 20 f3 a4",
    "rep movs, wide": "48 8d 77 20 f3 48 a5",
    "rep stos": "f3 ab",
    "stos down": "fd aa fc",
    "lods": "ad",
    "scas": "af",
    "repne scas": "b0 03 f2 ae",
    "cmps": "a7",
    "repe cmps": "f3 a6",
    "xlat": "48 89 fb b0 07 d7",
    "movups load": "0f 10 07 66 48 0f 7e c0",
    "movups store": "66 48 0f 6e c0 0f 11 07",
    "movnti": "0f c3 0f",
    "paddd, aligned": "66 0f fe 07 66 48 0f 7e c0",
    "fild, fistp": "df 2f df 7f 08",
    "fld80, fstp80": "db 2f db 7f 10",
    "fnstcw": "d9 3f",
    "call through m": "48 8d 05 09 00 00 00 48 89 07 ff 17 eb 03 90 90 c3 90",
}


def device_guest(kvm: Kvm, code: bytes, at: int) -> Guest:
    guest = long_mode(kvm, code + HLT)
    map_device(guest)
    guest.memory.write(DATA, PATTERN[:0x3000])
    regs = guest.vcpu.regs
    regs.rdi = regs.rsi = at
    regs.rax, regs.rbx, regs.rcx, regs.rdx = 0x0807060504030201, 7, 3, 0x100F0E0D0C0B0A09
    return guest


def _state(guest: Guest, base: int) -> Regs:
    """The registers, addresses counted from the operand's page."""
    regs = guest.vcpu.get_regs()
    for name in ("rdi", "rsi", "rbx"):
        word = getattr(regs, name)
        if base <= word < base + 0x2000:
            setattr(regs, name, word - base)
    return regs


def _floating(guest: Guest, base: int) -> Fpu:
    fpu = guest.vcpu.get_fpu()
    fpu.last_dp -= base if fpu.last_dp else 0
    return fpu


@pytest.mark.parametrize("offset", [0x10, 0x1003, 0x0FFD])
@pytest.mark.parametrize("name", FORMS)
def test_device_memory_is_like_memory(software: Kvm, name: str, offset: int) -> None:
    """Aligned, misaligned, and across two pages."""
    raw = bytes.fromhex(FORMS[name])
    if name.endswith("aligned"):
        offset &= ~15
    plain, device = (
        device_guest(software, raw, DATA + offset),
        device_guest(software, raw, DEVICE + offset),
    )
    assert isinstance(plain.vcpu.run(), exits.Hlt)
    vmm = Vmm(device, bytearray(PATTERN[:0x3000]))
    assert isinstance(vmm.run(), exits.Hlt)
    assert vmm.seen
    assert _state(device, DEVICE) == _state(plain, DATA)
    assert _floating(device, DEVICE) == _floating(plain, DATA)
    assert bytes(vmm.content) == plain.memory.read(DATA, 0x3000)


def test_reads_take_effect_when_the_vmm_has_answered(software: Kvm) -> None:
    guest = device_guest(software, b"\x48\x8b\x07", DEVICE)
    exit = guest.vcpu.run()
    assert exit == exits.Mmio(DEVICE_PHYSICAL, 8, False, bytearray(8))
    rip = guest.vcpu.regs.rip
    assert guest.vcpu.regs.rax == 0x0807060504030201
    assert isinstance(exit, exits.Mmio)
    exit.data[:] = b"\x11" * 8
    guest.vcpu.kick()
    assert isinstance(guest.vcpu.run(), exits.Interrupted)  # completes, then does not enter
    assert (guest.vcpu.regs.rip, guest.vcpu.regs.rax) == (rip + 3, 0x1111111111111111)


def test_writes_are_told_after_the_instruction(software: Kvm) -> None:
    guest = device_guest(software, b"\x89\x07", DEVICE)
    rip = guest.vcpu.regs.rip
    assert guest.vcpu.run() == exits.Mmio(DEVICE_PHYSICAL, 4, True, bytearray(b"\1\2\3\4"))
    assert guest.vcpu.regs.rip == rip + 2


def test_a_guest_sent_elsewhere_meanwhile_goes_on_there(software: Kvm) -> None:
    guest = device_guest(software, b"\x48\x8b\x07" + HLT + b"\x90", DEVICE)
    assert isinstance(guest.vcpu.run(), exits.Mmio)
    guest.vcpu.regs.rip += 4
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x0807060504030201


@pytest.mark.parametrize(
    ("code", "offset", "expected"),
    [
        ("8b 07", 0xFFE, [("read", 0xFFE, 2), ("read", 0x1000, 2)]),
        ("48 89 07", 0xFFD, [("write", 0xFFD, 3), ("write", 0x1000, 5)]),
        ("0f 10 07", 0x10, [("read", 0x10, 8), ("read", 0x18, 8)]),
        ("f0 ff 07", 0x10, [("read", 0x10, 4), ("write", 0x10, 4)]),
        ("48 8d 77 08 a5", 0x10, [("read", 0x18, 4), ("write", 0x10, 4)]),
        ("f3 aa", 0x10, [("write", 0x10, 1), ("write", 0x11, 1), ("write", 0x12, 1)]),
    ],
)
def test_what_the_vmm_is_asked(
    software: Kvm, code: str, offset: int, expected: list[tuple[str, int, int]]
) -> None:
    """Fragments of up to eight bytes, by page, once each and in order."""
    vmm = Vmm(device_guest(software, bytes.fromhex(code), DEVICE + offset))
    assert isinstance(vmm.run(), exits.Hlt)
    assert vmm.seen == [(kind, DEVICE_PHYSICAL + at, size) for kind, at, size in expected]


def test_writes_to_a_read_only_slot_are_told_and_reads_are_not(software: Kvm) -> None:
    """KVM_MEM_READONLY: a read-modify-write reads the memory and tells of the write."""
    guest = device_guest(software, b"\xf0\xff\x07" + b"\x8b\x07", ROM)
    rom = Memory(0x200000)
    rom.write_quads(0, 41)
    guest.vm.set_user_memory_region(1, abi.MEM_READONLY, ROM_PHYSICAL, rom.size, rom.address)
    expected = exits.Mmio(ROM_PHYSICAL, 4, True, bytearray(b"\x2a\0\0\0"))
    assert guest.vcpu.run() == expected
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rax, rom.quad(0)) == (41, 41)


def test_faults_come_before_any_access_is_told(software: Kvm) -> None:
    """From the device to a page that is not there: #PF, the read not being the VMM's business."""
    guest = device_guest(software, b"\xa4", DEVICE)
    guest.vcpu.regs.rdi = 0x800000
    handler = handle(guest, 14, HLT)
    vmm = Vmm(guest)
    assert isinstance(vmm.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.vcpu.get_sregs().cr2 == 0x800000


def test_a_single_step_ends_after_the_emulated_instruction(software: Kvm) -> None:
    # A single step of HLT would wake it again, so UD2 ends it; its handler has no TF.
    guest = device_guest(software, b"\x8b\x07\x89\x07\x90\x0f\x0b", DEVICE)
    handle(guest, 6, HLT)
    handler = handle(guest, 1, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest.vcpu.regs.rflags |= RFLAGS_TF
    vmm = Vmm(guest)
    assert isinstance(vmm.run(), exits.Hlt)
    assert handler and guest.vcpu.regs.rbx == 7 + 3
    assert guest.vcpu.get_debugregs().dr6 & 1 << 14


@pytest.mark.parametrize("code", ["8b 07", "89 07"])
def test_a_debugger_steps_over_an_emulated_instruction(software: Kvm, code: str) -> None:
    guest = device_guest(software, bytes.fromhex(code), DEVICE)
    rip = guest.vcpu.regs.rip
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = Vmm(guest).run()
    assert isinstance(exit, exits.Debug) and exit.dr6 & 1 << 14
    assert exit.pc == guest.vcpu.regs.rip == rip + 2
    assert not guest.vcpu.regs.rflags & RFLAGS_TF


def test_a_data_breakpoint_on_device_memory_is_hit(software: Kvm) -> None:
    guest = device_guest(software, b"\x89\x07", DEVICE + 0x10)
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[1], debugregs.dr7 = DEVICE + 0x12, 0x400 | 1 << 2 | 0x1 << 20
    guest.vcpu.set_debugregs(debugregs)
    handler = handle(guest, 1, HLT)
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.vcpu.get_debugregs().dr6 & 0xF == 2


def test_the_interrupt_shadow_ends_with_the_emulated_instruction(software: Kvm) -> None:
    guest = device_guest(software, b"\xfb\x89\x07", DEVICE)  # sti; mov [rdi], eax
    assert isinstance(guest.vcpu.run(), exits.Mmio)
    assert guest.vcpu.get_vcpu_events().interrupt_shadow == 0
    assert guest.vcpu.ready_for_interrupt_injection


def test_interrupts_come_between_the_iterations_of_a_string_instruction(software: Kvm) -> None:
    guest = device_guest(software, b"\xf3\xaa", DEVICE)
    handler = handle(guest, 0x40, HLT)
    guest.vcpu.regs.rflags |= 1 << 9
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Mmio) and guest.vcpu.regs.rcx == 2
    guest.vcpu.interrupt(0x40)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rip, guest.vcpu.regs.rcx) == (handler + 1, 2)


# -- where there is nothing to emulate -----------------------------------------------------------


def test_code_in_device_memory_cannot_be_emulated(software: Kvm) -> None:
    """handle_emulation_failure() at CPL 0: the VMM hears of it, the guest gets #UD."""
    guest = device_guest(software, b"\xff\xe7", DEVICE)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.InternalError)
    assert (exit.suberror, exit.data[0]) == (abi.INTERNAL_ERROR_EMULATION, 0)
    assert len(exit.data) == 6  # flags, and what the processor said of the exit
    assert guest.vcpu.regs.rip == DEVICE
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1


def test_at_cpl_3_only_the_guest_hears_of_it(software: Kvm) -> None:
    guest = long_mode(software, b"\xff\xe7", cpl=3)
    map_device(guest)
    guest.vcpu.regs.rdi = DEVICE
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1


def test_page_tables_in_device_memory_cannot_be_emulated(software: Kvm) -> None:
    guest = device_guest(software, b"\x8b\x07", DEVICE + 0x200000)
    guest.memory.write_quads(0x3018, DEVICE_PHYSICAL | 7)  # a table, where there is a device
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.InternalError)
    assert exit.suberror == abi.INTERNAL_ERROR_EMULATION
    flags, first, second = exit.data[:3]
    assert (flags, first & 0xFF) == (1, 15)  # the bytes that were fetched, the longest there are
    area = first.to_bytes(8, "little") + second.to_bytes(8, "little")
    assert area[1:] == (b"\x8b\x07" + HLT).ljust(15, b"\0")
    assert len(exit.data) == 8


def test_an_interrupt_table_in_device_memory_is_an_error_of_delivery(software: Kvm) -> None:
    guest = device_guest(software, b"\x0f\x0b", DEVICE)
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base = DEVICE
    guest.vcpu.set_sregs(sregs)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.InternalError)
    assert exit.suberror == abi.INTERNAL_ERROR_DELIVERY_EV
    assert exit.data[3] == DEVICE_PHYSICAL + 16 * 6


def test_descriptors_and_stacks_may_lie_in_device_memory(software: Kvm) -> None:
    """Loading a segment register reads its descriptor there; PUSH and POP use the stack there."""
    guest = device_guest(software, b"\x8e\xd8\x50\x5b", DEVICE)  # mov ds, eax; push rax; pop rbx
    sregs = guest.vcpu.get_sregs()
    sregs.gdt.base = DEVICE
    guest.vcpu.set_sregs(sregs)
    vmm = Vmm(guest)
    vmm.content[:64] = guest.memory.read(GDT, 64)
    guest.vcpu.regs.rax, guest.vcpu.regs.rsp = 0x10, DEVICE + 0x1000
    assert isinstance(vmm.run(), exits.Hlt)
    assert guest.vcpu.get_sregs().ds.selector == 0x10
    assert guest.vcpu.regs.rbx == 0x10 and IDT
