"""Linux's selftest debug_regs, whole: with a local APIC, and an interrupt that waits meanwhile.

The guest sends itself an interrupt with interrupts off, and then does what the steps look at.
"""

from __future__ import annotations

import pytest

from tests.kvm.debugger.support import ENABLE, HARDWARE, HLT, INT3, NOP, STEP, stop
from tests.kvm.guest import DATA, KERNEL_CODE
from tests.kvm.irqchip.guest import CLI, END, STI, Machine, at, command, start
from trapline.arch import apic, msr
from trapline.kvm import Kvm, abi, exits

IRQ = 0xAA
PENDING = start() + command(apic.Delivery.FIXED, IRQ, apic.Shorthand.SELF)
WRITE = at("48 c7 c0", 0x1234) + at("48 89 04 25", DATA)  # mov rax, 1234h; mov [DATA], rax
STEPPED = (
    STI,
    b"\x31\xc0",  # xor eax, eax
    b"\x0f\xa2",  # cpuid
    at("b9", msr.IA32_TSC_DEADLINE),  # mov ecx
    b"\x0f\x30",  # wrmsr
    CLI,
)
READ_DR0 = b"\x0f\x21\xc0"
AT_INT3 = KERNEL_CODE + len(PENDING)
AT_NOP = AT_INT3 + 1
AFTER_WRITE = AT_NOP + 1 + len(WRITE)
STORE = 8  # bytes of the store; the selftest's has 7, by another addressing form
AT_READ_DR0 = AFTER_WRITE + sum(map(len, STEPPED))


@pytest.fixture
def machine(kvm: Kvm) -> Machine:
    """Stopped at INT3, the interrupt pending."""
    code = PENDING + INT3 + NOP + WRITE + b"".join(STEPPED) + READ_DR0 + END
    machine = Machine(kvm, code)
    machine.handle(IRQ, at("ff 04 25", DATA + 8))  # inc dword [DATA + 8]
    machine.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_SW_BP)
    exit = stop(machine)
    assert (exit.exception, exit.pc) == (3, AT_INT3)
    machine.vcpu.regs.rip += 1
    return machine


def interrupts(machine: Machine) -> int:
    return machine.memory.quad(DATA + 8)


def test_every_step_of_it(machine: Machine) -> None:
    vcpu = machine.vcpu
    for i in range(4):  # instruction breakpoints
        vcpu.regs.rip = AT_NOP
        vcpu.set_guest_debug(HARDWARE, {i: AT_NOP, 7: 0x400 | 1 << (2 * i + 1)})
        exit = stop(machine)
        assert (exit.exception, exit.pc, exit.dr6) == (1, AT_NOP, 0xFFFF0FF0 | 1 << i)
    vcpu.regs.rip += 1
    for i in range(4):  # data breakpoints
        dr7 = 0x400 | 1 << (2 * i + 1) | 0x000D0000 << (4 * i)
        vcpu.set_guest_debug(HARDWARE, {i: DATA, 7: dr7})
        exit = stop(machine)
        assert (exit.exception, exit.pc, exit.dr6) == (1, AFTER_WRITE, 0xFFFF0FF0 | 1 << i)
        assert machine.memory.quad(DATA) == 0x1234
        vcpu.regs.rip -= STORE
    vcpu.regs.rip += STORE
    target = AFTER_WRITE
    for instruction in STEPPED:  # single steps, the interrupt kept away although STI lets it in
        target += len(instruction)
        vcpu.set_guest_debug(STEP | abi.GUESTDBG_BLOCKIRQ, {7: 0x400})
        exit = stop(machine)
        assert (exit.exception, exit.pc, exit.dr6) == (1, target, 0xFFFF4FF0)
    assert interrupts(machine) == 0
    vcpu.set_guest_debug(HARDWARE, {7: 0x400 | 1 << 13})  # general detect
    exit = stop(machine)
    assert (exit.exception, exit.pc, exit.dr6) == (1, AT_READ_DR0, 0xFFFF2FF0)
    vcpu.set_guest_debug(0)
    assert isinstance(vcpu.run(), exits.Io)
    assert interrupts(machine) == 0  # interrupts are off again


def test_without_blockirq_the_interrupt_is_taken_between_two_steps(machine: Machine) -> None:
    """What BLOCKIRQ is for: the handler runs where STI's shadow ends, unstepped."""
    machine.vcpu.regs.rip = AFTER_WRITE
    target = AFTER_WRITE
    for instruction in STEPPED[:3]:
        target += len(instruction)
        machine.vcpu.set_guest_debug(STEP, {7: 0x400})
        assert stop(machine).pc == target
    assert interrupts(machine) == 1


def test_the_interrupt_comes_when_it_is_no_longer_blocked(machine: Machine) -> None:
    machine.vcpu.regs.rip = AFTER_WRITE
    machine.memory.write(AFTER_WRITE + 1, NOP + HLT)
    machine.vcpu.set_guest_debug(STEP | abi.GUESTDBG_BLOCKIRQ)
    assert stop(machine).pc == AFTER_WRITE + 1
    assert interrupts(machine) == 0
    machine.memory.write(AFTER_WRITE + 1, NOP + CLI + END)
    machine.vcpu.set_guest_debug(0)
    assert isinstance(machine.vcpu.run(), exits.Io)
    assert interrupts(machine) == 1
