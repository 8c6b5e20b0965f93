"""What processors on one memory share: translated code, and the bus that a bus lock holds.

The bus block is read by native code (see jit.runtime): its owner, how many processors there are,
and where their states are.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trapline.processor.code_map import CodeMaps
from trapline.processor.jit import CodeCache

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.jit import Block

_BLOCK = 8192
MAX_PROCESSORS = _BLOCK // 8 - 2


class Cluster:
    """Processors that share memory.  Made implicitly for a processor that has none."""

    def __init__(self) -> None:
        self.code = CodeCache()
        self.cores: list[Core] = []
        self.code_pages: set[int] = set()
        self.code_maps = CodeMaps()
        self._lock = threading.RLock()
        self._denying = threading.Lock()
        self._map = mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(self._map).cast("Q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        runtime = self.code.compiler.runtime
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._acquire = prototype(runtime["trapline_bus_acquire"])
        self._release = prototype(runtime["trapline_bus_release"])
        self._follow_forks(weakref.ref(self))

    @staticmethod
    def _follow_forks(cluster: weakref.ref[Cluster]) -> None:
        """A host fork waits until nobody is in the middle of changing what is shared."""
        held: list[Cluster] = []

        def before() -> None:
            alive = cluster()
            if alive is not None:
                alive._denying.acquire()
                alive._lock.acquire()
                alive.code.lock.acquire()
                held.append(alive)

        def after() -> None:
            while held:
                alive = held.pop()
                alive.code.lock.release()
                alive._lock.release()
                alive._denying.release()

        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)

    def keep(self, core: Core) -> None:
        """In the child of a host fork: only this processor came along, so nobody else has the
        bus."""
        with self._lock:
            self._words[0] = 0
            self.cores = [core]
            self.code_maps.keep_thread()
            core.state.running = 0
            self._publish()

    def join(self, core: Core) -> None:
        """A processor begins to use the memory."""
        with self._lock:
            self.cores.append(core)
            self._publish()

    def leave(self, core: Core) -> None:
        """A processor will not run again."""
        with self._lock:
            if core in self.cores:
                self.cores.remove(core)
                core.state.bus = 0
                self._publish()
            if not self.cores:
                self.code.compiler.save()

    def _publish(self) -> None:
        if len(self.cores) > MAX_PROCESSORS:
            raise ValueError(f"more than {MAX_PROCESSORS} processors share one memory")
        for i, core in enumerate(self.cores):
            self._words[2 + i] = core.state.address
        self._words[1] = len(self.cores)
        shared = len(self.cores) > 1
        for core in self.cores:
            core.state.bus = self._address if shared else 0

    @contextmanager
    def exclusive(self, core: Core) -> Iterator[None]:
        """Hold the bus: every other processor is outside guest code."""
        if len(self.cores) < 2:
            yield
            return
        self._acquire(core.state.address)
        try:
            yield
        finally:
            self._release(core.state.address)

    def deny_write(self, denying: Core, host_page: int) -> None:
        """A host page holds translated code from now on: what is written to it passes through
        Python, and what another processor has written without is there when this returns."""
        with self._denying:
            with self._lock:
                self.code_maps.begin(host_page)
                others = [
                    core.memory.tlb.deny_write(host_page)
                    for core in self.cores
                    if core is not denying
                ]
                denying.memory.tlb.deny_write(host_page)
            if any(others):  # one may have looked up the page, and be about to store
                with self.exclusive(denying):
                    pass

    def keep_block(
        self, key: tuple[int, ...], block: Block, is_current: Callable[[], bool]
    ) -> bool:
        """Make a block findable, unless one of its pages was written since `deny_write` and
        differs (`is_current`) or may have been let go."""
        with self._lock:
            try:
                if not self.code_pages.issuperset(block.hosts) or not is_current():
                    return False
                self.code.keep(key, block)
                for host, size in block.places(key[0]):
                    self.code_maps.add(host, size)
                return True
            finally:
                self.code_maps.end()

    def written(self, host: int, size: int) -> None:
        """A processor wrote bytes within a page that holds translated code."""
        with self._lock:
            if self.code_maps.has(host, size):
                self.drop_code(host & ~0xFFF)

    def drop_code(self, host_page: int) -> None:
        """A host page was written: its translations are gone, for everybody."""
        with self._lock:
            rips = self.code.drop_page(host_page)
            self.code_maps.drop(host_page)
            for core in self.cores:
                core.memory.tlb.allow_write(host_page)
                if core.engine is not None:
                    core.engine.drop(rips)

    def forget_code(self, start: int, size: int) -> None:
        """Host memory was written by somebody else: no translation of it is kept."""
        first, end = start & ~0xFFF, start + size
        pages = self.code_pages
        if (end - first) >> 12 < len(pages):
            found = [page for page in range(first, end, 0x1000) if page in pages]
        else:
            found = [page for page in list(pages) if first <= page < end]
        for page in found:
            self.drop_code(page)
