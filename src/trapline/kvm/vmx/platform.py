"""The Intel processors of one VM."""

from __future__ import annotations

from trapline.arch.cpuid import BUS_LOCK_DETECT
from trapline.kvm.mmu import Slots
from trapline.kvm.silicon import Silicon, Watcher
from trapline.kvm.vmx.backend import VmxBackend
from trapline.kvm.vmx.ept import EPT
from trapline.processor import Model


class VmxPlatform(Silicon):
    """How one is made."""

    def __init__(self, model: Model, *, engine: str = "jit", observer: Watcher = None) -> None:
        super().__init__(model, EPT, engine, observer)

    @property
    def has_bus_lock_exit(self) -> bool:
        """Bit 30 of the secondary controls (setup_vmcs_config)."""
        return self.model.has(BUS_LOCK_DETECT)

    def create(self, vcpu_id: int, slots: Slots) -> VmxBackend:
        return VmxBackend(self.new_core(), slots, self, self.bus_lock_exits)
