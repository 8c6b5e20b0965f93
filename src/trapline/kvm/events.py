"""Exceptions, interrupts and NMIs that wait for the guest, and the order they reach it in.

KVM's kvm_multiple_exception() and kvm_check_and_inject_events(); how an event gets into the
processor is the backend's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.arch.exception import Combination, Kind, Vector, combine, kind_of
from trapline.arch.registers import RFLAGS_RF
from trapline.kvm import abi

if TYPE_CHECKING:
    from trapline.kvm.backend import Backend
    from trapline.kvm.debug_regs import DebugRegisters
    from trapline.kvm.irqchip import LocalApic

_DB, _DF, _PF = int(Vector.DB), int(Vector.DF), int(Vector.PF)


@dataclass(slots=True)
class ExceptionQueue:
    """kvm_queued_exception: at most one, pending (not yet with the processor) or injected."""

    pending: bool = False
    injected: bool = False
    vector: int = 0
    has_error_code: bool = False
    error_code: int = 0
    has_payload: bool = False
    payload: int = 0

    @property
    def is_there(self) -> bool:
        return self.pending or self.injected


class Events:
    """One vCPU's queues.  `waiting` says that `inject` has something to do."""

    def __init__(self, backend: Backend, debug: DebugRegisters) -> None:
        self._backend = backend
        self._state = backend.state
        self._debug = debug
        self.waiting = False
        self.exception = ExceptionQueue()
        self.interrupt_injected = False
        self.interrupt_vector = 0
        self.interrupt_soft = False
        self.nmi_pending = 0
        self.nmi_injected = False
        self.triple_fault = False
        self.apic: LocalApic | None = None
        """Where interrupts come from, if it is in the hypervisor."""

    # -- queueing -------------------------------------------------------------------------------

    def queue(self, vector: int, error_code: int | None = None, payload: int | None = None) -> None:
        """The guest takes this exception next (kvm_queue_exception and its relatives)."""
        queue = self.exception
        self.waiting = True
        if queue.pending or queue.injected:
            outcome = Combination.SHUTDOWN if queue.vector == _DF else combine(queue.vector, vector)
            if outcome is Combination.SHUTDOWN:
                self.triple_fault = True
                return
            if outcome is Combination.DOUBLE_FAULT:
                vector, error_code, payload = _DF, 0, None
        queue.pending, queue.injected = True, False
        queue.vector = vector
        queue.has_error_code = error_code is not None
        queue.error_code = error_code or 0
        queue.has_payload = payload is not None
        queue.payload = payload or 0
        # Not in guest mode, so nobody can still intercept it (kvm_multiple_exception).
        self.deliver_payload()

    def deliver_payload(self) -> None:
        """Write DR6 or CR2, if the queued exception brings something for them."""
        queue = self.exception
        if not queue.has_payload:
            return
        if queue.vector == _DB:
            self._debug.deliver(queue.payload)
        elif queue.vector == _PF:
            self._state.cr2 = queue.payload
        queue.has_payload, queue.payload = False, 0

    def requeue(self, vector: int, error_code: int | None) -> None:
        """An exit came while this exception was being delivered: again, as it was."""
        queue = self.exception
        queue.pending, queue.injected = False, True
        queue.vector = vector
        queue.has_error_code, queue.error_code = error_code is not None, error_code or 0
        queue.has_payload, queue.payload = False, 0
        self.waiting = True

    def queue_interrupt(self, vector: int, is_soft: bool = False) -> None:
        self.interrupt_injected, self.interrupt_vector = True, vector
        self.interrupt_soft = is_soft
        self.waiting = True

    def queue_nmi(self) -> None:
        """process_nmi(): one being handled and one that waits, or two that wait."""
        is_busy = self.nmi_injected or self._backend.get_nmi_mask()
        self.nmi_pending = min(self.nmi_pending + 1, 1 if is_busy else 2)
        self.waiting = True

    def take_nmis(self) -> None:
        """process_nmi(), of those that the local APIC was sent."""
        apic = self.apic
        if apic is None or not apic.nmis:
            return
        with apic.lock:
            nmis, apic.nmis = apic.nmis, 0
        for _ in range(min(nmis, 2)):
            self.queue_nmi()

    def delivered(self) -> None:
        """The processor took what was injected."""
        self.exception.pending = self.exception.injected = False
        self.interrupt_injected = self.nmi_injected = False

    def clear(self) -> None:
        """INIT: nothing waits any more."""
        self.delivered()
        self.nmi_pending = 0
        self.triple_fault = False

    @property
    def needs_reinjection(self) -> bool:
        return self.exception.injected or self.interrupt_injected or self.nmi_injected

    # -- injecting ------------------------------------------------------------------------------

    def inject(self, guest_debug: int) -> None:
        """Hand the processor what it is to deliver at the next entry."""
        queue, backend = self.exception, self._backend
        self.waiting = can_inject = False
        if queue.injected:
            backend.inject_exception(queue)
        elif queue.pending:
            self._inject_pending()
        elif self.nmi_injected:
            backend.inject_nmi()
        elif self.interrupt_injected:
            backend.inject_interrupt(self.interrupt_vector, self.interrupt_soft)
        else:
            can_inject = True
        is_blocked = guest_debug & abi.GUESTDBG_BLOCKIRQ
        if self.nmi_pending and not is_blocked:
            self._inject_nmi(can_inject)
            can_inject = can_inject and not self.nmi_injected
        if self.apic is not None and self.apic.has_interrupt:
            if is_blocked:
                self.waiting = True
            else:
                self._inject_interrupt(self.apic, can_inject)

    def _inject_pending(self) -> None:
        queue, backend = self.exception, self._backend
        if queue.vector == _DB:
            self.deliver_payload()
            self._debug.clear_general_detect()
        elif kind_of(queue.vector) is Kind.FAULT:
            # Fault-class exceptions, #DB not being one of them, push RF as 1.
            backend.set_rflags(backend.get_rflags() | RFLAGS_RF)
        backend.inject_exception(queue)
        queue.pending, queue.injected = False, True

    def _inject_interrupt(self, apic: LocalApic, can_inject: bool) -> None:
        backend = self._backend
        if can_inject and backend.interrupt_allowed():
            self.interrupt_vector, self.interrupt_soft = apic.take_interrupt(), False
            self.interrupt_injected = True
            backend.inject_interrupt(self.interrupt_vector, False)
        if apic.has_interrupt:
            backend.open_interrupt_window(True)

    def _inject_nmi(self, can_inject: bool) -> None:
        backend = self._backend
        if can_inject and backend.nmi_allowed():
            self.nmi_pending -= 1
            self.nmi_injected = True
            backend.inject_nmi()
        if self.nmi_pending:
            self.waiting = True
            backend.open_nmi_window(True)
