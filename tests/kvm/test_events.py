"""Exceptions, interrupts and NMIs that the hypervisor delivers, and what two of them become."""

from __future__ import annotations

import pytest

from tests.kvm.conftest import is_pvm
from tests.kvm.guest import (
    DATA,
    HANDLERS,
    IDT,
    KERNEL_CODE,
    KERNEL_STACK,
    USER_CODE,
    Guest,
    handle,
    long_mode,
)
from trapline.arch.registers import RFLAGS_IF, RFLAGS_RF
from trapline.kvm import Kvm, abi, exits
from trapline.kvm.structures import VcpuEvents

HLT, SPIN = b"\xf4", b"\xeb\xfe"


def raise_in(guest: Guest, vector: int, error_code: int | None = None) -> None:
    """Queue an exception as userspace can: injected."""
    events = guest.vcpu.get_vcpu_events()
    events.exception_injected, events.exception_nr = 1, vector
    events.exception_has_error_code = error_code is not None
    events.exception_error_code = error_code or 0
    guest.vcpu.set_vcpu_events(events)


def frame(guest: Guest, words: int = 6) -> list[int]:
    """What lies at the handler's RSP."""
    rsp = guest.vcpu.regs.rsp
    return [guest.memory.quad(rsp + 8 * i) for i in range(words)]


def test_an_exception_with_its_error_code_reaches_the_handler(kvm: Kvm) -> None:
    guest = long_mode(kvm, SPIN, cpl=3)
    handle(guest, 13, HLT)
    rsp = guest.vcpu.regs.rsp
    raise_in(guest, 13, 0x58)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rsp == KERNEL_STACK - 48
    assert frame(guest)[:3] == [0x58, USER_CODE, 0x2B]
    assert frame(guest)[4:] == [rsp, 0x23]
    guest.close()


def test_an_exception_on_its_way_counts_as_being_delivered(kvm: Kvm) -> None:
    """A guest's fault while the queued one is delivered: contributory on contributory is #DF."""
    guest = long_mode(kvm, SPIN, cpl=3)
    handle(guest, 8, HLT)
    guest.memory.write_quads(IDT + 16 * 13, 0, 0)  # #GP's gate is not present: #NP, then #DF
    raise_in(guest, 13, 0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == HANDLERS + 0x800 + 1
    assert frame(guest)[0] == 0
    guest.close()


def test_fault_class_exceptions_push_rf_and_debug_exceptions_do_not(software: Kvm) -> None:
    """kvm_check_and_inject_events(): RF for pending faults; #DB is of neither class."""
    for vector, rf in ((6, RFLAGS_RF), (1, 0)):
        guest = long_mode(software, SPIN, cpl=3)
        handle(guest, vector, HLT)
        guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
        events = guest.vcpu.get_vcpu_events()
        events.exception_pending, events.exception_nr = 1, vector
        events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
        guest.vcpu.set_vcpu_events(events)
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert frame(guest)[2] & RFLAGS_RF == rf


def test_set_regs_takes_a_pending_exception_back(kvm: Kvm) -> None:
    """KVM_SET_REGS clears what is pending, not what is injected."""
    guest = long_mode(kvm, HLT)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 6
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    guest.vcpu.set_regs(guest.vcpu.get_regs())
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == KERNEL_CODE + 1
    guest.close()


def test_events_that_kvm_refuses_are_refused(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    good = guest.vcpu.get_vcpu_events()
    for change in ({"exception_nr": 32}, {"exception_nr": 2}):
        events = VcpuEvents(**{"exception_injected": 1, "flags": good.flags, **change})
        with pytest.raises(OSError, match="Invalid argument"):
            guest.vcpu.set_vcpu_events(events)
    events = guest.vcpu.get_vcpu_events()
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD  # the capability is not enabled
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_vcpu_events(events)
    guest.close()


def test_events_round_trip(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, 0x4800
    events.interrupt_shadow, events.nmi_masked = abi.SHADOW_INT_MOV_SS, 1
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    seen = guest.vcpu.get_vcpu_events()
    assert (seen.exception_pending, seen.exception_nr) == (1, 1)
    assert (seen.exception_has_payload, seen.exception_payload) == (1, 0x4800)
    assert seen.nmi_masked == 1
    guest.close()


def test_without_the_capability_a_pending_payload_is_delivered_by_looking(software: Kvm) -> None:
    """KVM_GET_VCPU_EVENTS says injected as well as pending, and writes DR6."""
    guest = long_mode(software, HLT)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, 0x800
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 0)
    seen = guest.vcpu.get_vcpu_events()
    assert (seen.exception_injected, seen.exception_pending) == (1, 1)
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF07F0


@pytest.mark.parametrize(
    ("code", "vector", "length"),
    [(b"\xcd\x81", 0x81, 2), (b"\xcc", 3, 1), (b"\x0f\x0b", 6, 0), (b"\xf1", 1, 1)],
)
def test_an_event_whose_delivery_touches_memory_for_the_first_time_is_delivered_once(
    kvm: Kvm, code: bytes, vector: int, length: int
) -> None:
    """The IDT lies on a page nobody has used: an exit in the middle, and the event again."""
    if is_pvm(kvm) and vector not in (3, 6):
        pytest.skip("PVM delivers INT n and INT1 in its own way")
    guest = long_mode(kvm, code + SPIN, cpl=3)
    at = handle(guest, vector, HLT, dpl=3)
    gate = guest.memory.read(IDT + 16 * vector, 16)
    guest.memory.write(0x200000 + 16 * vector, gate)
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base = 0x200000
    guest.vcpu.set_sregs(sregs)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == at + 1
    assert frame(guest)[0] == USER_CODE + length
    assert guest.vcpu.regs.rsp == KERNEL_STACK - 40
    guest.close()


# -- kvm_multiple_exception ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (13, 11, 8),  # contributory twice
        (14, 13, 8),  # page fault, then contributory
        (14, 14, 8),
        (13, 14, 14),  # the page fault replaces it
        (1, 13, 13),  # #DB is benign: anything replaces it
        (13, 1, 1),
        (6, 13, 13),
        (8, 13, None),  # triple fault
        (8, 1, None),
    ],
)
def test_a_second_exception_on_the_first(
    software: Kvm, first: int, second: int, expected: int | None
) -> None:
    guest = long_mode(software, HLT)
    events = guest.vcpu.events  # type: ignore[attr-defined]
    events.queue(first, 0 if first != 1 else None)
    events.queue(second, 0 if second != 1 else None)
    if expected is None:
        assert isinstance(guest.vcpu.run(), exits.Shutdown)
        return
    handler = handle(guest, expected, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1


# -- interrupts and NMIs ------------------------------------------------------------------------


def test_two_nmis_are_kept_and_a_third_is_lost(software: Kvm) -> None:
    """process_nmi(): one to deliver and one behind it."""
    guest = long_mode(software, b"\x90" * 4 + HLT)
    handle(guest, 2, b"\xff\x04\x25\x00\x00\x05\x00" + b"\x48\xcf")  # inc dword [DATA]; iretq
    for _ in range(3):
        guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(DATA) & 0xFFFFFFFF == 2


def test_an_nmi_reaches_its_handler_and_the_iret_lifts_the_block(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x90" * 4 + HLT)
    handle(guest, 2, b"\xe6\x10" + b"\x48\xcf")  # out; iretq
    guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert guest.vcpu.get_vcpu_events().nmi_masked
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == KERNEL_CODE + 5
    assert not guest.vcpu.get_vcpu_events().nmi_masked
    guest.close()


def test_an_nmi_waits_while_one_is_being_handled(software: Kvm) -> None:
    """The NMI window: the second arrives at the first one's IRET, not before."""
    guest = long_mode(software, SPIN)
    body = b"\x48\xff\xc3" + b"\x48\x83\xfb\x02" + b"\x74\x02" + b"\x48\xcf" + HLT
    handle(guest, 2, body)  # inc rbx; cmp rbx, 2; je hlt; iretq; hlt
    guest.vcpu.nmi()
    guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 2
    assert frame(guest)[0] == KERNEL_CODE


def test_a_pending_exception_goes_before_an_nmi(software: Kvm) -> None:
    guest = long_mode(software, SPIN)
    at = handle(guest, 6, b"\x90" + HLT)
    handle(guest, 2, HLT)
    raise_in(guest, 6)
    guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert frame(guest)[0] == at  # the NMI interrupted the handler's first instruction


def test_blocking_interrupts_for_a_debugger_holds_nmis_back(software: Kvm) -> None:
    guest = long_mode(software, HLT)
    handle(guest, 2, b"\x0f\x0b")
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_BLOCKIRQ)
    guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Hlt)


def test_an_interrupt_without_if_fails_the_entry(software: Kvm) -> None:
    """KVM_INTERRUPT is for when the guest is ready; Intel's entry checks say the rest."""
    guest = long_mode(software, HLT)
    guest.vcpu.interrupt(0x40)
    assert guest.vcpu.run() == exits.FailEntry(0x80000021)


def test_only_one_interrupt_can_wait(software: Kvm) -> None:
    guest = long_mode(software, HLT)
    guest.vcpu.interrupt(0x40)
    with pytest.raises(OSError, match="exists"):
        guest.vcpu.interrupt(0x41)
    assert guest.vcpu.get_sregs().interrupt_bitmap == [0, 1, 0, 0]


def test_readiness_follows_if_and_the_shadow(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xfb" + b"\xe6\x10" + b"\xe6\x10" + HLT)  # sti; out; out; hlt
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert guest.vcpu.if_flag
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert guest.vcpu.ready_for_interrupt_injection
    assert guest.vcpu.regs.rflags & RFLAGS_IF
    guest.close()
