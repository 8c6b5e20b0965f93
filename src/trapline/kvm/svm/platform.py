"""The AMD processors of one VM: what they share, and how one is made."""

from __future__ import annotations

from trapline.arch import msr
from trapline.arch.cpuid import BUS_LOCK_THRESHOLD, CpuidEntry
from trapline.arch.paging import MemoryType
from trapline.kvm.mmu import Slots
from trapline.kvm.svm.backend import SvmBackend
from trapline.kvm.svm.npt import Npt
from trapline.processor import Cluster, Core, Model, Observer


class SvmPlatform:
    """`observer` sees the bus locks of every processor; `engine` is "jit" or "interp"."""

    def __init__(
        self, model: Model, *, engine: str = "jit", observer: Observer | None = None
    ) -> None:
        self._model = model
        self._engine = engine
        self._observer = observer
        self._cluster: Cluster | None = None
        self._npt: tuple[int, Npt] | None = None
        self.bus_lock_exits = False

    @property
    def has_bus_lock_exit(self) -> bool:
        return self._model.has(BUS_LOCK_THRESHOLD)

    def supported_cpuid(self) -> list[CpuidEntry]:
        return self._model.entries()

    def create(self, vcpu_id: int, slots: Slots) -> SvmBackend:
        if self._cluster is None:
            self._cluster = Cluster()
        core = Core(self._model, engine=self._engine, cluster=self._cluster)
        core.observer = self._observer
        # What the host's firmware leaves: nested paging does not replace the MTRRs.
        core.msrs.write(msr.IA32_MTRR_DEF_TYPE, msr.MTRR_DEF_TYPE_ENABLE | MemoryType.WB)
        return SvmBackend(core, slots, self, self.bus_lock_exits)

    def npt(self, slots: Slots) -> Npt:
        """The tables for the memory map as it is now."""
        with slots.lock:
            if self._npt is None or self._npt[0] != slots.generation:
                self._npt = slots.generation, Npt()
            return self._npt[1]

    def forget_code(self, start: int, size: int) -> None:
        cluster = self._cluster
        if cluster is not None:
            for page in [page for page in cluster.code_pages if start <= page < start + size]:
                cluster.drop_code(page)
