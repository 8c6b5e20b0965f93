"""The software VM: its memory slots and vCPUs."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from trapline.kvm import abi, quirks
from trapline.kvm.abi import Capability
from trapline.kvm.backend import Platform
from trapline.kvm.capability import VCPU_LIMIT, check_extension
from trapline.kvm.cpuid import applicable
from trapline.kvm.irqchip import Chip
from trapline.kvm.mmu import Slot, Slots
from trapline.kvm.quirks import Quirk
from trapline.kvm.vcpu import SoftwareVcpu

if TYPE_CHECKING:
    from trapline.kvm.api import Vcpu

_PINS_LIMIT = 1024  # MAX_NR_RESERVED_IOAPIC_PINS
_PAUSE = 0.0001  # seconds between two looks whether a vCPU has come out


class SoftwareVm:
    """One VM."""

    def __init__(
        self, platform: Platform, quirks: Quirk = quirks.NONE, force_emulation_prefix: int = 0
    ) -> None:
        self._platform = platform
        self._quirks = applicable(quirks, platform.supported_cpuid())
        self._force_emulation_prefix = force_emulation_prefix
        self._slots = Slots()
        self._vcpus: dict[int, SoftwareVcpu] = {}
        self._chip: Chip | None = None
        self._has_payloads = self._has_triple_faults = False
        self._disabled_quirks = 0

    def check_extension(self, capability: int) -> int:
        return check_extension(capability, self._platform.has_bus_lock_exit)

    def enable_cap(self, capability: int, *args: int) -> None:
        first = args[0] if args else 0
        if capability == Capability.EXCEPTION_PAYLOAD:
            self._has_payloads = bool(first)
            for vcpu in self._vcpus.values():
                vcpu.has_payloads = self._has_payloads
        elif capability == Capability.X86_BUS_LOCK_EXIT:
            both = abi.BUS_LOCK_DETECTION_OFF | abi.BUS_LOCK_DETECTION_EXIT
            if first & ~both or first & both == both:
                raise _invalid()
            if self._platform.has_bus_lock_exit and first & abi.BUS_LOCK_DETECTION_EXIT:
                self._platform.bus_lock_exits = True
        elif capability == Capability.SPLIT_IRQCHIP:
            self._split_irqchip(first)
        elif capability == Capability.X86_TRIPLE_FAULT_EVENT:
            self._has_triple_faults = bool(first)
            for vcpu in self._vcpus.values():
                vcpu.has_triple_faults = self._has_triple_faults
        elif capability == quirks.CAPABILITY:
            self._enable_quirks(first)
        elif capability in (Capability.DISABLE_QUIRKS, Capability.DISABLE_QUIRKS2):
            self._disable_quirks(first, capability == Capability.DISABLE_QUIRKS2)
        else:
            raise _invalid()

    def _enable_quirks(self, wanted: int) -> None:
        """More of upstream's behaviour; there is no way back, as with KVM_CAP_DISABLE_QUIRKS2."""
        if wanted & ~int(quirks.EVERY):
            raise _invalid()
        self._quirks |= applicable(Quirk(wanted), self._platform.supported_cpuid())
        for vcpu in self._vcpus.values():
            vcpu.set_quirks(self._quirks)

    def _disable_quirks(self, unwanted: int, is_checked: bool) -> None:
        """KVM's own quirks, which are on from the start."""
        if is_checked and unwanted & ~abi.QUIRKS:
            raise _invalid()
        self._disabled_quirks |= unwanted & abi.QUIRKS
        for vcpu in self._vcpus.values():
            vcpu.disabled_quirks = self._disabled_quirks

    def _split_irqchip(self, pins: int) -> None:
        """The local APICs are ours; the 8259 and an I/O APIC of so many pins, the VMM's."""
        if pins > _PINS_LIMIT or self._vcpus:
            raise _invalid()
        if self._chip is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._chip = Chip()

    def signal_msi(self, address: int, data: int) -> int:
        if self._chip is None:
            raise _invalid()
        return self._chip.signal(address, data)

    def set_user_memory_region(
        self, slot: int, flags: int, guest_physical: int, size: int, userspace_address: int
    ) -> None:
        if slot < 0:
            raise _invalid()
        old = self._slots.set(Slot(guest_physical, size, userspace_address, flags, slot))
        if old is not None:
            self._wait_for_vcpus()
            self._platform.forget_code(old.host, old.size)

    def _wait_for_vcpus(self) -> None:
        """Nobody goes on with a translation that is gone (kvm_flush_remote_tlbs)."""
        generation = self._slots.generation
        for vcpu in list(self._vcpus.values()):
            while vcpu.in_guest and vcpu.generation != generation:
                vcpu.backend.kick()
                time.sleep(_PAUSE)

    def forget_code(self, userspace_address: int, size: int) -> None:
        self._platform.forget_code(userspace_address, size)

    def set_tss_addr(self, guest_physical: int) -> None:
        """Nothing to do: real mode needs no help from virtual-8086 mode here."""

    def set_identity_map_addr(self, guest_physical: int) -> None:
        """As above."""

    def create_vcpu(self, vcpu_id: int) -> SoftwareVcpu:
        if not 0 <= vcpu_id < VCPU_LIMIT:
            raise _invalid()
        if vcpu_id in self._vcpus:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        vcpu = SoftwareVcpu(vcpu_id, self._platform.create(vcpu_id, self._slots), self._slots)
        vcpu.has_payloads = self._has_payloads
        vcpu.has_triple_faults = self._has_triple_faults
        vcpu.set_quirks(self._quirks)
        vcpu.disabled_quirks = self._disabled_quirks
        vcpu.force_emulation_prefix = self._force_emulation_prefix
        if self._chip is not None:
            vcpu.attach_apic(self._chip)
        self._vcpus[vcpu_id] = vcpu
        return vcpu

    def keep(self, vcpu: Vcpu) -> bool:
        """All of it is this process's own memory."""
        assert isinstance(vcpu, SoftwareVcpu)
        self._slots.lock = threading.Lock()
        self._vcpus = {vcpu.vcpu_id: vcpu}
        vcpu.backend.keep_alone()
        return True

    def abandon(self) -> None:
        """The processors are copies of the parent's; what they have counted is the parent's."""
        self._vcpus.clear()

    def close(self) -> None:
        if self._chip is not None:
            self._chip.close()
        for vcpu in self._vcpus.values():
            vcpu.close()


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
