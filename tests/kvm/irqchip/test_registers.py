"""The local APIC's registers, by MSR and in memory, and what the VMM sees of them."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.kvm import guest as base
from tests.kvm.irqchip import guest
from tests.kvm.irqchip.guest import CLI, END, HLT, NOP, RESULTS, STI, Machine, at
from trapline.arch import apic, msr
from trapline.arch.apic import Delivery
from trapline.kvm import Kvm, abi, exits

COUNT = RESULTS + 0x10
LOW, HIGH = 0x41, 0x61
MASKED = apic.LVT_MASKED


def mmio_write(offset: int, word: int) -> bytes:
    """mov rbx, page; mov dword [rbx + offset], word"""
    page = b"\x48\xbb" + struct.pack("<Q", apic.DEFAULT_BASE)
    return page + at("c7 83", offset, word)


def mmio_read(offset: int, address: int) -> bytes:
    """mov rbx, page; mov eax, [rbx + offset]; mov [address], eax"""
    page = b"\x48\xbb" + struct.pack("<Q", apic.DEFAULT_BASE)
    return page + at("8b 83", offset) + at("89 04 25", address)


def by_memory(kvm: Kvm) -> list[int]:
    return _same_story(kvm, mmio_write, mmio_read, b"")


def by_msr(kvm: Kvm) -> list[int]:
    return _same_story(
        kvm,
        lambda offset, word: guest.wrmsr(guest.x2apic(offset), word),
        lambda offset, address: guest.store_msr(guest.x2apic(offset), address),
        guest.store_apic_base(),
    )


def _same_story(kvm: Kvm, write: guest.Write, read: guest.Read, before: bytes) -> list[int]:
    """Two interrupts of its own, the lower one requested while the higher is in service."""
    order = at("ff 04 25", COUNT)  # inc dword [COUNT]
    look = (apic.TPR, apic.PPR, apic.ISR + 0x20, apic.ISR + 0x30, apic.IRR + 0x20)
    inside = b"".join(read(one, RESULTS + 0x80 + 16 * i) for i, one in enumerate(look))
    send = apic.ICR_ASSERT | 1 << apic.ICR_SHORTHAND_SHIFT
    code = before + write(apic.SVR, 0x1FF) + write(apic.TPR, 0x20)
    outside = (apic.LVR, apic.SVR, apic.TPR, apic.PPR, apic.LVT_LINT1, apic.ESR)
    code += b"".join(read(one, RESULTS + 0x20 + 16 * i) for i, one in enumerate(outside))
    code += STI + write(apic.ICR, send | HIGH) + guest.wait_for(COUNT, 2)
    machine = Machine(kvm, code + END)
    end = b"\x50\x51\x52\x53" + write(apic.EOI, 0) + b"\x5b\x5a\x59\x58\x48\xcf"
    base.handle(machine, HIGH, order + write(apic.ICR, send | LOW) + inside + end)
    base.handle(machine, LOW, order + end)
    assert guest.is_end(machine.run())
    return [machine.word(0x20 + 16 * i) for i in range(6)] + [
        machine.word(0x80 + 16 * i) for i in range(5)
    ]


@pytest.mark.parametrize("story", [by_memory, by_msr])
def test_both_ways_to_the_registers_tell_the_same(any_software: Kvm, story: guest.Story) -> None:
    """SDM 3A, "Task and Processor Priorities"; version 14h with six local vectors."""
    expected = [0x50014, 0x1FF, 0x20, 0x20, apic.LVT_MASKED, 0]
    expected += [0x20, 0x60, 0, 1 << HIGH - 0x60, 1 << LOW - 0x40]
    assert story(any_software) == expected


def test_the_bad_vector_of_the_memory_page(software: Kvm) -> None:
    """SDM 3A, "Error Handling": an access to a register that is none, ESR bit 7."""
    code = mmio_write(apic.SVR, 0x1FF) + mmio_read(0x40, RESULTS + 0x20)
    code += mmio_write(apic.ESR, 0) + mmio_read(apic.ESR, RESULTS + 0x24)
    machine = Machine(software, code + END)
    assert guest.is_end(machine.run())
    assert (machine.word(0x20), machine.word(0x24)) == (0, apic.ESR_ILLEGAL_REGISTER)


def test_xapic_destinations(kvm: Kvm) -> None:
    """Flat and cluster model; the ID in the upper byte, as all of the destination."""
    send = apic.ICR_ASSERT | LOW
    code = guest.wait_for(RESULTS + 0x14, 1)
    code += mmio_write(apic.SVR, 0x1FF)
    sent = (
        (send, 1),  # physical
        (send | apic.ICR_LOGICAL, 0x02),  # flat
        (send | apic.ICR_LOGICAL, 0x10),  # cluster 1, nobody's bit
        (send | apic.ICR_LOGICAL, 0x24),  # cluster 2: the other, after its change
    )
    for number, (command, destination) in enumerate(sent):
        if number == 3:
            code += at("c7 04 25", RESULTS + 0x18, 1) + guest.wait_for(RESULTS + 0x14, 2)
        code += mmio_write(apic.ICR_HIGH, destination << 24) + mmio_write(apic.ICR, command)
        code += guest.wait_for(COUNT, {0: 1, 1: 2, 2: 2, 3: 3}[number])
    other = mmio_write(apic.SVR, 0x1FF) + mmio_write(apic.LDR, 0x02 << 24) + STI
    other += guest.increment(RESULTS + 0x14) + guest.wait_for(RESULTS + 0x18, 1)
    other += mmio_write(apic.DFR, 0x0FFFFFFF) + mmio_write(apic.LDR, 0x24 << 24)
    other += guest.increment(RESULTS + 0x14) + guest.FOREVER
    machine = Machine(kvm, code + END, other)
    end = b"\x53" + mmio_write(apic.EOI, 0) + b"\x5b\x48\xcf"
    base.handle(machine, LOW, guest.increment(COUNT) + end)
    assert guest.is_end(machine.run(1))
    assert machine.word(0x10) == 3


def test_switched_off_the_local_vector_table_is_masked(kvm: Kvm) -> None:
    """SDM 3A, "Local APIC State After It Has Been Software Disabled": and cannot be unmasked."""
    entry, svr = guest.x2apic(apic.LVT_TIMER), guest.x2apic(apic.SVR)
    code = guest.start() + guest.wrmsr(entry, LOW) + guest.store_msr(entry, RESULTS + 0x20)
    code += guest.wrmsr(svr, 0xFF) + guest.store_msr(entry, RESULTS + 0x28)
    code += guest.wrmsr(entry, LOW) + guest.store_msr(entry, RESULTS + 0x30)
    machine = Machine(kvm, code + END)
    assert guest.is_end(machine.run())
    masked = LOW | apic.LVT_MASKED
    assert [machine.quad(offset) for offset in (0x20, 0x28, 0x30)] == [LOW, masked, masked]


# -- x2APIC mode ----------------------------------------------------------------------------------


def faults(kvm: Kvm, code: bytes) -> bool:
    """Whether the code takes a #GP."""
    machine = Machine(kvm, code + END)
    base.handle(machine, 13, guest.store(RESULTS + 0x10, 13) + END)
    assert guest.is_end(machine.run())
    return machine.word(0x10) == 13


@pytest.mark.parametrize(
    ("register", "word"),
    [
        (apic.ID, 0), (apic.LVR, 0), (apic.LDR, 0), (apic.DFR, 0), (apic.ICR_HIGH, 0),
        (apic.EOI, 1), (apic.ESR, 1), (apic.TPR, 0x100), (apic.SELF_IPI, 0x100),
        (apic.SVR, 1 << 32), (0x40, 0), (apic.PPR, 0),
        (apic.SVR, 1 << 31 | 0x1FF), (apic.SVR, 1 << 12 | 0x1FF),
        (apic.DIVIDE, 1 << 31), (apic.DIVIDE, 1 << 2), (apic.TPR, 1 << 31),
        (apic.ICR, 1 << 13), (apic.ICR, 1 << 16), (apic.ICR, 1 << 20), (apic.ICR, 1 << 31),
        (apic.LVT_TIMER, MASKED | 1 << 8), (apic.LVT_TIMER, MASKED | 1 << 19),
        (apic.LVT_TIMER, MASKED | 1 << 31), (apic.LVT_ERROR, MASKED | 1 << 10),
        (apic.LVT_ERROR, MASKED | 1 << 17), (apic.LVT_THERMAL, MASKED | 1 << 13),
        (apic.LVT_PERFORMANCE, MASKED | 1 << 14), (apic.LVT_PERFORMANCE, MASKED | 1 << 15),
        (apic.LVT_LINT0, MASKED | 1 << 11), (apic.LVT_LINT1, MASKED | 1 << 17),
    ],
)  # fmt: skip
def test_what_x2apic_refuses_to_write(software: Kvm, register: int, word: int) -> None:
    """SDM 3A, "x2APIC Register Address Space"; KVM lets reserved bits of EOI and TPR pass."""
    assert faults(software, guest.start() + guest.wrmsr(guest.x2apic(register), word))


@pytest.mark.parametrize(
    ("register", "word", "kept"),
    [
        (apic.SVR, 0x3FF, 0x3FF), (apic.DIVIDE, 0xB, 0xB), (apic.TPR, 0xFF, 0xFF),
        (apic.LVT_TIMER, 0x510FF, 0x500FF),
        (apic.LVT_THERMAL, MASKED | 0x17FF, MASKED | 0x7FF),
        (apic.LVT_LINT0, MASKED | 0xF7FF, MASKED | 0xA7FF),
        (apic.LVT_ERROR, MASKED | 0x10FF, MASKED | 0xFF),
        (apic.ICR, 0x8830, 0x8830),
    ],
)  # fmt: skip
def test_what_x2apic_lets_be_written(software: Kvm, register: int, word: int, kept: int) -> None:
    """Every bit that is not reserved; delivery status and remote IRR stay the processor's
    (KVM keeps what is written)."""
    index = guest.x2apic(register)
    code = guest.start() + guest.wrmsr(index, word) + guest.store_msr(index, RESULTS + 0x20)
    machine = Machine(software, code + END)
    assert guest.is_end(machine.run())
    assert machine.word(0x20) == kept


@pytest.mark.parametrize("register", [apic.DFR, apic.ICR_HIGH, apic.EOI, apic.SELF_IPI, 0x40])
def test_what_x2apic_refuses_to_read(kvm: Kvm, register: int) -> None:
    assert faults(kvm, guest.start() + guest.store_msr(guest.x2apic(register), RESULTS + 0x20))


def test_the_msrs_are_not_there_in_xapic_mode(kvm: Kvm) -> None:
    assert faults(kvm, guest.store_msr(guest.x2apic(apic.ID), RESULTS + 0x20))


@pytest.mark.parametrize(
    ("steps", "is_refused"),
    [
        ((msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC,), False),
        ((msr.APIC_BASE_X2APIC,), True),
        ((msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC, msr.APIC_BASE_ENABLE), True),
        ((msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC, 0), False),
        ((0, msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC), True),
        ((0, msr.APIC_BASE_ENABLE), False),
        ((msr.APIC_BASE_ENABLE | 1 << 9,), True),
    ],
)
def test_transitions_of_the_mode(kvm: Kvm, steps: tuple[int, ...], is_refused: bool) -> None:
    """SDM 3A, "x2APIC State Transitions"."""
    code = b"".join(
        guest.wrmsr(msr.IA32_APIC_BASE, apic.DEFAULT_BASE | msr.APIC_BASE_BSP | step)
        for step in steps
    )
    assert faults(kvm, code) == is_refused


def test_cpuid_follows_the_enable_bit(kvm: Kvm) -> None:
    """SDM 3A, "Enabling or Disabling the Local APIC": CPUID.1:EDX[9]."""
    cpuid = b"\xb8\x01\x00\x00\x00\x0f\xa2"
    code = cpuid + at("89 14 25", RESULTS + 0x20)
    code += guest.wrmsr(msr.IA32_APIC_BASE, apic.DEFAULT_BASE | msr.APIC_BASE_BSP)
    code += cpuid + at("89 14 25", RESULTS + 0x24)
    machine = Machine(kvm, code + END)
    assert guest.is_end(machine.run())
    assert [machine.word(offset) >> 9 & 1 for offset in (0x20, 0x24)] == [1, 0]


# -- priorities -----------------------------------------------------------------------------------


def test_cr8_is_the_task_priority(any_software: Kvm) -> None:
    """SDM 3A, "Interaction of Task Priorities between CR8 and APIC": and it holds back what is
    not above it until it is lowered."""
    send = apic.ICR_ASSERT | 1 << apic.ICR_SHORTHAND_SHIFT
    code = guest.start() + b"\xb8\x05\x00\x00\x00\x44\x0f\x22\xc0"  # mov eax, 5; mov cr8, rax
    code += guest.store_msr(guest.x2apic(apic.TPR), RESULTS + 0x20) + STI
    code += guest.wrmsr(guest.x2apic(apic.ICR), send | 0x5F)
    code += NOP * 4 + guest.copy(COUNT, RESULTS + 0x28)
    code += guest.wrmsr(guest.x2apic(apic.TPR), 0x40)
    code += NOP + b"\x44\x0f\x20\xc0" + at("89 04 25", RESULTS + 0x30)  # mov rax, cr8
    code += guest.copy(COUNT, RESULTS + 0x38)
    machine = Machine(any_software, code + END)
    machine.handle(0x5F, guest.increment(COUNT))
    assert guest.is_end(machine.run())
    assert [machine.word(offset) for offset in (0x20, 0x28, 0x30, 0x38)] == [0x50, 0, 4, 1]


def test_a_waiting_interrupt_gets_in_through_a_window_of_one_instruction(any_software: Kvm) -> None:
    code = guest.start() + guest.command(Delivery.FIXED, LOW, 1)
    code += guest.copy(COUNT, RESULTS + 0x20) + STI + NOP + CLI
    code += guest.copy(COUNT, RESULTS + 0x24)
    machine = Machine(any_software, code + END)
    machine.handle(LOW, guest.increment(COUNT))
    assert guest.is_end(machine.run())
    assert [machine.word(offset) for offset in (0x20, 0x24)] == [0, 1]


def test_the_window_stays_open_beside_an_exception_and_the_vmms_wish(any_software: Kvm) -> None:
    """An interrupt waits, the VMM asks for a window too, and the next entry brings #UD."""
    code = guest.start() + guest.command(Delivery.FIXED, LOW, 1) + b"\xe6\x80\x0f\x0b"
    machine = Machine(any_software, code)  # out 80h, al; ud2
    machine.handle(LOW, guest.increment(COUNT))
    base.handle(machine, 6, STI + NOP + CLI + guest.copy(COUNT, RESULTS + 0x20) + END)
    assert isinstance(machine.run_first(), exits.Io)
    machine.vcpu.request_interrupt_window = True
    exit = machine.run_first()
    while exit == exits.IrqWindowOpen():
        machine.vcpu.request_interrupt_window = False
        exit = machine.run_first()
    assert guest.is_end(exit)
    assert machine.word(0x20) == 1


# -- the VMM's side -------------------------------------------------------------------------------


def test_messages_of_devices_and_the_end_of_level_triggered_ones(any_software: Kvm) -> None:
    """KVM_SIGNAL_MSI, and KVM_EXIT_IOAPIC_EOI for what came level-triggered."""
    code = guest.start() + STI + b"\xe6\x80" + guest.wait_for(COUNT, 2)  # out 80h, al
    machine = Machine(any_software, code + END)
    machine.handle(LOW, guest.increment(COUNT))
    machine.handle(HIGH, guest.increment(COUNT))
    assert machine.vm.signal_msi(apic.DEFAULT_BASE, LOW) == 0  # switched off
    ready = machine.run_first()
    assert isinstance(ready, exits.Io) and ready.port == 0x80
    assert machine.vm.signal_msi(apic.DEFAULT_BASE | 7 << 12, LOW) == 0  # nobody's
    level = apic.ICR_LEVEL | apic.ICR_ASSERT
    assert machine.vm.signal_msi(apic.DEFAULT_BASE, HIGH | level) == 1
    assert machine.vm.signal_msi(apic.DEFAULT_BASE | 0xFF << 12, LOW) == 1
    assert machine.run_first() == exits.IoapicEoi(HIGH)
    assert guest.is_end(machine.run_first())


def test_the_8259_gets_in_by_lint0(any_kvm: Kvm) -> None:
    """KVM_INTERRUPT; the first processor's LINT0 passes it on from the start."""
    code = STI + guest.wait_for(COUNT, 1) + CLI
    code += guest.store_apic_base() + guest.software_enable()
    code += guest.wrmsr(guest.x2apic(apic.LVT_LINT0), apic.LVT_MASKED) + STI + b"\xe6\x80"
    machine = Machine(any_kvm, code + END)
    base.handle(machine, LOW, guest.increment(COUNT) + guest.IRETQ)
    vcpu = machine.vcpu
    vcpu.request_interrupt_window = True
    assert machine.run_first() == exits.IrqWindowOpen()
    vcpu.interrupt(LOW)
    with pytest.raises(OSError) as refused:
        vcpu.interrupt(HIGH)
    assert refused.value.errno == errno.EEXIST
    vcpu.request_interrupt_window = False
    exit = machine.run_first()
    assert isinstance(exit, exits.Io) and exit.port == 0x80
    vcpu.request_interrupt_window = True  # of no effect: LINT0 is masked
    assert not vcpu.ready_for_interrupt_injection
    assert guest.is_end(machine.run_first())
    assert machine.word(0x10) == 1


def run_until_halted(machine: Machine) -> None:
    """It stays there; a host with other work may take a while until it is."""
    for _ in range(200):
        assert machine.run_first(timeout=0.05) == exits.Interrupted()
        if machine.vcpu.get_mp_state() == abi.MpState.HALTED:
            return
    pytest.fail("the processor has not come to HLT")


def test_a_halted_processor_is_woken_by_the_8259(any_kvm: Kvm) -> None:
    machine = Machine(any_kvm, STI + HLT + END)
    base.handle(machine, LOW, guest.increment(COUNT) + guest.IRETQ)
    run_until_halted(machine)
    machine.vcpu.interrupt(LOW)
    assert guest.is_end(machine.run_first())
    assert machine.word(0x10) == 1


def test_an_nmi_of_the_vmm_wakes_a_processor_with_interrupts_off(any_kvm: Kvm) -> None:
    machine = Machine(any_kvm, HLT + END)
    base.handle(machine, 2, guest.increment(COUNT) + guest.IRETQ)
    run_until_halted(machine)
    machine.vcpu.nmi()
    assert guest.is_end(machine.run_first())
    assert machine.word(0x10) == 1


def test_the_state_can_be_saved_and_restored(kvm: Kvm) -> None:
    """An interrupt that is requested comes along."""
    code = guest.start() + guest.command(Delivery.FIXED, LOW, 1)
    first = Machine(kvm, code + END)
    assert guest.is_end(first.run())
    area, sregs = first.vcpu.get_lapic(), first.vcpu.get_sregs()
    assert struct.unpack_from("<I", area, apic.IRR + 0x20)[0] == 1 << LOW - 0x40
    assert struct.unpack_from("<I", area, apic.SVR)[0] == 0x1FF
    second = Machine(kvm, STI + guest.wait_for(COUNT, 1) + END)
    second.handle(LOW, guest.increment(COUNT))
    second.vcpu.set_sregs(sregs)
    second.vcpu.set_lapic(area)
    assert second.vcpu.get_lapic() == area
    assert guest.is_end(second.run())
    assert second.word(0x10) == 1


@pytest.mark.parametrize("state", [abi.MpState.HALTED, abi.MpState.UNINITIALIZED])
def test_the_vmm_sets_what_a_processor_does(kvm: Kvm, state: abi.MpState) -> None:
    machine = Machine(kvm, END)
    machine.vcpu.set_mp_state(state)
    assert machine.run_first(timeout=0.05) == exits.Interrupted()
    assert machine.vcpu.get_mp_state() == state
    machine.vcpu.set_mp_state(abi.MpState.RUNNABLE)
    assert guest.is_end(machine.run_first())


def test_without_the_capability_there_is_no_apic(kvm: Kvm) -> None:
    plain = base.long_mode(kvm, HLT)
    with pytest.raises(OSError):
        plain.vcpu.get_lapic()
    with pytest.raises(OSError):
        plain.vm.signal_msi(apic.DEFAULT_BASE, LOW)
    with pytest.raises(OSError):
        plain.vm.enable_cap(abi.Capability.SPLIT_IRQCHIP, 24)  # there is a vCPU already
    assert plain.vcpu.run() == exits.Hlt()
