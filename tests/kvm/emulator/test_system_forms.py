"""System instructions behind the forced-emulation prefix do what they do without it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.kvm.emulator.conftest import MODELS
from tests.kvm.guest import DATA, GDT, HANDLERS, IDT, Guest, handle, long_mode
from trapline.arch import msr
from trapline.arch.registers import CR4_DE, CR4_OSXSAVE
from trapline.kvm import DebugRegs, Kvm, Regs, Sregs, exits, open_kvm

PREFIX = b"\x0f\x0bkvm"
HLT = b"\xf4"
MSRS = (
    msr.IA32_EFER, msr.IA32_STAR, msr.IA32_LSTAR, msr.IA32_KERNEL_GS_BASE, msr.IA32_PAT,
    msr.IA32_DEBUGCTL, msr.IA32_TSC_AUX,
)  # fmt: skip

# rax = 1, rbx, rdi and rsi at DATA (a descriptor-table image), rcx = 2, rdx = 3, r8 an address.
FORMS = {
    "cpuid": "0f a2",
    "rdmsr": "b9 80 00 00 c0 | 0f 32",
    "rdmsr, none": "b9 ff ff 00 00 | 0f 32",
    "wrmsr": "b9 82 00 00 c0 | 0f 30",
    "wrmsr of debugctl": "b9 d9 01 00 00 b8 04 00 00 00 31 d2 | 0f 30",
    "wrmsr, refused": "b9 d9 01 00 00 b8 ff ff 00 00 | 0f 30",
    "mov from cr0": "0f 20 c0",
    "mov from cr2": "0f 20 d0",
    "mov from cr3": "0f 20 d8",
    "mov from cr4": "0f 20 e0",
    "mov from cr8": "44 0f 20 c0",
    "mov to cr0": "0f 20 c0 48 83 c8 08 | 0f 22 c0",
    "mov to cr0, CD": "0f 20 c0 0f ba e8 1e | 0f 22 c0",
    "mov to cr0, refused": "0f 20 c0 48 83 e0 fe | 0f 22 c0",
    "mov to cr2": "0f 22 d0",
    "mov to cr3": "0f 20 d8 | 0f 22 d8",
    "mov to cr4": "0f 20 e0 48 83 c8 04 | 0f 22 e0",
    "mov to cr4, refused": "0f 20 e0 48 83 e0 df | 0f 22 e0",
    "mov to cr8": "44 0f 22 c2",
    "hypercall, Intel's": "0f 01 c1",
    "hypercall, AMD's": "0f 01 d9",
    "clts": "0f 06",
    "lmsw": "0f 01 f0",
    "lmsw, memory": "0f 01 33",
    "smsw": "0f 01 e0",
    "smsw, memory": "0f 01 23",
    "sgdt": "0f 01 03",
    "sidt": "0f 01 0b",
    "lgdt": "0f 01 16",
    "lidt": "0f 01 1e",
    "sldt": "0f 00 c0",
    "str": "0f 00 c8",
    "lldt, null": "31 c0 | 0f 00 d0",
    "verr": "b8 10 00 00 00 | 0f 00 e0",
    "lar": "b9 10 00 00 00 | 0f 02 c1",
    "lsl": "b9 10 00 00 00 | 0f 03 c1",
    "invlpg": "0f 01 3b",
    "invd": "0f 08",
    "wbinvd": "0f 09",
    "xgetbv": "31 c9 | 0f 01 d0",
    "xsetbv": "31 c9 31 d2 b8 03 00 00 00 | 0f 01 d1",
    "xsetbv, refused": "31 c9 31 d2 b8 02 00 00 00 | 0f 01 d1",
    "swapgs": "0f 01 f8",
    "rdfsbase": "f3 48 0f ae c0",
    "wrgsbase": "f3 48 0f ae d8",
    "cli": "fa",
    "sti, nop": "fb | 90",
    "stac": "0f 01 cb",
    "clac": "0f 01 ca",
    "mov ds": "b8 10 00 00 00 | 8e d8",
    "mov ss, nop": "b8 10 00 00 00 | 8e d0 90",
    "mov fs, absent": "b8 f8 00 00 00 | 8e e0",
    "popfq": "68 d7 0c 00 00 | 9d",
    "pushfq": "9c 58",
    "int": "cd 40",
    "int3": "cc",
    "int1": "f1",
    "ud2": "0f 0b",
    "iretq": "6a 10 54 9c 6a 08 48 8d 05 0a 00 00 00 50 | 48 cf",
    "retfq": "6a 08 48 8d 05 0a 00 00 00 50 | 48 cb",
    "call far": "48 8d 05 11 00 00 00 89 07 66 c7 47 04 08 00 | ff 1f",
    "syscall": "0f 05",
    "hlt": "f4",
    "mov from dr0": "0f 21 c0",
    "mov from dr6": "0f 21 f0",
    "mov from dr7": "0f 21 f8",
    "mov from dr4": "0f 21 e0",
    "mov to dr0": "0f 23 c7",
    "mov to dr6": "b8 ff ff ff ff | 0f 23 f0",
    "mov to dr6, zeros": "31 c0 | 0f 23 f0",
    "mov to dr6, too wide": "48 c7 c0 ff ff ff ff | 0f 23 f0",
    "mov to dr7": "b8 00 00 00 00 | 0f 23 f8",
    "mov to dr7, too wide": "48 c7 c0 ff ff ff ff | 0f 23 f8",
    "mov to dr5": "b8 00 04 00 00 | 0f 23 e8",
    "mov to dr15": "44 0f 23 f8",
}


@dataclass
class Seen:
    """What the VMM can see of a guest that has stopped."""

    regs: Regs
    sregs: Sregs
    debugregs: DebugRegs
    msrs: dict[int, int]
    xcrs: dict[int, int]
    data: bytes
    end: exits.Exit


def _guest(kvm: Kvm, form: str, cr4: int, cpl: int) -> tuple[Guest, int]:
    """Stopped before the code in front of the instruction, and where that jumps over the prefix."""
    before, _, code = FORMS[form].rpartition("|")
    setup, tested = bytes.fromhex(before), bytes.fromhex(code)
    guest = long_mode(kvm, setup + b"\xeb\x05" + PREFIX + tested + HLT, cpl)
    for vector in (1, 3, 6, 13, 0x40):
        handle(guest, vector, HLT, 3)
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= CR4_OSXSAVE | cr4
    sregs.cr2 = 0x1234
    sregs.gs.base = 0x3000
    guest.vcpu.set_sregs(sregs)
    image = b"\x37\x00" + GDT.to_bytes(8, "little")
    guest.memory.write(DATA, image + bytes(6) + b"\xff\x0f" + IDT.to_bytes(8, "little"))
    syscall = {msr.IA32_STAR: 0x10 << 48 | 0x8 << 32, msr.IA32_LSTAR: HANDLERS + 0x4000}
    guest.vcpu.set_msrs(syscall | {msr.IA32_KERNEL_GS_BASE: 0x4000})
    guest.memory.write(HANDLERS + 0x4000, HLT)
    regs = guest.vcpu.regs
    regs.rax, regs.rcx, regs.rdx, regs.r8 = 1, 2, 3, 0x12345678
    regs.rbx = regs.rdi = regs.rsi = DATA
    if form == "lidt":
        regs.rsi = DATA + 16
    return guest, regs.rip + len(setup)


def _seen(kvm: Kvm, form: str, cr4: int, cpl: int, is_forced: bool) -> Seen:
    guest, jump = _guest(kvm, form, cr4, cpl)
    if is_forced:
        guest.memory.write(jump, b"\x66\x90")  # a NOP in place of the jump over the prefix
    end = guest.vcpu.run()
    vcpu = guest.vcpu
    return Seen(
        vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_debugregs(), vcpu.get_msrs(MSRS),
        vcpu.get_xcrs(), guest.memory.read(DATA, 64), end,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("machine", [("intel", "jit"), ("amd", "interp")], ids="-".join)
def test_system_instructions_are_like_executed_ones(machine: tuple[str, str], form: str) -> None:
    """At CPL 0 and 3, with DR4 and DR5 undefined and not."""
    vendor, engine = machine
    if form.startswith("hypercall") and vendor not in form.lower():
        return  # repaired in the guest's memory where it is executed (tests of hypercalls)
    kvm = open_kvm(cpu=MODELS[vendor], engine=engine, force_emulation_prefix=1)
    for cr4 in (0, CR4_DE):
        for cpl in (0, 3):
            emulated, executed = (_seen(kvm, form, cr4, cpl, forced) for forced in (True, False))
            assert emulated == executed
