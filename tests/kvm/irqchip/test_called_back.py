"""A vCPU that is called back when its event is with the processor already, but not the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from tests.kvm import guest as base
from tests.kvm.irqchip.guest import Machine
from trapline.kvm import Kvm, Vcpu, exits
from trapline.kvm.vcpu import SoftwareVcpu

NEXT = 0x55


def queue_exception(vcpu: Vcpu) -> None:
    events = vcpu.get_vcpu_events()
    events.exception_injected, events.exception_nr = 1, 6
    vcpu.set_vcpu_events(events)


EVENTS: list[tuple[int, Callable[[Vcpu], None]]] = [
    (0x66, lambda vcpu: vcpu.interrupt(0x66)),
    (2, lambda vcpu: vcpu.nmi()),
    (6, queue_exception),
]


def called_back(kvm: Kvm, vector: int, queue: Callable[[Vcpu], None]) -> Machine:
    """A message and a kick come between the injection and the entry."""
    machine = Machine(kvm, bytes([0xE6, NEXT]))  # out 55h, al
    base.handle(machine, vector, bytes([0xE6, vector]))
    vcpu = cast("SoftwareVcpu", machine.vcpu)
    vcpu.regs.rflags = 0x202
    queue(vcpu)
    inject = vcpu.events.inject

    def inject_and_call(guest_debug: int) -> None:
        inject(guest_debug)
        assert vcpu.apic is not None
        vcpu.apic.ask()
        vcpu.kick()

    vcpu.events.inject = inject_and_call  # type: ignore[method-assign]
    assert vcpu.run() == exits.Interrupted()
    del vcpu.events.inject
    return machine


def port_of(exit: exits.Exit) -> int:
    assert isinstance(exit, exits.Io)
    return exit.port


@pytest.mark.parametrize(("vector", "queue"), EVENTS)
def test_an_event_that_is_taken_back_is_not_delivered(
    any_software: Kvm, vector: int, queue: Callable[[Vcpu], None]
) -> None:
    """vmx_cancel_injection() and svm_cancel_injection(): KVM_SET_VCPU_EVENTS has the last word."""
    machine = called_back(any_software, vector, queue)
    vcpu = machine.vcpu
    events = vcpu.get_vcpu_events()
    injected = (events.interrupt_injected, events.nmi_injected, events.exception_injected)
    assert sum(injected) == 1
    events.interrupt_injected = events.nmi_injected = events.exception_injected = 0
    vcpu.set_vcpu_events(events)
    assert port_of(vcpu.run()) == NEXT


@pytest.mark.parametrize(("vector", "queue"), EVENTS)
def test_an_event_that_stays_is_delivered_once(
    any_software: Kvm, vector: int, queue: Callable[[Vcpu], None]
) -> None:
    machine = called_back(any_software, vector, queue)
    vcpu = machine.vcpu
    vcpu.set_vcpu_events(vcpu.get_vcpu_events())
    assert port_of(vcpu.run()) == vector
    events = vcpu.get_vcpu_events()
    assert not (events.interrupt_injected or events.nmi_injected or events.exception_injected)
