"""The Intel processors of one VM: what they share, and how one is made."""

from __future__ import annotations

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm.mmu import Slots
from trapline.kvm.vmx.backend import VmxBackend
from trapline.kvm.vmx.ept import Ept
from trapline.processor import Cluster, Core, Model, Observer


class VmxPlatform:
    """`observer` sees the bus locks of every processor; `engine` is "jit" or "interp"."""

    def __init__(
        self, model: Model, *, engine: str = "jit", observer: Observer | None = None
    ) -> None:
        self._model = model
        self._engine = engine
        self._observer = observer
        self._cluster: Cluster | None = None
        self._ept: tuple[int, Ept] | None = None
        self.bus_lock_exits = False

    @property
    def has_bus_lock_exit(self) -> bool:
        return True

    def supported_cpuid(self) -> list[CpuidEntry]:
        return self._model.entries()

    def create(self, vcpu_id: int, slots: Slots) -> VmxBackend:
        if self._cluster is None:
            self._cluster = Cluster()
        core = Core(self._model, engine=self._engine, cluster=self._cluster)
        core.observer = self._observer
        return VmxBackend(core, slots, self, self.bus_lock_exits)

    def ept(self, slots: Slots) -> Ept:
        """The tables for the memory map as it is now."""
        with slots.lock:
            if self._ept is None or self._ept[0] != slots.generation:
                self._ept = slots.generation, Ept()
            return self._ept[1]

    def forget_code(self, start: int, size: int) -> None:
        cluster = self._cluster
        if cluster is not None:
            for page in [page for page in cluster.code_pages if start <= page < start + size]:
                cluster.drop_code(page)
