"""One vCPU's local APIC: what is requested, in service and pending, and in which order it counts.

KVM's lapic.c.  Other vCPUs, the VMM and the timer's thread all send; `lock` guards what they
change, and nobody holds two of them.  Registers as the guest sees them are in `register_file`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from trapline.arch import apic, msr
from trapline.arch.apic import Delivery
from trapline.kvm.irqchip.message import Message
from trapline.kvm.irqchip.timer import Timer

if TYPE_CHECKING:
    from trapline.kvm.irqchip.chip import Chip
    from trapline.kvm.vcpu import SoftwareVcpu

_MASK_32 = 0xFFFFFFFF


class LocalApic:
    """IRR, ISR and TMR are integers of 256 bits."""

    def __init__(self, vcpu: SoftwareVcpu, chip: Chip) -> None:
        self.chip = chip
        self._vcpu = vcpu
        self.lock = threading.RLock()
        self.attention = True
        """The vCPU is to look here before it enters the guest."""
        self.nmis = 0
        """NMIs that were sent and the vCPU has not noticed yet."""
        self.init_pending = False
        self.sipi_vector: int | None = None
        self.level_ends: list[int] = []
        """Level-triggered vectors of which the I/O APIC, the VMM's, must hear the end."""
        self.external: int | None = None
        """What the VMM's 8259 has given (KVM_INTERRUPT), for LINT0 to let through."""
        self.arbitration = 0
        """Who got a lowest-priority message last has the highest number."""
        self.has_tsc_deadline = False
        backend = vcpu.backend
        chip.rate.begin(backend.get_tsc)
        self.timer = Timer(chip.alarm, self, chip.rate, backend.get_tsc, self._timer_expired)
        self.id = vcpu.vcpu_id
        self.reset()

    def reset(self) -> None:
        """RESET and INIT (kvm_lapic_reset): what only RESET changes is in IA32_APIC_BASE."""
        with self.lock:
            self.irr = self.isr = self.tmr = 0
            self.tpr = 0
            self.svr = apic.SVR_RESET
            self.dfr = _MASK_32
            self.esr = self._errors = 0
            self.icr = 0  # the destination in the upper half
            self.lvt = dict.fromkeys(apic.LVTS, apic.LVT_MASKED)
            if self._vcpu.apic_base & msr.APIC_BASE_BSP:
                # KVM_X86_QUIRK_LINT0_REENABLED: firmware sets the 8259's way in up, so that
                # guests without firmware find it.
                self.lvt[apic.LVT_LINT0] = Delivery.EXTINT << apic.LVT_MODE_SHIFT
            self.timer.reset()
            self.external = None
            self.level_ends.clear()
            self.ldr = apic.logical_x2apic_id(self.id) if self.is_x2apic else 0
            self._vcpu.state.cr8 = 0

    # -- modes ----------------------------------------------------------------------------------

    @property
    def is_enabled(self) -> bool:
        """By IA32_APIC_BASE; without it nothing arrives."""
        return bool(self._vcpu.apic_base & msr.APIC_BASE_ENABLE)

    @property
    def is_x2apic(self) -> bool:
        both = msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC
        return self._vcpu.apic_base & both == both

    @property
    def is_software_enabled(self) -> bool:
        return bool(self.svr & apic.SVR_ENABLED)

    def base_changed(self, old: int) -> None:
        """IA32_APIC_BASE was written (kvm_lapic_set_base)."""
        new = self._vcpu.apic_base
        with self.lock:
            if not new & msr.APIC_BASE_ENABLE:
                self.timer.reset()
            elif not old & msr.APIC_BASE_ENABLE:
                self.id = self._vcpu.vcpu_id
            if self.is_x2apic and not old & msr.APIC_BASE_X2APIC:
                self.id = self._vcpu.vcpu_id
                self.ldr = apic.logical_x2apic_id(self.id)
        self.ask()

    # -- priorities -----------------------------------------------------------------------------

    @property
    def ppr(self) -> int:
        """The processor's priority: what runs, or what the task priority asks for."""
        in_service = self.isr.bit_length() - 1
        return self.tpr if self.tpr >> 4 >= in_service >> 4 else in_service & 0xF0

    def highest(self) -> int:
        """The vector that the processor would be given now; -1 for none."""
        vector = self.irr.bit_length() - 1
        if vector < 0 or not self.is_enabled or vector >> 4 <= self.ppr >> 4:
            return -1
        return vector

    def write_tpr(self, tpr: int) -> None:
        self.tpr = tpr
        self._vcpu.state.cr8 = tpr >> 4
        self.ask()

    def ask(self) -> None:
        """On the vCPU's own thread: something may be deliverable now."""
        self.attention = True

    # -- to the processor -----------------------------------------------------------------------

    @property
    def accepts_external(self) -> bool:
        """Whether LINT0 leads to the 8259 (kvm_apic_accept_pic_intr)."""
        if not self.is_enabled:
            return True
        lint0 = self.lvt[apic.LVT_LINT0]
        wired = lint0 & apic.LVT_MODE == Delivery.EXTINT << apic.LVT_MODE_SHIFT
        return wired and not lint0 & apic.LVT_MASKED

    @property
    def has_interrupt(self) -> bool:
        return (self.external is not None and self.accepts_external) or self.highest() >= 0

    def take_interrupt(self) -> int:
        """The interrupt-acknowledge cycle; only while `has_interrupt`."""
        if self.external is not None and self.accepts_external:
            vector, self.external = self.external, None
            return vector
        with self.lock:
            vector = self.highest()
            self.irr &= ~(1 << vector)
            self.isr |= 1 << vector
        return vector

    def end_of_interrupt(self) -> None:
        """EOI; for a level-triggered interrupt, the I/O APIC hears of it."""
        with self.lock:
            if not self.isr:
                return
            vector = self.isr.bit_length() - 1
            self.isr &= ~(1 << vector)
            if self.tmr >> vector & 1:
                self.level_ends.append(vector)
            self.ask()

    # -- messages -------------------------------------------------------------------------------

    def accept(self, message: Message) -> bool:
        """A message for this APIC, on whatever thread (__apic_accept_irq)."""
        with self.lock:
            if not self.is_enabled or not self._keep(message):
                return False
            self.attention = True
        self._vcpu.poke()
        return True

    def _keep(self, message: Message) -> bool:
        is_end = message.is_level and not message.is_asserted
        match message.mode:
            case Delivery.FIXED | Delivery.LOWEST_PRIORITY:
                if is_end or not self.is_software_enabled:
                    return False
                return self._request(message.vector, message.is_level)
            case Delivery.NMI:
                self.nmis += 1
            case Delivery.INIT:
                if is_end:
                    return False
                self.init_pending, self.sipi_vector = True, None
            case Delivery.STARTUP:
                self.sipi_vector = message.vector
            case _:
                return False
        return True

    def _request(self, vector: int, is_level: bool) -> bool:
        if vector < apic.FIRST_VECTOR:
            self.note_error(apic.ESR_RECEIVE_ILLEGAL_VECTOR)
            return False
        bit = 1 << vector
        self.tmr = self.tmr | bit if is_level else self.tmr & ~bit
        self.irr |= bit
        return True

    def deliver_local(self, entry: int) -> None:
        """An interrupt of its own, as the local vector table has it."""
        word = self.lvt[entry]
        if not word & apic.LVT_MASKED:
            mode = (word & apic.LVT_MODE) >> apic.LVT_MODE_SHIFT
            self.accept(Message(self.id, word & apic.LVT_VECTOR, mode))

    def note_error(self, error: int) -> None:
        """For the error status register, and the interrupt that goes with it."""
        with self.lock:
            is_new = not self._errors & error
            self._errors |= error
            if is_new:
                self.deliver_local(apic.LVT_ERROR)

    def latch_errors(self) -> None:
        """A write to the error status register: it shows what has gathered since the last."""
        with self.lock:
            self.esr, self._errors = self._errors, 0

    # -- the timer ------------------------------------------------------------------------------

    def ring(self) -> None:
        with self.lock:
            self.timer.ring()

    def settle_timer(self) -> None:
        with self.lock:
            self.timer.settle()

    def _timer_expired(self) -> None:
        self.deliver_local(apic.LVT_TIMER)
