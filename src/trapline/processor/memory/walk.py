"""The page walk: a linear address to a page, in every paging mode, through EPT where a guest runs.

Rights by CPL, WP, SMEP, SMAP, NX and protection keys; accessed and dirty flags; page faults with
their error codes; the effective memory type.  Nothing is cached here but frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from trapline.arch.cpuid import GBPAGES, PSE36
from trapline.arch.exception import (
    PF_FETCH,
    PF_PRESENT,
    PF_PROTECTION_KEY,
    PF_RESERVED,
    PF_USER,
    PF_WRITE,
)
from trapline.arch.paging import PTE_A, PTE_BASE, PTE_D, PTE_NX, PTE_P, PTE_PS
from trapline.arch.registers import (
    CR0_CD,
    CR0_PG,
    CR0_WP,
    CR3_PAE_BASE,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
)
from trapline.processor.fault import Fault
from trapline.processor.guest import NESTED_EPT, NESTED_NPT
from trapline.processor.memory.frames import Frames
from trapline.processor.memory.host import DOUBLES, QUADS, compare_exchange
from trapline.processor.memory.page import FETCH, READ, SUPERVISOR_AC, USER, WRITE, Frame, Page
from trapline.processor.memory.types import EFFECTIVE, UC, WB

if TYPE_CHECKING:
    from trapline.processor.core import Core

_PF = 14
_WALK_CR0 = CR0_PG | CR0_WP | CR0_CD
_WALK_CR4 = CR4_PAE | CR4_PSE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE
_WALK_EFER = EFER_LMA | EFER_NXE
_MASK_64 = (1 << 64) - 1


class NonCanonical(Fault):
    """A linear address that is not canonical.  #GP(0) as it stands; an access through SS is
    #SS(0), which only who knows the segment can say."""

    def __init__(self) -> None:
        super().__init__(13, 0)


class Walker:
    """The walk under the control registers as `configure` last saw them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.frames = Frames(core)
        self.linear_mask = 0xFFFFFFFF
        self.linear_bits = 32  # 48 or 57 in long mode
        self.pkru = 0
        self.pdptes = [0, 0, 0, 0]  # PAE paging, as MOV to CR3 loaded them
        self._key: tuple[int | None, ...] = ()
        self.configure()

    def configure(self) -> bool:
        """Look at the control registers again; True if cached translations are now wrong."""
        state, guest = self._core.state, self._core.guest
        cr0, cr4, efer = state.cr0, state.cr4, state.efer
        pointer = guest.ept_pointer if guest is not None else None
        key = (
            cr0 & _WALK_CR0,
            state.cr3,
            cr4 & _WALK_CR4,
            efer & _WALK_EFER,
            state.pat,
            pointer,
            *self.pdptes,
        )
        if key == self._key:
            return False
        self._key = key
        self.frames.use(pointer, guest.nested_format if guest is not None else NESTED_EPT)
        self._pat = tuple(state.pat >> 8 * i & 7 for i in range(8))
        self._uncached = bool(cr0 & CR0_CD)
        self._wp, self._smep = bool(cr0 & CR0_WP), bool(cr4 & CR4_SMEP)
        self._smap, self._pke = bool(cr4 & CR4_SMAP), bool(cr4 & CR4_PKE)
        self._pse = bool(cr4 & CR4_PSE)
        has_nx = bool(efer & EFER_NXE and cr4 & CR4_PAE)
        self._fetch_bit = PF_FETCH if has_nx or self._smep else 0
        self._choose_mode(cr0, state.cr3, cr4, bool(efer & EFER_LMA))
        self._set_reserved(has_nx, bool(efer & EFER_LMA))
        return True

    def _choose_mode(self, cr0: int, cr3: int, cr4: int, is_long: bool) -> None:
        self._is_pae = False
        self.linear_bits, self.linear_mask = 32, 0xFFFFFFFF
        if not cr0 & CR0_PG:
            self._top = 0
        elif is_long:
            self._top, self._root = (48 if cr4 & CR4_LA57 else 39), cr3 & PTE_BASE
            self.linear_bits = self._top + 9
            self.linear_mask = _MASK_64
        elif cr4 & CR4_PAE:
            self._top, self._is_pae = 21, True
        else:
            self._top, self._root = 22, cr3 & 0xFFFFF000

    def _set_reserved(self, has_nx: bool, is_long: bool) -> None:
        """Reserved bits of each level's entry: for a table, and for a page."""
        model = self._core.model
        beyond = PTE_BASE & -1 << model.physical_bits
        if not has_nx:
            beyond |= PTE_NX
        if not is_long:
            beyond |= 0x7FF << 52
        self._reserved_table = {48: beyond | PTE_PS, 39: beyond | PTE_PS, 30: beyond, 21: beyond}
        self._reserved_table[12] = beyond
        self._reserved_pdpte = 0x1E6 | (-1 << model.physical_bits & _MASK_64)
        self._reserved_page = {
            30: beyond | (0x3FFFE000 if model.has(GBPAGES) else PTE_PS),
            21: beyond | 0x1FE000,
        }
        high_32 = (1 << max(model.physical_bits - 32, 0)) - 1 if model.has(PSE36) else 0
        self._reserved_4m = 0x3FE000 & ~(high_32 << 13 & 0x1FE000)

    # -- the walk ----------------------------------------------------------------------------------

    def page(self, linear: int, access: int, privilege: int) -> Page:
        """The page of a linear address with the rights for `access`, or the fault."""
        top = self._top
        if top > 22:
            if (linear + (1 << self.linear_bits - 1) & _MASK_64) >> self.linear_bits:
                raise NonCanonical
            return self._walk(linear, access, privilege, top, self._root)
        linear &= 0xFFFFFFFF
        if not top:
            return self._unpaged(linear, access, privilege)
        if not self._is_pae:
            return self._walk_32(linear, access, privilege)
        pdpte = self.pdptes[linear >> 30]
        if not pdpte & PTE_P:
            self._fault(linear, access, privilege, 0)
        if pdpte & self._reserved_pdpte:  # which only nested paging of AMD's lets come so far
            self._fault(linear, access, privilege, PF_PRESENT | PF_RESERVED)
        return self._walk(linear, access, privilege, 21, pdpte & PTE_BASE)

    def _unpaged(self, linear: int, access: int, privilege: int) -> Page:
        frame = self.frames.known.get(linear >> 12)
        if frame is None or access & ~frame.rights:
            frame = self.frames.frame(linear, access, linear, False)
        memory_type = UC if self._uncached else self._effective(frame, WB)
        return Page(linear & -4096, privilege, frame, frame.rights, memory_type, False)

    def _walk(self, linear: int, access: int, privilege: int, shift: int, table: int) -> Page:
        """Entries of eight bytes: 4- and 5-level paging, and PAE below its four registers."""
        frames = self.frames
        known, need = frames.known, frames.walk_access
        root, top = table, shift
        common, no_execute = 7, 0
        path: list[tuple[int, int, int]] = []
        while True:
            at = table | (linear >> (shift - 3)) & 0xFF8
            frame = known.get(at >> 12)
            if frame is None or need & ~frame.rights:
                frame = frames.frame(at, need, linear, True)
            host = frame.host + (at & 0xFFF)
            entry = QUADS[host >> 3] if frame.host else self._core.bus.read_device(at, 8)
            if not entry & PTE_P:
                self._fault(linear, access, privilege, 0)
            is_page = shift == 12 or (entry & PTE_PS and shift <= 30)
            reserved = self._reserved_page if is_page and shift != 12 else self._reserved_table
            if entry & reserved[shift]:
                self._fault(linear, access, privilege, PF_PRESENT | PF_RESERVED)
            common &= entry
            no_execute |= entry
            if is_page:
                break
            if not entry & PTE_A:
                path.append((at, host, entry))
            table = entry & PTE_BASE
            shift -= 9
        rights = self._rights(linear, access, privilege, common, no_execute >> 63, entry >> 59 & 15)
        wanted = PTE_A | PTE_D if access & WRITE else PTE_A
        if (path or wanted & ~entry) and not self._mark(linear, path, at, host, entry, wanted):
            return self._walk(linear, access, privilege, top, root)
        if not (entry | wanted) & PTE_D:
            rights &= ~WRITE
        offset_mask = (1 << shift) - 1
        physical = entry & PTE_BASE & ~offset_mask | linear & offset_mask
        is_large = shift != 12
        pat = entry >> 3 & 3 | (entry >> (10 if is_large else 5) & 4)
        return self._finish(linear, access, privilege, physical, rights, pat, is_large)

    def _walk_32(self, linear: int, access: int, privilege: int) -> Page:
        """Entries of four bytes: 32-bit paging with 4 KiB and, with CR4.PSE, 4 MiB pages."""
        at = self._root | (linear >> 20) & 0xFFC
        host, entry = self._entry_32(at, linear, access, privilege)
        common, path = entry & 7, []
        is_large = bool(entry & PTE_PS and self._pse)
        if is_large:
            if entry & self._reserved_4m:
                self._fault(linear, access, privilege, PF_PRESENT | PF_RESERVED)
            base = entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
            physical = base | linear & 0x3FFFFF
        else:
            if not entry & PTE_A:
                path.append((at, host, entry))
            at = entry & 0xFFFFF000 | (linear >> 10) & 0xFFC
            host, entry = self._entry_32(at, linear, access, privilege)
            common &= entry
            physical = entry & 0xFFFFF000 | linear & 0xFFF
        rights = self._rights(linear, access, privilege, common, 0, 0)
        wanted = PTE_A | PTE_D if access & WRITE else PTE_A
        if (path or wanted & ~entry) and not self._mark(linear, path, at, host, entry, wanted):
            return self._walk_32(linear, access, privilege)
        if not (entry | wanted) & PTE_D:
            rights &= ~WRITE
        pat = entry >> 3 & 3 | (entry >> (10 if is_large else 5) & 4)
        return self._finish(linear, access, privilege, physical, rights, pat, is_large)

    def _entry_32(self, at: int, linear: int, access: int, privilege: int) -> tuple[int, int]:
        frames = self.frames
        frame = frames.known.get(at >> 12)
        if frame is None or frames.walk_access & ~frame.rights:
            frame = frames.frame(at, frames.walk_access, linear, True)
        host = frame.host + (at & 0xFFF)
        entry = DOUBLES[host >> 2] if frame.host else self._core.bus.read_device(at, 4)
        if not entry & PTE_P:
            self._fault(linear, access, privilege, 0)
        return host, entry

    def _finish(
        self,
        linear: int,
        access: int,
        privilege: int,
        physical: int,
        rights: int,
        pat: int,
        is_large: bool,
    ) -> Page:
        frame = self.frames.known.get(physical >> 12)
        if frame is None or access & ~frame.rights:
            frame = self.frames.frame(physical, access, linear, False)
        memory_type = UC if self._uncached else self._effective(frame, self._pat[pat])
        return Page(linear & -4096, privilege, frame, rights & frame.rights, memory_type, is_large)

    def _effective(self, frame: Frame, pat_type: int) -> int:
        if frame.ignores_pat:
            return frame.memory_type
        return EFFECTIVE[8 * frame.memory_type + pat_type]

    def _rights(
        self,
        linear: int,
        access: int,
        privilege: int,
        common: int,
        no_execute: int,
        key: int,
    ) -> int:
        """What the entries allow; a page fault if not `access` (SDM 3A, "Access Rights")."""
        is_user, is_writable = common & 4, common & 2
        rights = 0
        if privilege == USER:
            if is_user:
                rights = READ | FETCH | (WRITE if is_writable else 0)
        else:
            if not (is_user and self._smap and privilege != SUPERVISOR_AC):
                rights = READ | (WRITE if is_writable or not self._wp else 0)
            if not (is_user and self._smep):
                rights |= FETCH
        if no_execute:
            rights &= ~FETCH
        by_key = 0
        if self._pke and is_user and self._top > 22:
            locks = self.pkru >> 2 * key
            by_key = READ | WRITE if locks & 1 else 0
            if locks & 2 and (privilege == USER or self._wp):
                by_key |= WRITE
            rights &= ~by_key
        if access & ~rights:
            code = PF_PRESENT | (PF_PROTECTION_KEY if access & by_key else 0)
            self._fault(linear, access, privilege, code)
        return rights

    def _mark(
        self,
        linear: int,
        path: list[tuple[int, int, int]],
        leaf_at: int,
        leaf_host: int,
        leaf: int,
        wanted: int,
    ) -> bool:
        """Set accessed and dirty flags; False if an entry has changed under us."""
        frames = self.frames
        size = 8 if self._top != 22 else 4
        updates = [(at, host, entry, entry | PTE_A) for at, host, entry in path]
        if wanted & ~leaf:
            updates.append((leaf_at, leaf_host, leaf, leaf | wanted))
        for at, host, before, after in updates:
            frame = frames.known.get(at >> 12)
            if frame is None or not frame.rights & WRITE:
                frame = frames.frame(at, frames.walk_access | WRITE, linear, True)
            if not frame.host:
                self._core.bus.write_device(at, size, after)
            elif compare_exchange(host, size, before, after) != before:
                return False
        return True

    def _fault(self, linear: int, access: int, privilege: int, code: int) -> NoReturn:
        if access & WRITE:
            code |= PF_WRITE
        if privilege == USER:
            code |= PF_USER
        if access & FETCH:
            code |= self._fetch_bit
        raise Fault(_PF, code, linear)

    # -- PAE ---------------------------------------------------------------------------------------

    def read_pdptes(self, cr3: int) -> list[int]:
        """The four PDPTEs that MOV to CR3 (or to CR0, CR4) loads; #GP(0) if one is malformed.

        APM 2, "Legacy PAE Mode" under nested paging: that shows only when one is used.
        """
        guest = self._core.guest
        is_nested = guest is not None and guest.ept_pointer is not None
        is_checked = guest is None or not is_nested or guest.nested_format != NESTED_NPT
        at = cr3 & CR3_PAE_BASE
        frame = self.frames.known.get(at >> 12)
        if frame is None or self.frames.walk_access & ~frame.rights:
            frame = self.frames.frame(at, self.frames.walk_access, None, True)
        pdptes = []
        for i in range(4):
            if frame.host:
                pdpte = QUADS[(frame.host + (at & 0xFFF) >> 3) + i]
            else:
                pdpte = self._core.bus.read_device(at + 8 * i, 8)
            if is_checked and pdpte & PTE_P and pdpte & self._reserved_pdpte:
                raise Fault(13, 0)
            pdptes.append(pdpte)
        return pdptes
