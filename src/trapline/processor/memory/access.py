"""Every access to memory by linear address: translate, check, classify, do it.

What happens to a locked access before it is done is asked of `buslock`; what it causes afterwards
is left in `notes` for the boundary, as the breakpoints hit are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from trapline.arch.debug import PAYLOAD_ENABLED_BREAKPOINT, Breakpoint, BreakpointKind
from trapline.arch.registers import CR0_AM, RFLAGS_AC
from trapline.processor.buslock import Cause, before_access, classify
from trapline.processor.debug import breakpoints
from trapline.processor.fault import Fault
from trapline.processor.memory.host import BYTES, QUADS, from_bytes, load, store
from trapline.processor.memory.host import change as change_host
from trapline.processor.memory.page import (
    BESIDE_CODE,
    FETCH,
    READ,
    SUPERVISOR,
    SUPERVISOR_AC,
    USER,
    WRITE,
    Page,
    Translation,
)
from trapline.processor.memory.tlb import Tlb
from trapline.processor.memory.types import WB
from trapline.processor.memory.walk import Walker
from trapline.processor.notes import LockedAccess, Notes
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core

_AC = 17
_ALIGNMENT = {2: 1, 4: 3, 6: 3, 8: 7, 10: 7, 16: 15}  # by operand size (SDM 3A, #AC)
_CPL, _FLAGS, _CR0, _TLB = (INDEX[name] for name in ("cpl", "system_flags", "cr0", "tlb"))
_NO_PAGES: dict[int, Page] = {}
_MOST_PAGES = 1 << 17  # cached a privilege, lest a guest that touches everything fill our memory


class Memory:
    """Linear memory of one processor.

    `privilege_changed` must be called when CPL, RFLAGS.AC or CR0.AM changes, `mode_changed` when
    CR0, CR3, CR4, EFER, PAT or the EPT pointer does, `breakpoints_changed` after DR0-DR3, DR7.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._state = state = core.state
        self.tlb = Tlb()
        self.walker = Walker(core)
        self._spaces: tuple[dict[int, Page], ...] = ({}, {}, {})
        self._pages = self._implicit_pages = self._spaces[SUPERVISOR]
        self._privilege = SUPERVISOR
        self._is_aligning = False
        self._has_large = False
        self._watched: list[tuple[int, Breakpoint]] = []
        self._watched_pages: dict[int, int] = {}
        self.stops: frozenset[int] = frozenset()
        """Numbers of linear pages that code breakpoints are in: native code must not enter them."""
        self.notes = Notes()
        # Entered around an update that the host cannot do atomically; whoever runs several
        # processors on this memory puts here what stops the others.
        self.exclusive: Callable[[], AbstractContextManager[None]] = nullcontext
        user, supervisor, supervisor_ac = (table.address for table in self.tlb.tables)
        state.tlb_user, state.tlb_supervisor, state.tlb_supervisor_ac = (
            user,
            supervisor,
            supervisor_ac,
        )
        self._natives = (user, supervisor, supervisor_ac)
        self.privilege_changed()

    @property
    def is_watching(self) -> bool:
        """Whether any data breakpoint is enabled."""
        return bool(self._watched)

    # -- reading and writing -----------------------------------------------------------------------

    def read(self, linear: int, size: int, implicit: bool = False) -> int:
        """`size` bytes; `implicit` for what the processor reads for itself (tables, TSS)."""
        page = (self._implicit_pages if implicit else self._pages).get(linear >> 12)
        offset = linear & 0xFFF
        if page is None or not page.quick & READ or offset + size > 0x1000:
            return self._read_slowly(linear, size, implicit)
        host = page.host + offset
        if size == 8 and not host & 7:
            return QUADS[host >> 3]
        return from_bytes(BYTES[host : host + size], "little")

    def write(self, linear: int, size: int, word: int, implicit: bool = False) -> None:
        page = (self._implicit_pages if implicit else self._pages).get(linear >> 12)
        offset = linear & 0xFFF
        if page is None or not page.quick & WRITE or offset + size > 0x1000:
            self._write_slowly(linear, size, word, implicit)
            return
        host = page.host + offset
        if size == 8 and not host & 7:
            QUADS[host >> 3] = word
        else:
            store(host, size, word)

    def fetch(self, linear: int, count: int) -> bytes:
        """Instruction bytes, `count` or fewer.  Fewer: ask again from the first missing byte,
        which faults if it cannot be had (nothing may be touched that is not needed)."""
        pages, privilege = self._spaces[self._privilege], self._privilege
        page = pages.get(linear >> 12)
        if page is None or not page.rights & FETCH:
            page = self._page(linear, FETCH, privilege)
        code = self._load_bytes(page, linear & 0xFFF, count)
        while len(code) < count:
            following = linear + len(code) & self.walker.linear_mask
            further = pages.get(following >> 12)
            if further is None or not further.rights & FETCH:
                break
            code += self._load_bytes(further, 0, count - len(code))
        return code

    def update(
        self, linear: int, size: int, change: Callable[[int], int], locked: bool = True
    ) -> int:
        """Replace the bytes by change(bytes) in one access, locked or not; the bytes before.

        Rights are checked on every byte first.  `change` may be called more than once.
        """
        if self._is_aligning:
            self._check_alignment(linear, size)
        access, privilege = READ | WRITE, self._privilege
        first = self._page(linear, access, privilege)
        second = None
        if (linear & 0xFFF) + size > 0x1000:
            second = self._page(self._next_page(linear), access, privilege)
        cause = None
        if locked:
            is_write_back = first.memory_type == WB
            if second is not None and second.memory_type != WB:
                is_write_back = False
            cause = classify(linear, size, is_write_back)
            if cause is not None:
                self._lock_bus(linear, size, cause, first)
        before = self._update_bytes(first, second, linear, size, change)
        if self._watched_pages:
            self._watch(linear, size, READ | WRITE)
        return before

    def probe_write(self, linear: int, size: int, implicit: bool = False) -> None:
        """Fault as a write would, and do nothing: for instructions that must not half happen."""
        privilege = SUPERVISOR if implicit else self._privilege
        if self._is_aligning and not implicit:
            self._check_alignment(linear, size)
        self._page(linear, WRITE, privilege)
        if (linear & 0xFFF) + size > 0x1000:
            self._page(self._next_page(linear), WRITE, privilege)

    def translate(self, linear: int, kind: int) -> Translation:
        """Where a linear address leads under the present privilege; `kind` is READ, WRITE or
        FETCH, checked (and marked in the tables) as an access would be."""
        page = self._page(linear, kind, self._privilege)
        offset = linear & 0xFFF
        host = page.host + offset if page.host else 0
        return Translation(host, page.physical + offset, page.memory_type, page.rights)

    def known_physical(self, linear: int) -> int:
        """The physical address of a byte accessed just now; 0 if it is not known any more."""
        page = self._spaces[self._privilege].get(linear >> 12)
        return page.physical + (linear & 0xFFF) if page is not None else 0

    def fill(self, linear: int, kind: int) -> bool:
        """Translate for native code; True if its table now serves reads (or writes, by `kind`)
        of the page, False if each access must come through Python."""
        if self._is_aligning:
            return False  # SDM 3A, 6.9: alignment checks come before page faults
        known = self._spaces[self._privilege].get(linear >> 12)
        page = self._page(linear, kind, self._privilege)
        if page is known:  # native code has lost it; a new one has just been offered
            self.tlb.fill(page)
        return not kind & ~page.quick

    # -- what has changed --------------------------------------------------------------------------

    def privilege_changed(self) -> None:
        q = self._state.q
        flags = q[_FLAGS]
        self._is_aligning = False
        if q[_CPL] != 3:
            privilege = SUPERVISOR_AC if flags & RFLAGS_AC else SUPERVISOR
        else:
            privilege = USER
            if flags & RFLAGS_AC and q[_CR0] & CR0_AM:
                self._privilege, self._is_aligning = USER, True
                self._pages, q[_TLB] = _NO_PAGES, self.tlb.empty.address
                return
        self._privilege = privilege
        self._pages = self._spaces[privilege]
        q[_TLB] = self._natives[privilege]

    def mode_changed(self) -> None:
        """Drop translations if the control registers now make other ones."""
        if self.walker.configure():
            self.flush()

    def breakpoints_changed(self) -> None:
        """Route accesses to the pages that DR7 watches through Python, and code in them."""
        watched, stops = breakpoints(self._state)
        if stops != self.stops:
            self.stops = stops
            self._core.mappings_changed()
        if watched == self._watched:
            return
        self._watched = watched
        pages: dict[int, int] = {}
        for linear, one in watched:
            number = linear >> 12  # the range is aligned to its size, so it lies in one page
            hidden = READ | WRITE if one.kind == BreakpointKind.ACCESS else WRITE
            pages[number] = pages.get(number, 0) | hidden
        self._watched_pages = pages
        self.flush()

    def flush(self) -> None:
        """Drop every cached translation of linear addresses."""
        for space in self._spaces:
            space.clear()
        self._has_large = False
        self.tlb.flush()
        self._core.mappings_changed()

    def flush_page(self, linear: int) -> None:
        """INVLPG: drop the translations of the page, of whatever size, that holds an address."""
        if self._has_large:
            self.flush()
            return
        for privilege, space in enumerate(self._spaces):
            space.pop(linear >> 12, None)
            self.tlb.drop(linear, privilege)
        self._core.mappings_changed()

    def flush_frames(self) -> None:
        """INVEPT, or the physical memory map or an MTRR changed: drop everything."""
        self.walker.frames.forget()
        self.flush()

    # -- the slow ways -----------------------------------------------------------------------------

    def _page(self, linear: int, access: int, privilege: int) -> Page:
        linear &= self.walker.linear_mask  # a base and an offset may go around
        space = self._spaces[privilege]
        page = space.get(linear >> 12)
        if page is not None:
            if page.rights & access == access:
                if access & WRITE and not page.quick & WRITE:
                    self._offer(page)  # it may have lost its translated code
                return page
            del space[linear >> 12]
            self.tlb.drop(linear, privilege)
        page = self.walker.page(linear, access, privilege)
        if len(space) >= _MOST_PAGES:
            self.flush()
        if page.is_large:
            self._has_large = True
        space[linear >> 12] = page
        self._offer(page)
        return page

    def _offer(self, page: Page) -> None:
        """Say what may go straight to host memory, and give it to native code."""
        quick = page.rights if page.host else 0
        if self._watched_pages:
            quick &= ~self._watched_pages.get(page.linear >> 12, 0)
        if quick & WRITE and page.host in self.tlb.code:
            quick = quick & ~WRITE | BESIDE_CODE
        page.quick = quick
        if quick:
            self.tlb.fill(page)

    def _next_page(self, linear: int) -> int:
        return (linear | 0xFFF) + 1 & self.walker.linear_mask

    def _read_slowly(self, linear: int, size: int, implicit: bool) -> int:
        privilege = SUPERVISOR if implicit else self._privilege
        if self._is_aligning and not implicit:
            self._check_alignment(linear, size)
        first_size = 0x1000 - (linear & 0xFFF)
        page = self._page(linear, READ, privilege)
        if size <= first_size:
            word = self._load(page, linear & 0xFFF, size)
        else:
            second = self._page(self._next_page(linear), READ, privilege)
            word = self._load(page, linear & 0xFFF, first_size)
            word |= self._load(second, 0, size - first_size) << 8 * first_size
        if self._watched_pages and not implicit:
            self._watch(linear, size, READ)
        return word

    def _write_slowly(self, linear: int, size: int, word: int, implicit: bool) -> None:
        privilege = SUPERVISOR if implicit else self._privilege
        if self._is_aligning and not implicit:
            self._check_alignment(linear, size)
        first_size = 0x1000 - (linear & 0xFFF)
        page = self._page(linear, WRITE, privilege)
        if size <= first_size:
            self._store(page, linear & 0xFFF, size, word)
        else:
            second = self._page(self._next_page(linear), WRITE, privilege)
            self._store(page, linear & 0xFFF, first_size, word & (1 << 8 * first_size) - 1)
            self._store(second, 0, size - first_size, word >> 8 * first_size)
        if self._watched_pages and not implicit:
            self._watch(linear, size, WRITE)

    def _load(self, page: Page, offset: int, size: int) -> int:
        if page.host:
            return load(page.host + offset, size)
        word = 0
        for done, part in _device_parts(size):
            piece = self._core.bus.read_device(page.physical + offset + done, part)
            word |= piece << 8 * done
        return word

    def _load_bytes(self, page: Page, offset: int, count: int) -> bytes:
        count = min(count, 0x1000 - offset)
        if page.host:
            return bytes(BYTES[page.host + offset : page.host + offset + count])
        return self._load(page, offset, count).to_bytes(count, "little")

    def _store(self, page: Page, offset: int, size: int, word: int) -> None:
        if not page.host:
            for done, part in _device_parts(size):
                piece = word >> 8 * done & (1 << 8 * part) - 1
                self._core.bus.write_device(page.physical + offset + done, part, piece)
            return
        store(page.host + offset, size, word)
        if page.host in self.tlb.code:
            self._core.flush_translations(page.host + offset, size)

    def _update_bytes(
        self,
        first: Page,
        second: Page | None,
        linear: int,
        size: int,
        change: Callable[[int], int],
    ) -> int:
        offset = linear & 0xFFF
        if first.host and offset % 64 + size <= 64:  # the host can do it in its cache
            before = change_host(first.host + offset, size, change)
            if first.host in self.tlb.code:
                self._core.flush_translations(first.host + offset, size)
            return before
        first_size = min(size, 0x1000 - offset)
        with self.exclusive():
            before = self._load(first, offset, first_size)
            if second is not None:
                before |= self._load(second, 0, size - first_size) << 8 * first_size
            after = change(before)
            self._store(first, offset, first_size, after & (1 << 8 * first_size) - 1)
            if second is not None:
                self._store(second, 0, size - first_size, after >> 8 * first_size)
        return before

    # -- what else an access may cause -------------------------------------------------------------

    def _lock_bus(self, linear: int, size: int, cause: Cause, page: Page) -> None:
        state = self._state
        physical = page.physical + (linear & 0xFFF)
        lock = LockedAccess(state.rip, linear, physical, size, state.cpl, cause)
        before_access(self._core, lock)
        self.notes.lock = lock

    def _check_alignment(self, linear: int, size: int) -> None:
        if linear & _ALIGNMENT.get(size, 0):
            raise Fault(_AC, 0)

    def _watch(self, linear: int, size: int, access: int) -> None:
        """Note the data breakpoints that an access meets."""
        for watched, one in self._watched:
            wanted = WRITE if one.kind == BreakpointKind.WRITE else READ | WRITE
            if access & wanted and one.touches(watched, linear, size):
                self.notes.breakpoints |= one.payload | PAYLOAD_ENABLED_BREAKPOINT


def _device_parts(size: int) -> list[tuple[int, int]]:
    """An access to a device in pieces of at most eight bytes: (bytes done, size of the piece)."""
    return [(done, min(8, size - done)) for done in range(0, size, 8)]
