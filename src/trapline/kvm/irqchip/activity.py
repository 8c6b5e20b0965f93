"""What a vCPU does when it does not run: halted, waiting for INIT or SIPI, woken (vcpu_block()).

The states are KVM's (KVM_GET_MP_STATE); they need an interrupt controller in the hypervisor.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from trapline.arch.msr import APIC_BASE_BSP
from trapline.kvm import exits, registers
from trapline.kvm.abi import MpState

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.irqchip.lapic import LocalApic
    from trapline.kvm.vcpu import SoftwareVcpu

_SLICE = 0.05  # seconds; a signal handler that kicks by `kick_places` cannot ring a bell


class Activity:
    """One vCPU's; all but `wake` is its own thread's."""

    def __init__(self, vcpu: SoftwareVcpu, one: LocalApic) -> None:
        self._vcpu, self._apic = vcpu, one
        self._bell = threading.Event()
        self._is_asleep = False
        is_first = vcpu.apic_base & APIC_BASE_BSP
        self.state = MpState.RUNNABLE if is_first else MpState.UNINITIALIZED

    def wake(self) -> None:
        """There may be something to wake up for, or the thread is to come back."""
        if self._is_asleep:
            self._bell.set()

    def halt(self) -> None:
        self.state = MpState.HALTED
        self._apic.attention = True

    def attend(self) -> Answer:
        """Take what has come in, and sleep if there is nothing to do; None to run the guest."""
        one, vcpu = self._apic, self._vcpu
        one.attention = False
        one.settle_timer()
        self._accept()
        vcpu.events.waiting = True
        if one.level_ends:
            one.attention = True
            return exits.IoapicEoi(one.level_ends.pop(0))
        return None if self.state is MpState.RUNNABLE else self._sleep()

    def _sleep(self) -> Answer:
        one, vcpu = self._apic, self._vcpu
        self._is_asleep = True
        try:
            while True:
                self._bell.clear()
                self._accept()
                if self.state is MpState.HALTED and self._may_wake():
                    self.state = MpState.RUNNABLE
                if self.state is MpState.RUNNABLE:
                    one.settle_timer()
                    return None
                if vcpu.was_kicked():
                    one.attention = True  # it sleeps on in the next run
                    return exits.Interrupted()
                self._bell.wait(_SLICE)
        finally:
            self._is_asleep = False

    def _may_wake(self) -> bool:
        """kvm_vcpu_has_events()."""
        events, backend = self._vcpu.events, self._vcpu.backend
        if events.exception.is_there or events.triple_fault or events.needs_reinjection:
            return True
        if events.nmi_pending and backend.nmi_allowed():
            return True
        return backend.interrupt_allowed() and self._apic.has_interrupt

    # -- INIT and SIPI --------------------------------------------------------------------------

    def _accept(self) -> None:
        """kvm_apic_accept_events(), and the NMIs that others have sent."""
        one, events = self._apic, self._vcpu.events
        events.take_nmis()
        if not (one.init_pending or one.sipi_vector is not None):
            return
        with one.lock:
            has_init, one.init_pending = one.init_pending, False
            start, one.sipi_vector = one.sipi_vector, None
        if has_init:
            registers.init(self._vcpu)
            one.reset()
            is_first = self._vcpu.apic_base & APIC_BASE_BSP
            self.state = MpState.RUNNABLE if is_first else MpState.INIT_RECEIVED
        if start is not None and self.state is MpState.INIT_RECEIVED:
            registers.start_at(self._vcpu, start)
            self.state = MpState.RUNNABLE

    # -- KVM_GET_MP_STATE and KVM_SET_MP_STATE --------------------------------------------------

    def get(self) -> int:
        self._accept()
        return self.state

    def set(self, mp_state: int) -> None:
        try:
            wanted = MpState(mp_state)
        except ValueError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        if wanted is MpState.SIPI_RECEIVED:
            # kvm_arch_vcpu_ioctl_set_mpstate(): the vector is what it was, or zero.
            with self._apic.lock:
                self._apic.sipi_vector = self._apic.sipi_vector or 0
            wanted = MpState.INIT_RECEIVED
        self.state = wanted
        self._apic.attention = True
