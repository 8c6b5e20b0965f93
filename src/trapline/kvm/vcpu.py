"""The software vCPU: the loop (inject, enter, handle), and KVM's vCPU ioctls.

Which processor is below is the backend's business; what an exit means, its handlers'.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from trapline.arch import cpuid as cpuid_features
from trapline.arch.cpuid import CpuidEntry
from trapline.arch.msr import APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_RESET
from trapline.arch.registers import RFLAGS_IF
from trapline.kvm import abi, exits, guest_debug, quirks, registers, vcpu_events
from trapline.kvm.abi import MpState
from trapline.kvm.control import ControlRegisters
from trapline.kvm.cpuid import GuestCpuid
from trapline.kvm.debug_regs import DebugRegisters
from trapline.kvm.events import Events
from trapline.kvm.exits import Exit
from trapline.kvm.io_bus import IoBus
from trapline.kvm.irqchip import EVERYWHERE, Activity, Chip, LocalApic, Page, lapic_state
from trapline.kvm.msr import Msrs
from trapline.kvm.quirks import Quirk
from trapline.kvm.structures import DebugRegs, Fpu, Regs, Sregs, Translation, VcpuEvents
from trapline.kvm.translate import translate

if TYPE_CHECKING:
    from trapline.kvm.api import RegisterView
    from trapline.kvm.backend import Answer, Backend
    from trapline.kvm.mmu import Slots


class SoftwareVcpu:
    """One vCPU."""

    def __init__(self, vcpu_id: int, backend: Backend, slots: Slots) -> None:
        self.vcpu_id = vcpu_id
        self.backend = backend
        self.state = backend.state
        self.slots = slots
        self.has_triple_faults = False
        """KVM_CAP_X86_TRIPLE_FAULT_EVENT: one that waits is part of the events."""
        self.has_payloads = False
        """KVM_CAP_EXCEPTION_PAYLOAD: userspace sees pending exceptions and their payloads."""
        self.quirks = quirks.NONE
        self.disabled_quirks = 0
        """abi.QUIRK_*: those of KVM's own that userspace does without."""
        self.force_emulation_prefix = 0
        """KVM's module parameter of that name: not 0 is on, bit 1 has it clear RFLAGS.RF."""
        self.guest_debug = 0
        self.singlestep_rip = 0
        self.request_interrupt_window = False
        self.flags = 0
        self.apic_base = APIC_BASE_RESET | APIC_BASE_ENABLE | (0 if vcpu_id else APIC_BASE_BSP)
        self.complete: Callable[[], Answer] | None = None
        """What the last exit left to be done once userspace has answered it."""
        self.mmio_bus = IoBus()
        """Devices inside the hypervisor, as this vCPU sees them; the rest are the VMM's."""
        self.in_guest = self._has_run = False
        self._generation = slots.generation
        self._kicked = ctypes.c_uint8()
        self.apic: LocalApic | None = None
        self._activity: Activity | None = None
        self.cpuid = GuestCpuid()
        self.control = ControlRegisters(self)
        self.debug = DebugRegisters(backend)
        self.events = Events(backend, self.debug)
        self.msrs = Msrs(self)
        self._view: RegisterView = cast("RegisterView", self.state)
        self.control.follow_cpuid()
        guest_debug.follow_debug_registers(self)
        registers.reset(self)
        backend.update_exception_bitmap(0)

    def attach_apic(self, chip: Chip) -> None:
        """Before the vCPU first runs: its interrupts come from a local APIC of the hypervisor."""
        self.apic = self.events.apic = chip.add(self)
        self._activity = Activity(self, self.apic)
        self.mmio_bus.register(0, EVERYWHERE, Page(self.apic))

    def set_quirks(self, quirks: Quirk) -> None:
        """Behave as upstream in these (those that concern this processor)."""
        self.quirks = self.debug.quirks = quirks
        guest_debug.follow_debug_registers(self)

    # -- running --------------------------------------------------------------------------------

    def run(self) -> Exit:
        self.flags = 0
        answer: Answer
        if self.complete is not None:
            complete, self.complete = self.complete, None
            answer = complete()
            if answer is not None:
                return answer
        events, enter, apic = self.events, self.backend.enter, self.apic
        while True:
            if self._kicked.value:
                self._kicked.value = 0
                return exits.Interrupted()
            if apic is not None and apic.attention:
                assert self._activity is not None
                answer = self._activity.attend()
                if answer is not None:
                    return answer
            if events.triple_fault:
                events.triple_fault = False
                return exits.Shutdown()
            if events.waiting:
                events.inject(self.guest_debug)
            if self.request_interrupt_window and (apic is None or apic.accepts_external):
                if self.ready_for_interrupt_injection:
                    return exits.IrqWindowOpen()
                self.backend.open_interrupt_window(True)
            self.in_guest = self._has_run = True
            if apic is not None and apic.attention:  # sent between the look above and here
                self.in_guest = False
                continue
            if self._generation != self.slots.generation:
                self._generation = self.slots.generation
                self.backend.reload_memory()
            try:
                answer = enter(self)
            finally:
                self.in_guest = False
            if answer is not None:
                return answer

    def kick(self) -> None:
        self._kicked.value = 1
        self.backend.kick()
        if self._activity is not None:
            self._activity.wake()

    def poke(self) -> None:
        """There is something for the APIC; from any thread."""
        if self.in_guest:
            self.backend.kick()
        elif self._activity is not None:
            self._activity.wake()

    def was_kicked(self) -> bool:
        """Whether `run` is to return; asked once."""
        was_kicked, self._kicked.value = bool(self._kicked.value), 0
        return was_kicked

    def halt(self) -> Answer:
        """HLT: without an interrupt controller to wait with, the VMM waits."""
        if self._activity is None:
            return exits.Hlt()
        self._activity.halt()
        return None

    @property
    def kick_places(self) -> tuple[int, ...]:
        return ctypes.addressof(self._kicked), *self.backend.kick_places

    def set_signal_mask(self, mask: int) -> None:
        """Signals reach the thread while it runs the guest as they do outside of it."""

    @property
    def generation(self) -> int:
        """The memory map this vCPU has taken notice of."""
        return self._generation

    @property
    def regs(self) -> RegisterView:
        return self._view

    @property
    def ready_for_interrupt_injection(self) -> bool:
        events, apic = self.events, self.apic
        if apic is not None and (apic.external is not None or not apic.accepts_external):
            return False
        if events.exception.pending or events.needs_reinjection:
            return False
        return self.backend.interrupt_allowed()

    @property
    def if_flag(self) -> bool:
        return bool(self.backend.get_rflags() & RFLAGS_IF)

    # -- registers ------------------------------------------------------------------------------

    @property
    def fs_base(self) -> int:
        return int(self.state.fs_base)

    @fs_base.setter
    def fs_base(self, base: int) -> None:
        self.state.fs_base = base

    @property
    def gs_base(self) -> int:
        return int(self.state.gs_base)

    @gs_base.setter
    def gs_base(self, base: int) -> None:
        self.state.gs_base = base

    def get_regs(self) -> Regs:
        return registers.get_regs(self)

    def set_regs(self, regs: Regs) -> None:
        registers.set_regs(self, regs)

    def get_sregs(self) -> Sregs:
        return registers.get_sregs(self)

    def set_sregs(self, sregs: Sregs) -> None:
        registers.set_sregs(self, sregs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for index in indices:
            word = self.msrs.get(index, by_host=True)
            if word is None:
                break
            found[index] = word
        return found

    def set_msrs(self, msrs: Mapping[int, int]) -> int:
        for done, (index, word) in enumerate(msrs.items()):
            if not self.msrs.set(index, word, by_host=True):
                return done
        return len(msrs)

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """Once the vCPU has run only what is there already (kvm_set_cpuid)."""
        wanted = list(entries)
        if self._has_run:
            if wanted != self.cpuid.entries:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return
        self.cpuid.set(wanted)
        self.cpuid.follow(self.backend.get_cr4(), self.state.xcr0)
        has = self.cpuid.has
        self.debug.follow_cpuid(has(cpuid_features.BUS_LOCK_DETECT), has(cpuid_features.RTM))
        guest_debug.follow_debug_registers(self)
        self.control.follow_cpuid()
        if self.apic is not None:
            self.apic.has_tsc_deadline = has(cpuid_features.TSC_DEADLINE)
        self.backend.cpuid_changed(self)

    def get_cpuid2(self) -> list[CpuidEntry]:
        return list(self.cpuid.entries)

    def get_fpu(self) -> Fpu:
        return registers.get_fpu(self)

    def set_fpu(self, fpu: Fpu) -> None:
        registers.set_fpu(self, fpu)

    def get_xsave(self) -> bytes:
        return registers.get_xsave(self)

    def set_xsave(self, area: bytes) -> None:
        registers.set_xsave(self, area)

    def get_xcrs(self) -> dict[int, int]:
        return {0: int(self.state.xcr0)}

    def set_xcrs(self, xcrs: Mapping[int, int]) -> None:
        if 0 in xcrs and not self.control.write_xcr0(xcrs[0]):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    # -- debugging and events -------------------------------------------------------------------

    def get_debugregs(self) -> DebugRegs:
        return DebugRegs(list(self.debug.db), int(self.state.dr6), self.debug.get_dr7())

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        """Values as they are given: no bit is forced."""
        if debugregs.flags or debugregs.dr6 >> 32 or debugregs.dr7 >> 32:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.debug.set_all(debugregs.db, debugregs.dr7)
        self.state.dr6 = debugregs.dr6

    def set_guest_debug(self, control: int, debugreg: Mapping[int, int] | None = None) -> None:
        guest_debug.set_guest_debug(self, control, debugreg or {})
        view: object = self.state
        if self.guest_debug & abi.GUESTDBG_SINGLESTEP:
            view = guest_debug.SteppedView(self)
        self._view = cast("RegisterView", view)

    def get_vcpu_events(self) -> VcpuEvents:
        return vcpu_events.get(self)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        vcpu_events.set(self, events)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT without an interrupt controller: delivered at the next entry, so only
        while `ready_for_interrupt_injection`.  With one, LINT0 lets it through."""
        if not 0 <= vector <= 255:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.apic is not None:
            if self.apic.external is not None:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.apic.external = vector
            self.apic.ask()
            return
        if self.events.interrupt_injected:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.events.queue_interrupt(vector)

    def nmi(self) -> None:
        self.events.queue_nmi()

    # -- the rest -------------------------------------------------------------------------------

    def get_mp_state(self) -> int:
        return MpState.RUNNABLE if self._activity is None else self._activity.get()

    def set_mp_state(self, mp_state: int) -> None:
        """The other states need an interrupt controller in the hypervisor."""
        if self._activity is not None:
            self._activity.set(mp_state)
        elif mp_state != MpState.RUNNABLE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def get_lapic(self) -> bytes:
        return lapic_state.get(self._the_apic())

    def set_lapic(self, area: bytes) -> None:
        lapic_state.set(self._the_apic(), area)

    def _the_apic(self) -> LocalApic:
        if self.apic is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.apic

    def translate(self, linear: int) -> Translation:
        return translate(self, linear)

    def report_counts(self) -> None:
        self.backend.report_counts()

    def close(self) -> None:
        self.backend.close()
