"""The hardware task switch: by JMP, CALL, IRET, and through task gates in the IDT.

SDM 3A, "Task Management".  Until the new task's registers are loaded a fault leaves everything
as it was; after that it is the new task's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.arch.debug import DR6_BT, DR7_LOCAL
from trapline.arch.descriptor import (
    AR_P,
    AR_S,
    AR_UNUSABLE,
    SELECTOR_TI,
    TYPE_CODE,
    TYPE_CONFORMING,
    SystemType,
)
from trapline.arch.registers import (
    CR0_PG,
    CR0_TS,
    CR4_PAE,
    RFLAGS_FIXED_1,
    RFLAGS_NT,
    RFLAGS_VM,
)
from trapline.processor import segment
from trapline.processor.fault import Fault
from trapline.processor.segment import GP, NP, TS
from trapline.processor.state import GPR_NAMES

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.state import State

CALL, IRET, JMP, IDT = range(4)  # the exit qualification's numbers
_BUSY = 2 << 40
_MASK_32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a TSS keeps what; the general registers follow the flags."""

    word: int
    limit: int
    cr3: int | None
    ip: int
    segments: tuple[str, ...]
    segment_at: int
    ldt: int
    trap: int | None

    @property
    def flags(self) -> int:
        return self.ip + self.word

    @property
    def registers(self) -> int:
        return self.ip + 2 * self.word


_32 = Layout(4, 0x67, 0x1C, 0x20, ("es", "cs", "ss", "ds", "fs", "gs"), 0x48, 0x60, 0x64)
_16 = Layout(2, 0x2B, None, 0x0E, ("es", "cs", "ss", "ds"), 0x22, 0x2A, None)


def switch(
    core: Core,
    selector: int,
    source: int,
    length: int,
    error_code: int | None = None,
    external: int = 0,
) -> None:
    """Leave this task for the one of `selector`; `length` is the instruction's, 0 for a fault."""
    state = core.state
    descriptor = _task_descriptor(core, selector, source, external)
    layout = _32 if descriptor >> 43 & 1 else _16
    base, limit = _extent(descriptor)
    if limit < layout.limit:
        raise Fault(TS, selector & 0xFFFC | external)
    if core.guest is not None:
        core.guest.intercept_task_switch(selector, source, length)
    new = [core.memory.read(base + at & _MASK_32, 1, True) for at in range(layout.limit + 1)]
    _save(core, source, length)
    old = state.tr_selector
    if source in (CALL, IDT):
        core.memory.write(base, 2, old, True)
    if source in (JMP, IRET):
        _change_descriptor(core, old, clear=_BUSY)
    if source != IRET:
        _change_descriptor(core, selector, set_=_BUSY)
        descriptor |= _BUSY
    segment.fill(state, "tr", selector, descriptor)
    state.cr0 |= CR0_TS
    _load(core, layout, bytes(new), source)
    if error_code is not None:
        _push_error_code(core, error_code, layout.word)


def _task_descriptor(core: Core, selector: int, source: int, external: int) -> int:
    """The descriptor of a TSS: busy for IRET, available for the others."""
    vector, code = (TS if source == IRET else GP), selector & 0xFFFC | external
    wanted = (SystemType.TSS16_AVAILABLE, SystemType.TSS_AVAILABLE)
    if source == IRET:
        wanted = (SystemType.TSS16_BUSY, SystemType.TSS_BUSY)
    if selector & SELECTOR_TI or not selector & 0xFFFC:
        raise Fault(vector, code)
    descriptor = segment.read_descriptor(core, selector, vector, external)
    if descriptor >> 40 & 0x1F not in wanted:
        raise Fault(vector, code)
    if not descriptor >> 47 & 1:
        raise Fault(NP, code)
    return descriptor


def _extent(descriptor: int) -> tuple[int, int]:
    base = descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    return base, limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit


def _change_descriptor(core: Core, selector: int, clear: int = 0, set_: int = 0) -> None:
    linear = segment.descriptor_address(core, selector, TS)
    descriptor = core.memory.read(linear, 8, True)
    core.memory.write(linear, 8, descriptor & ~clear | set_, True)


def _save(core: Core, source: int, length: int) -> None:
    """The dynamic fields of the old TSS."""
    state = core.state
    layout = _32 if state.tr_attributes & 8 else _16
    word, base = layout.word, state.tr_base
    flags = state.rflags
    if source == IRET:
        flags &= ~RFLAGS_NT
    words = [state.rip + length, flags, *(getattr(state, name) for name in GPR_NAMES[:8])]
    selectors = [getattr(state, f"{name}_selector") for name in layout.segments]
    for start in (layout.ip, layout.segment_at + word * len(selectors) - 1):
        core.memory.probe_write(base + start & _MASK_32, 1, True)
    for first, values in ((layout.ip, words), (layout.segment_at, selectors)):
        for position, value in enumerate(values):
            at = base + first + word * position & _MASK_32
            core.memory.write(at, word, value & (1 << 8 * word) - 1, True)


def _load(core: Core, layout: Layout, new: bytes, source: int) -> None:
    """Registers first, then the segments, whose faults are the new task's."""
    state, word = core.state, layout.word

    def at(offset: int, size: int = word) -> int:
        return int.from_bytes(new[offset : offset + size], "little")

    if layout.cr3 is not None and state.cr0 & CR0_PG:
        _load_cr3(core, at(layout.cr3))
    flags = at(layout.flags) | RFLAGS_FIXED_1
    if source in (CALL, IDT):
        flags |= RFLAGS_NT
    state.rflags = flags
    state.rip = at(layout.ip)
    for number, name in enumerate(GPR_NAMES[:8]):
        setattr(state, name, at(layout.registers + word * number))
    selectors = {
        name: at(layout.segment_at + word * i, 2) for i, name in enumerate(layout.segments)
    }
    if word == 2:
        selectors |= {"fs": 0, "gs": 0}
    is_virtual_8086 = state.system_flags & RFLAGS_VM
    for name, selector in selectors.items():
        setattr(state, f"{name}_selector", selector)
        if is_virtual_8086:
            segment.fill_real(state, name, selector)
        elif name not in ("cs", "ss"):  # a fault must still find code and a stack there
            setattr(state, f"{name}_attributes", AR_UNUSABLE)
    state.dr7 &= ~DR7_LOCAL
    core.memory.breakpoints_changed()
    state.cpl = 3 if is_virtual_8086 else selectors["cs"] & 3
    _load_ldt(core, at(layout.ldt, 2))
    if not is_virtual_8086:
        _load_segments(core, selectors)
    if layout.trap is not None and at(layout.trap, 2) & 1:
        state.pending_debug |= DR6_BT
    if state.rip > state.cs_limit:
        raise Fault(GP, 0)
    core.memory.privilege_changed()


def _load_cr3(core: Core, cr3: int) -> None:
    state = core.state
    if cr3 != state.cr3:
        if state.cr4 & CR4_PAE:
            core.memory.walker.pdptes = core.memory.walker.read_pdptes(cr3)
        state.cr3 = cr3
        core.memory.mode_changed()


def _load_ldt(core: Core, selector: int) -> None:
    state = core.state
    state.ldtr_selector, state.ldtr_attributes = selector, AR_UNUSABLE
    if selector & 0xFFFC:
        if selector & SELECTOR_TI:
            raise Fault(TS, selector & 0xFFFC)
        descriptor = segment.read_descriptor(core, selector, TS)
        if descriptor >> 40 & 0x1F != SystemType.LDT or not descriptor >> 40 & AR_P:
            raise Fault(TS, selector & 0xFFFC)
        segment.fill(state, "ldtr", selector, descriptor)


def _load_segments(core: Core, selectors: dict[str, int]) -> None:
    state: State = core.state
    stack, code = selectors["ss"], selectors["cs"]
    cpl = state.cpl
    if not stack & 0xFFFC:
        raise Fault(TS, 0)
    descriptor = segment.read_descriptor(core, stack, TS)
    segment.check_stack(stack, descriptor, cpl, TS)
    segment.fill(state, "ss", stack, segment.mark_accessed(core, stack, descriptor))
    for name in ("ds", "es", "fs", "gs"):
        selector = selectors[name]
        if selector & 0xFFFC:
            descriptor = segment.read_descriptor(core, selector, TS)
            try:
                segment.check_data(selector, descriptor, cpl)
            except Fault as fault:
                raise Fault(NP if fault.vector == NP else TS, fault.error_code) from None
            descriptor = segment.mark_accessed(core, selector, descriptor)
            segment.fill(state, name, selector, descriptor)
    if not code & 0xFFFC:
        raise Fault(TS, 0)
    descriptor = segment.read_descriptor(core, code, TS)
    rights = descriptor >> 40 & 0xFF
    dpl = rights >> 5 & 3
    if rights & (AR_S | TYPE_CODE) != AR_S | TYPE_CODE or (
        dpl > cpl if rights & TYPE_CONFORMING else dpl != cpl
    ):
        raise Fault(TS, code & 0xFFFC)
    if not rights & AR_P:
        raise Fault(NP, code & 0xFFFC)
    segment.fill(state, "cs", code, segment.mark_accessed(core, code, descriptor))


def _push_error_code(core: Core, error_code: int, size: int) -> None:
    state = core.state
    pointer = state.rsp - size
    mask = 0xFFFFFFFF if state.ss_attributes >> 14 & 1 else 0xFFFF
    linear = segment.linearize(core, "ss", pointer & mask, size, True)
    core.memory.write(linear, size, error_code)
    state.rsp = state.rsp & ~mask & _MASK_32 | pointer & mask


__all__ = ["CALL", "IDT", "IRET", "JMP", "switch"]
