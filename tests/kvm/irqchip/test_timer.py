"""The local APIC's timer in its three modes."""

from __future__ import annotations

import struct

import pytest

from tests.kvm.irqchip import guest
from tests.kvm.irqchip.guest import END, RESULTS, STI, Machine, at
from trapline.arch import apic, cpuid, msr
from trapline.arch.apic import TimerMode, divisor
from trapline.kvm import Kvm, abi

COUNT = RESULTS + 0x10
VECTOR = 0x50
SOON = 1_000_000  # a millisecond, at 1 GHz


def timer(mode: int, masked: bool = False) -> bytes:
    word = VECTOR | mode << apic.LVT_TIMER_MODE_SHIFT | (apic.LVT_MASKED if masked else 0)
    return guest.wrmsr(guest.x2apic(apic.LVT_TIMER), word)


def count_down(initial: int, divide: int = 0xB) -> bytes:
    """0xB is to divide by one."""
    code = guest.wrmsr(guest.x2apic(apic.DIVIDE), divide)
    return code + guest.wrmsr(guest.x2apic(apic.INITIAL_COUNT), initial)


def arm_deadline(ticks: int) -> bytes:
    """rdtsc; add eax, ticks; adc edx, 0; mov ecx, 6e0h; wrmsr"""
    return (
        b"\x0f\x31" + at("05", ticks) + b"\x83\xd2\x00" + at("b9", msr.IA32_TSC_DEADLINE)
        + b"\x0f\x30"
    )  # fmt: skip


def run(kvm: Kvm, code: bytes) -> Machine:
    machine = Machine(kvm, guest.start() + STI + code + END)
    machine.handle(VECTOR, guest.increment(COUNT))
    assert guest.is_end(machine.run())
    return machine


@pytest.mark.parametrize("wait", [guest.wait_for, guest.halt_until], ids=["running", "halted"])
def test_one_shot_interrupts_once(any_kvm: Kvm, wait: guest.Wait) -> None:
    """SDM 3A, "APIC Timer": then it stands at zero until it is started again."""
    current = guest.store_msr(guest.x2apic(apic.CURRENT_COUNT), RESULTS + 0x20)
    code = timer(TimerMode.ONE_SHOT) + count_down(SOON) + wait(COUNT, 1)
    machine = run(any_kvm, code + current + count_down(SOON) + wait(COUNT, 2))
    assert (machine.word(0x10), machine.quad(0x20)) == (2, 0)


@pytest.mark.parametrize("wait", [guest.wait_for, guest.halt_until], ids=["running", "halted"])
def test_periodic_goes_on(any_kvm: Kvm, wait: guest.Wait) -> None:
    machine = run(any_kvm, timer(TimerMode.PERIODIC) + count_down(SOON) + wait(COUNT, 5))
    assert machine.word(0x10) >= 5


@pytest.mark.parametrize("wait", [guest.wait_for, guest.halt_until], ids=["running", "halted"])
def test_the_tsc_deadline_interrupts_once_it_has_passed(any_kvm: Kvm, wait: guest.Wait) -> None:
    """SDM 3A, "TSC-Deadline Mode": not a tick before, and the MSR is zero afterwards."""
    code = timer(TimerMode.TSC_DEADLINE)
    for count in (1, 2):
        code += arm_deadline(3_000_000)
        code += at("89 04 25", RESULTS + 0x20) + at("89 14 25", RESULTS + 0x24)
        code += wait(COUNT, count)
        code += b"\x0f\x31" + at("89 04 25", RESULTS + 0x28) + at("89 14 25", RESULTS + 0x2C)
    code += guest.store_msr(msr.IA32_TSC_DEADLINE, RESULTS + 0x30)
    machine = run(any_kvm, code)
    assert machine.quad(0x28) >= machine.quad(0x20)
    assert (machine.word(0x10), machine.quad(0x30)) == (2, 0)


def test_a_deadline_in_the_past_interrupts_at_once(kvm: Kvm) -> None:
    code = timer(TimerMode.TSC_DEADLINE) + guest.wrmsr(msr.IA32_TSC_DEADLINE, 1)
    assert run(kvm, code + guest.wait_for(COUNT, 1)).word(0x10) == 1


def spin(ticks: int) -> bytes:
    """rdtsc; mov esi, eax; back: pause; rdtsc; sub eax, esi; cmp eax, ticks; jb back"""
    return b"\x0f\x31\x89\xc6\xf3\x90\x0f\x31\x29\xf0" + at("3d", ticks) + b"\x72\xf3"


def rdtsc_to(place: int) -> bytes:
    """rdtsc; mov [place], eax"""
    return b"\x0f\x31" + at("89 04 25", place)


DUE = 5_000_000  # ticks of the TSC, and of the timer, which no TSC is slower than
ARM_COUNT = timer(TimerMode.ONE_SHOT) + count_down(DUE)
ARM_DEADLINE = timer(TimerMode.TSC_DEADLINE) + arm_deadline(DUE)
CHANGED_BACK = timer(TimerMode.ONE_SHOT) + guest.wrmsr(msr.IA32_TSC_DEADLINE, 1)


@pytest.mark.parametrize(
    ("arm", "disarm"),
    [
        pytest.param(ARM_DEADLINE, guest.wrmsr(msr.IA32_TSC_DEADLINE, 0), id="deadline-zero"),
        pytest.param(ARM_COUNT, count_down(0), id="count-zero"),
        pytest.param(ARM_COUNT, timer(TimerMode.TSC_DEADLINE), id="count-mode"),
        pytest.param(ARM_DEADLINE, CHANGED_BACK, id="deadline-mode"),
    ],
)
def test_it_is_disarmed(kvm: Kvm, arm: bytes, disarm: bytes) -> None:
    """By zero and by a change of the mode (SDM 3A, "TSC-Deadline Mode"; writes to its MSR in
    another mode are ignored): long after it was due, nothing has come.  A run in which it was due
    before the guest came to disarm it, on a host with other work, says nothing."""
    before, after = (rdtsc_to(RESULTS + place) for place in (0x20, 0x24))
    code = before + arm + disarm + after + spin(6 * DUE)
    for _ in range(50):
        machine = run(kvm, code)
        if machine.word(0x24) - machine.word(0x20) & 0xFFFFFFFF < DUE:
            break
    else:
        pytest.fail("never disarmed in time")
    assert machine.word(0x10) == 0


def test_a_masked_timer_counts_and_does_not_interrupt(kvm: Kvm) -> None:
    current = guest.x2apic(apic.CURRENT_COUNT)
    # rdmsr of the current count; test eax, eax; jnz back
    until_zero = at("b9", current) + b"\x0f\x32\x85\xc0\x75\xf5"
    code = timer(TimerMode.ONE_SHOT, masked=True) + count_down(SOON) + until_zero
    assert run(kvm, code).word(0x10) == 0


@pytest.mark.parametrize(
    ("divide", "by"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)],
)
def test_the_divide_configuration(divide: int, by: int) -> None:
    """SDM 3A, "Divide Configuration Register"."""
    assert divisor(divide) == by


def test_the_count_goes_down_by_the_divided_clock(kvm: Kvm) -> None:
    """Between two looks, at most as many ticks pass as nanoseconds, divided by 128."""
    initial = 0x10000000
    code = timer(TimerMode.ONE_SHOT, masked=True) + count_down(initial, 0xA)
    code += guest.store_msr(guest.x2apic(apic.CURRENT_COUNT), RESULTS + 0x20)
    code += at("b9", 20000) + b"\xff\xc9\x75\xfc"  # mov ecx, 20000; dec ecx; jnz
    code += guest.store_msr(guest.x2apic(apic.CURRENT_COUNT), RESULTS + 0x28)
    machine = run(kvm, code)
    first, second = machine.quad(0x20), machine.quad(0x28)
    assert initial >= first > second > 0


def test_without_the_feature_there_is_no_deadline_mode(kvm: Kvm) -> None:
    """CPUID.1:ECX[24] clear: bit 18 of the LVT timer register is reserved."""
    code = guest.start() + timer(TimerMode.TSC_DEADLINE)
    code += guest.store_msr(guest.x2apic(apic.LVT_TIMER), RESULTS + 0x20)
    machine = Machine(kvm, code + END)
    machine.vcpu.set_cpuid2(
        entry.with_feature(cpuid.TSC_DEADLINE, False) if entry.function == 1 else entry
        for entry in kvm.get_supported_cpuid()
    )
    assert guest.is_end(machine.run())
    assert machine.quad(0x20) == VECTOR


def test_a_halted_processor_with_a_timer_is_left_alone_by_a_kick(kvm: Kvm) -> None:
    """The state is kept: the next run sleeps on, and is woken by the timer."""
    code = guest.start() + timer(TimerMode.ONE_SHOT) + count_down(30 * SOON)
    machine = Machine(kvm, code + guest.halt_until(COUNT, 1) + END)
    machine.handle(VECTOR, guest.increment(COUNT))
    while not guest.is_end(machine.run_first(timeout=0.01)):
        assert machine.vcpu.get_mp_state() in (abi.MpState.HALTED, abi.MpState.RUNNABLE)
    assert machine.word(0x10) == 1


def test_a_saved_timer_goes_on(kvm: Kvm) -> None:
    """KVM_SET_LAPIC with a current count."""
    machine = Machine(kvm, STI + guest.wait_for(COUNT, 1) + END)
    machine.handle(VECTOR, guest.increment(COUNT))
    sregs = machine.vcpu.get_sregs()
    sregs.apic_base |= msr.APIC_BASE_X2APIC
    machine.vcpu.set_sregs(sregs)
    area = bytearray(machine.vcpu.get_lapic())
    for register, word in (
        (apic.SVR, 0x1FF), (apic.LVT_TIMER, VECTOR), (apic.DIVIDE, 0xB),
        (apic.INITIAL_COUNT, SOON), (apic.CURRENT_COUNT, SOON // 2),
    ):  # fmt: skip
        struct.pack_into("<I", area, register, word)
    machine.vcpu.set_lapic(bytes(area))
    assert guest.is_end(machine.run())
    assert machine.word(0x10) == 1
