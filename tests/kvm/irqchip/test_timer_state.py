"""Timers and NMIs of a vCPU that is saved, set and moved while something is under way."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest

from tests.kvm import guest as base
from tests.kvm.irqchip import guest
from tests.kvm.irqchip.guest import END, NOP, RESULTS, Machine
from trapline.arch import apic, msr
from trapline.arch.apic import TimerMode
from trapline.kvm import Kvm, exits
from trapline.kvm.irqchip.alarm import Alarm
from trapline.kvm.irqchip.rate import TscRate
from trapline.kvm.irqchip.timer import Timer

VECTOR = 0x55
IRR_OF_VECTOR = apic.IRR + 16 * (VECTOR // 32)
SOON = 1_000_000  # a millisecond
PERIOD = 400_000
WAIT = b"\xe6\x01"  # out 1, al: the VMM's turn


def stopped_with_a_timer(kvm: Kvm, mode: int, initial: int, ticks: int) -> Machine:
    """It has started its timer, and will halt until so many interrupts have come."""
    write = guest.wrmsr
    code = guest.start() + write(guest.x2apic(apic.DIVIDE), 0xB)
    code += write(guest.x2apic(apic.LVT_TIMER), mode << apic.LVT_TIMER_MODE_SHIFT | VECTOR)
    code += write(guest.x2apic(apic.INITIAL_COUNT), initial)
    machine = Machine(kvm, code + WAIT + guest.halt_until(RESULTS, ticks) + END)
    machine.handle(VECTOR, guest.increment(RESULTS))
    exit = machine.run_first()
    assert isinstance(exit, exits.Io) and exit.port == 1
    return machine


@pytest.mark.parametrize("mode", [TimerMode.PERIODIC, TimerMode.ONE_SHOT])
def test_a_timer_saved_at_a_count_of_zero_goes_on(kvm: Kvm, mode: TimerMode) -> None:
    """set_target_expiration(): a periodic one after a period, a one-shot one at once."""
    ticks = 3 if mode is TimerMode.PERIODIC else 1
    machine = stopped_with_a_timer(kvm, mode, SOON, ticks)
    area = bytearray(machine.vcpu.get_lapic())
    struct.pack_into("<I", area, apic.CURRENT_COUNT, 0)
    struct.pack_into("<I", area, IRR_OF_VECTOR, 0)
    machine.vcpu.set_lapic(bytes(area))
    assert guest.is_end(machine.run_first(timeout=30))
    assert machine.word() >= ticks


@pytest.mark.parametrize("mode", [TimerMode.PERIODIC, TimerMode.ONE_SHOT])
def test_a_timer_that_is_due_and_has_not_rung_is_in_the_saved_page(
    software: Kvm, mode: TimerMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Alarm, "set", lambda *_: None)  # a host that never gets round to it
    machine = stopped_with_a_timer(software, mode, 1, 1)
    start = Alarm.now()
    while Alarm.now() <= start + PERIOD:
        pass
    area = machine.vcpu.get_lapic()
    assert struct.unpack_from("<I", area, IRR_OF_VECTOR)[0] == 1 << VECTOR % 32
    assert guest.is_end(machine.run_first(timeout=30))


def test_setting_the_page_keeps_a_deadline(kvm: Kvm) -> None:
    """IA32_TSC_DEADLINE is not in it (kvm_apic_set_state)."""
    arm = guest.wrmsr(guest.x2apic(apic.LVT_TIMER), TimerMode.TSC_DEADLINE << 17 | VECTOR)
    # rdtsc; add edx, 1000h; mov ecx, 6e0h; wrmsr
    arm += b"\x0f\x31" + guest.at("81 c2", 0x1000) + guest.at("b9", 0x6E0) + b"\x0f\x30"
    machine = Machine(kvm, guest.start() + arm + WAIT + END)
    machine.run_first()
    vcpu = machine.vcpu
    armed = vcpu.get_msrs([msr.IA32_TSC_DEADLINE])
    assert armed[msr.IA32_TSC_DEADLINE] >> 44
    vcpu.set_lapic(vcpu.get_lapic())
    assert vcpu.get_msrs([msr.IA32_TSC_DEADLINE]) == armed


def armed_by_deadline(kvm: Kvm) -> Machine:
    """The timer is due in 2**28 ticks."""
    arm = guest.wrmsr(guest.x2apic(apic.LVT_TIMER), TimerMode.TSC_DEADLINE << 17 | VECTOR)
    # rdtsc; add eax, 10000000h; adc edx, 0; mov ecx, 6e0h; wrmsr
    arm += b"\x0f\x31" + guest.at("05", 1 << 28) + b"\x83\xd2\x00"
    arm += guest.at("b9", msr.IA32_TSC_DEADLINE) + b"\x0f\x30"
    machine = Machine(kvm, guest.start() + arm + WAIT + b"\xfb\xf4" + END)  # sti; hlt
    machine.handle(VECTOR, guest.store(RESULTS, 1))
    return machine


def test_a_guest_moved_by_the_list_of_msrs_keeps_its_deadline(software: Kvm) -> None:
    """KVM_GET_MSR_INDEX_LIST is what is to be moved; the guest halts until the timer rings."""
    first, second = armed_by_deadline(software), armed_by_deadline(software)
    first.run_first()
    second.memory.write(0, first.memory.read(0, base.SIZE))
    old, new = first.vcpu, second.vcpu
    new.set_sregs(old.get_sregs())
    new.set_regs(old.get_regs())
    new.set_lapic(old.get_lapic())
    words = old.get_msrs(software.get_msr_index_list())
    assert new.set_msrs(words) == len(words)
    new.set_vcpu_events(old.get_vcpu_events())
    assert guest.is_end(second.run_first(timeout=60))
    assert second.word() == 1


def test_an_nmi_message_to_a_stopped_processor_is_among_its_events(kvm: Kvm) -> None:
    """process_nmi(), which KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS begin with."""
    machine = Machine(kvm, guest.start() + WAIT + NOP * 4 + END)
    base.handle(machine, 2, b"\xe6\x02")  # out 2, al
    machine.run_first()
    assert machine.vm.signal_msi(apic.DEFAULT_BASE, apic.Delivery.NMI << 8) == 1
    vcpu = machine.vcpu
    events = vcpu.get_vcpu_events()
    assert events.nmi_pending == 1
    vcpu.set_vcpu_events(events)
    exit = vcpu.run()
    assert isinstance(exit, exits.Io) and exit.port == 2


def test_what_the_vmm_says_of_nmis_replaces_one_that_was_just_sent(kvm: Kvm) -> None:
    machine = Machine(kvm, guest.start() + WAIT + NOP * 4 + END)
    base.handle(machine, 2, b"\xe6\x02")
    machine.run_first()
    events = machine.vcpu.get_vcpu_events()
    assert machine.vm.signal_msi(apic.DEFAULT_BASE, apic.Delivery.NMI << 8) == 1
    machine.vcpu.set_vcpu_events(events)  # with none pending
    assert guest.is_end(machine.run_first(timeout=30))


# -- the timer by itself, with a clock of the test's ----------------------------------------------


class Clock:
    """The host's time and the guest's counter, which run alike; an alarm that never rings."""

    def __init__(self) -> None:
        self.time = 0
        self.expired = 0
        self.timer = Timer(
            cast("Alarm", self), cast("Any", None), cast("TscRate", self), self.now, self._expire
        )
        self.timer.divide = 0xB

    def _expire(self) -> None:
        self.expired += 1

    def now(self) -> int:
        return self.time

    def set(self, sleeper: object, deadline: int) -> None: ...

    def cancel(self, sleeper: object) -> None: ...

    def nanoseconds(self, ticks: int) -> int:
        return ticks


def test_a_periodic_timer_counts_on_while_its_tick_is_overdue() -> None:
    clock = Clock()
    clock.timer.set_mode(TimerMode.PERIODIC)
    clock.timer.start(PERIOD)
    clock.time = 2 * PERIOD + PERIOD // 4
    assert clock.timer.current_count() == PERIOD * 3 // 4
    clock.timer.ring()
    assert (clock.expired, clock.timer.current_count()) == (1, PERIOD * 3 // 4)


def test_a_count_above_the_initial_one_is_a_period() -> None:
    clock = Clock()
    clock.timer.resume(PERIOD, 3 * PERIOD)
    assert clock.timer.current_count() == PERIOD


def test_a_deadline_that_has_passed_is_there_until_the_processor_has_noticed() -> None:
    """The VMM may have read the page just before: kvm_inject_apic_timer_irqs() clears it."""
    clock = Clock()
    timer = clock.timer
    timer.set_mode(TimerMode.TSC_DEADLINE)
    timer.set_deadline(100)
    clock.time = 100
    timer.settle()
    assert timer.tsc_deadline == 100
    timer.ring()
    assert (clock.expired, timer.is_running, timer.tsc_deadline) == (1, False, 100)
    timer.settle()
    assert timer.tsc_deadline == 0
