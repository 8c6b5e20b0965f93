"""The AMD processors of one VM."""

from __future__ import annotations

from trapline.arch import msr
from trapline.arch.cpuid import BUS_LOCK_THRESHOLD
from trapline.arch.paging import MemoryType
from trapline.kvm.mmu import Slots
from trapline.kvm.silicon import Silicon, Watcher
from trapline.kvm.svm.backend import SvmBackend
from trapline.kvm.svm.npt import NPT
from trapline.processor import Model


class SvmPlatform(Silicon):
    """How one is made."""

    def __init__(self, model: Model, *, engine: str = "jit", observer: Watcher = None) -> None:
        super().__init__(model, NPT, engine, observer)

    @property
    def has_bus_lock_exit(self) -> bool:
        return self.model.has(BUS_LOCK_THRESHOLD)

    def create(self, vcpu_id: int, slots: Slots) -> SvmBackend:
        core = self.new_core()
        # What the host's firmware leaves: nested paging does not replace the MTRRs.
        core.msrs.write(msr.IA32_MTRR_DEF_TYPE, msr.MTRR_DEF_TYPE_ENABLE | MemoryType.WB)
        return SvmBackend(core, slots, self, self.bus_lock_exits)
