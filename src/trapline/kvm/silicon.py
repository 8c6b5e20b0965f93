"""The software processors of one VM, of whichever vendor: what they are made of and share."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm.mmu import Slots
from trapline.kvm.tdp import CurrentTables, Format, Tables
from trapline.processor import Cluster, Core, Model, Observer

Watcher = Observer | Callable[[Core], Observer] | None
"""One observer of all processors, or what gives each, in the order they are made, its own."""


class Silicon:
    """`observer` sees the bus locks of every processor; `engine` is "jit" or "interp"."""

    def __init__(
        self,
        model: Model,
        format: Format,
        engine: str = "jit",
        observer: Watcher = None,
    ) -> None:
        self.model = model
        self.bus_lock_exits = False
        self._engine = engine
        self._watcher = observer
        self._cluster: Cluster | None = None
        self._tables = CurrentTables(format)

    def supported_cpuid(self) -> list[CpuidEntry]:
        return self.model.entries()

    def tables(self, slots: Slots) -> Tables:
        """The second stage of paging for the memory map as it is now."""
        return self._tables.get(slots)

    def new_core(self) -> Core:
        if self._cluster is None:
            self._cluster = Cluster()
        core = Core(self.model, engine=self._engine, cluster=self._cluster)
        watcher = self._watcher
        core.observer = watcher(core) if callable(watcher) else watcher
        return core

    def forget_code(self, start: int, size: int) -> None:
        if self._cluster is not None:
            self._cluster.forget_code(start, size)
