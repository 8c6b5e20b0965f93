"""What INIT resets and what it keeps, and a processor started by it in user mode."""

from __future__ import annotations

import struct

import pytest

from tests.kvm import guest as base
from tests.kvm.irqchip import guest
from tests.kvm.irqchip.guest import END, FOREVER, RESULTS, Machine, at, command
from trapline.arch import apic, debug, descriptor, msr, registers
from trapline.arch.apic import Delivery, Shorthand
from trapline.kvm import Kvm, abi

COUNT = RESULTS + 0x10
INIT = command(Delivery.INIT, shorthand=Shorthand.OTHERS)
PAT = 0x0007040600070401
GENERAL = ("rax", "rbx", "rcx", "rsi", "rdi", "rsp", "rbp", "r8", "r15")


def after_init(kvm: Kvm, code: bytes) -> Machine:
    """The second processor has run `code`, says so, and is sent INIT."""
    first = guest.start() + guest.wait_for(COUNT, 1) + INIT
    machine = Machine(kvm, first + END, code + guest.increment(COUNT) + FOREVER)
    assert guest.is_end(machine.run(1))
    assert machine.vcpus[1].get_mp_state() == abi.MpState.INIT_RECEIVED
    return machine


def test_init_resets_the_registers(any_kvm: Kvm) -> None:
    """SDM 3A, "Processor State After Reset", the INIT column; debug registers with bits 11 and
    16 of DR6 set, which are active low (DR6_ACTIVE_LOW)."""
    code = b"\x48\xc7\xc0" + struct.pack("<I", 0x400)  # mov rax, 400h
    code += b"\x0f\x23\xc0\x0f\x23\xf8"  # mov dr0, rax; mov dr7, rax
    code += b"\x31\xc0\x0f\x23\xf0"  # xor eax, eax; mov dr6, rax
    vcpu = after_init(any_kvm, code).vcpus[1]
    regs, sregs, debugregs = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_debugregs()
    signature = next(one.eax for one in any_kvm.get_supported_cpuid() if one.function == 1)
    assert [getattr(regs, name) for name in GENERAL] == [0] * len(GENERAL)
    assert (regs.rdx, regs.rip, regs.rflags) == (signature, 0xFFF0, 2)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
    assert (sregs.gdt.base, sregs.gdt.limit, sregs.idt.limit) == (0, 0xFFFF, 0xFFFF)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (registers.CR0_ET, 0, 0, 0)
    assert debugregs.dr6 == debug.DR6_ACTIVE_LOW == 0xFFFF0FF0
    assert (list(debugregs.db), debugregs.dr7) == ([0, 0, 0, 0], debug.DR7_FIXED_1)


def test_init_keeps_what_the_manual_says(any_software: Kvm) -> None:
    """SDM 3A, "Processor State After Reset": caches' bits in CR0, x87 and SSE registers, the
    time-stamp counter, MTRRs, PAT, DEBUGCTL and its BLD, and the mode of the APIC."""
    # mov rax, cr0; bts rax, 30; mov cr0, rax; mov eax, 1234; movd xmm3, eax; fldpi
    code = b"\x0f\x20\xc0\x48\x0f\xba\xe8\x1e\x0f\x22\xc0" + at("b8", 1234)
    code += b"\x66\x0f\x6e\xd8\xd9\xeb" + guest.start()
    code += guest.wrmsr(msr.IA32_PAT, PAT) + guest.wrmsr(msr.IA32_MTRR_DEF_TYPE, 0xC06)
    code += guest.wrmsr(msr.IA32_DEBUGCTL, msr.DEBUGCTL_BLD) + guest.wrmsr(msr.IA32_TSC, 1 << 50)
    vcpu = after_init(any_software, code).vcpus[1]
    sregs, fpu = vcpu.get_sregs(), vcpu.get_fpu()
    assert sregs.cr0 == registers.CR0_ET | registers.CR0_CD
    assert (fpu.xmm[3], fpu.fsw >> 11 & 7) == (1234, 7)
    wanted = [msr.IA32_PAT, msr.IA32_MTRR_DEF_TYPE, msr.IA32_DEBUGCTL, msr.IA32_TSC]
    *kept, tsc = vcpu.get_msrs(wanted).values()
    assert kept == [PAT, 0xC06, msr.DEBUGCTL_BLD]
    assert tsc > 1 << 50
    assert sregs.apic_base == guest.X2APIC_ON  # not the first processor's flag


def test_init_resets_the_local_apic(kvm: Kvm) -> None:
    """SDM 3A, "Local APIC State After It Receives an INIT Reset": all but its ID."""
    code = guest.start() + guest.wrmsr(guest.x2apic(apic.TPR), 0x70)
    code += guest.wrmsr(guest.x2apic(apic.LVT_TIMER), 0x40)
    code += guest.wrmsr(guest.x2apic(apic.INITIAL_COUNT), 0xFFFFFFFF)
    code += guest.command(Delivery.FIXED, 0x40, Shorthand.SELF)
    area = after_init(kvm, code).vcpus[1].get_lapic()

    def word(offset: int) -> int:
        return int(struct.unpack_from("<I", area, offset)[0])

    assert word(apic.ID) == 1 << 24
    assert word(apic.LDR) == 2  # which the ID makes in x2APIC mode
    assert word(apic.SVR) == apic.SVR_RESET
    cleared = (apic.TPR, apic.IRR + 0x20, apic.INITIAL_COUNT, apic.CURRENT_COUNT, apic.ICR)
    assert [word(offset) for offset in cleared] == [0] * len(cleared)
    assert all(word(entry) == apic.LVT_MASKED for entry in apic.LVTS)


def test_init_drops_what_was_pending(any_kvm: Kvm) -> None:
    """An NMI that waits behind another one, which is being handled: the processor starts with
    NMIs neither pending nor blocked."""
    nmi = command(Delivery.NMI, destination=1)
    first = guest.start() + guest.wait_for(COUNT, 1) + nmi + guest.wait_for(COUNT, 2) + nmi
    first += INIT + command(Delivery.STARTUP, 9, Shorthand.OTHERS) + guest.wait_for(COUNT, 3)
    machine = Machine(any_kvm, first + END, guest.increment(COUNT) + FOREVER)
    base.handle(machine, 2, guest.increment(COUNT) + FOREVER)
    machine.write_trampoline(guest.increment(COUNT) + FOREVER)
    assert guest.is_end(machine.run(1))
    events = machine.vcpus[1].get_vcpu_events()
    assert (events.nmi_pending, events.nmi_masked, events.nmi_injected) == (0, 0, 0)
    assert machine.word(0x10) == 3


@pytest.mark.parametrize("is_on", [True, False], ids=["BLD", "BLD off"])
def test_a_started_processor_takes_a_bus_lock_exception_in_user_mode(
    any_software: Kvm, is_on: bool
) -> None:
    """From wait-for-SIPI through real mode to CPL 3: a split `lock inc`, and #DB after it with
    DR6.BLD clear."""
    user, split = base.USER_CODE, base.DATA + 0x3E
    after = at("f0 ff 04 25", split)
    # iretq wants SS, RSP, RFLAGS, CS, RIP; LTR needs a TSS that is not busy.
    tss = descriptor.build_system_segment(base.TSS, descriptor.TSS_LIMIT, 0x89)
    enter = guest.wrmsr(msr.IA32_DEBUGCTL, msr.DEBUGCTL_BLD if is_on else 0)
    enter += at("b8", 0x40) + b"\x0f\x00\xd8"  # mov eax, 40h; ltr ax
    for word in (base.DS3, base.USER_STACK, 2, base.CS3, user):
        enter += at("68", word)
    code = guest.start() + INIT + command(Delivery.STARTUP, 9, Shorthand.OTHERS)
    machine = Machine(any_software, code + guest.wait_for(COUNT, 1) + END, waiting=1)
    machine.memory.write_quads(base.GDT + 0x40, *tss)
    machine.write_trampoline(enter + guest.IRETQ)
    machine.memory.write(user, after + b"\x0f\x0b")  # ud2, where there is no #DB
    save = b"\x0f\x21\xf0" + at("89 04 25", RESULTS + 0x20)  # mov rax, dr6
    save += b"\x48\x8b\x04\x24" + at("89 04 25", RESULTS + 0x28)  # mov rax, [rsp]
    save += b"\x48\x8b\x44\x24\x08" + at("89 04 25", RESULTS + 0x30)  # mov rax, [rsp + 8]
    base.handle(machine, 1, save + guest.increment(COUNT) + FOREVER)
    base.handle(machine, 6, guest.increment(COUNT) + FOREVER)
    assert guest.is_end(machine.run(1))
    seen = [machine.word(offset) for offset in (0x20, 0x28, 0x30)]
    blocked = debug.DR6_ACTIVE_LOW & ~debug.DR6_BUS_LOCK
    assert seen == ([blocked, user + len(after), base.CS3] if is_on else [0, 0, 0])
    assert machine.memory.read(split, 4) == b"\x01\x00\x00\x00"
