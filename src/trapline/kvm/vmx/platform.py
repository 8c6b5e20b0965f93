"""The Intel processors of one VM."""

from __future__ import annotations

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
        return True

    def create(self, vcpu_id: int, slots: Slots) -> VmxBackend:
        return VmxBackend(self.new_core(), slots, self, self.bus_lock_exits)
