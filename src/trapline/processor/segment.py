"""Segmentation: segment:offset to linear addresses, and loading segment registers.

The checks of SDM 3A, "Protection", and the different rules of real, virtual-8086 and 64-bit mode.
Far transfers, which load CS, are in `microcode.far`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.arch.descriptor import (
    AR_DB,
    AR_DPL_SHIFT,
    AR_L,
    AR_P,
    AR_S,
    AR_UNUSABLE,
    AR_VIRTUAL_8086,
    FLAT_LIMIT,
    SELECTOR_TI,
    TYPE_ACCESSED,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_EXPAND_DOWN,
    TYPE_READABLE,
    TYPE_WRITABLE,
    parse_segment,
)
from trapline.arch.registers import CR0_PE, CR4_LA57, EFER_LMA, RFLAGS_VM
from trapline.processor.fault import Fault
from trapline.processor.state import INDEX, SEGMENTS

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.state import State

TS, NP, SS, GP = 10, 11, 12, 13
_MASK_64 = (1 << 64) - 1
_CR0, _CR4, _EFER = INDEX["cr0"], INDEX["cr4"], INDEX["efer"]
_FLAGS, _CPL = INDEX["system_flags"], INDEX["cpl"]
_CS_ATTRIBUTES, _SS_ATTRIBUTES = INDEX["cs_attributes"], INDEX["ss_attributes"]
_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")
# Selector, base, limit, attributes of a segment register follow each other.
_AT = {name: INDEX[f"{name}_selector"] for name in SEGMENTS}
_PARSED: dict[int, tuple[int, int, int]] = {}  # what recent descriptors say
_LDTR, _GDTR = INDEX["ldtr_selector"], INDEX["gdtr_base"]
_BASE = {name: INDEX[f"{name}_base"] for name in _NAMES}
_LIMIT = {name: INDEX[f"{name}_limit"] for name in _NAMES}
_ATTRIBUTES = {name: INDEX[f"{name}_attributes"] for name in _NAMES}
_CS_BASE, _CS_LIMIT = _BASE["cs"], _LIMIT["cs"]
_FLAT_BITS = AR_P | AR_S | TYPE_WRITABLE
_FLAT_MASK = _FLAT_BITS | AR_UNUSABLE | TYPE_CODE | TYPE_EXPAND_DOWN


# -- the mode --------------------------------------------------------------------------------------


def code_mode(state: State) -> tuple[int, int]:
    """Bitness of the code, width of the stack pointer."""
    q = state.q
    attributes = q[_CS_ATTRIBUTES]
    if attributes & AR_L and q[_EFER] & EFER_LMA:
        return 64, 64
    return (32 if attributes & AR_DB else 16), (32 if q[_SS_ATTRIBUTES] & AR_DB else 16)


def linear_rip(state: State) -> int:
    """Where the next instruction is; no check is made."""
    rip = state.rip
    return rip if code_mode(state)[0] == 64 else rip + state.cs_base & 0xFFFFFFFF


def is_protected(state: State) -> bool:
    """Protected mode proper: neither real nor virtual-8086 mode; long mode too."""
    return bool(state.q[_CR0] & CR0_PE and not state.q[_FLAGS] & RFLAGS_VM)


def are_flat(state: State, names: Sequence[str]) -> bool:
    """Whether no access through these segments can fault for their limits or types."""
    q = state.q
    for name in names:
        if q[_LIMIT[name]] != FLAT_LIMIT:
            return False
        attributes = q[_ATTRIBUTES[name]]
        if name == "cs":
            if not attributes & TYPE_CODE or not attributes & TYPE_READABLE:
                return False
        elif attributes & _FLAT_MASK != _FLAT_BITS:
            return False
    return True


def is_canonical(state: State, linear: int) -> bool:
    half = 1 << (56 if state.q[_CR4] & CR4_LA57 else 47)
    return (linear + half & _MASK_64) < 2 * half


# -- addresses -------------------------------------------------------------------------------------


def linearize(core: Core, name: str, offset: int, size: int, is_write: bool) -> int:
    """The linear address of segment:offset, after the checks of an access of `size` bytes."""
    q = core.state.q
    if q[_CS_ATTRIBUTES] & AR_L and q[_EFER] & EFER_LMA:
        if name in ("fs", "gs"):
            offset = offset + q[_BASE[name]] & _MASK_64
        half = 1 << (56 if q[_CR4] & CR4_LA57 else 47)
        last = offset + size - 1
        if (offset + half & _MASK_64) >= 2 * half or (last + half & _MASK_64) >= 2 * half:
            raise Fault(SS if name == "ss" else GP, 0)
        return offset
    attributes, limit = q[_ATTRIBUTES[name]], q[_LIMIT[name]]
    last = offset + size - 1
    if attributes & (TYPE_CODE | TYPE_EXPAND_DOWN) == TYPE_EXPAND_DOWN and attributes & AR_S:
        fits = offset > limit and last <= (0xFFFFFFFF if attributes & AR_DB else 0xFFFF)
    else:
        fits = last <= limit
    if not fits or attributes & AR_UNUSABLE:
        raise Fault(SS if name == "ss" else GP, 0)
    if q[_CR0] & CR0_PE and not q[_FLAGS] & RFLAGS_VM:
        _check_type(name, attributes, is_write)
    return offset + q[_BASE[name]] & 0xFFFFFFFF


def _check_type(name: str, attributes: int, is_write: bool) -> None:
    if attributes & TYPE_CODE:
        allowed = not is_write and attributes & TYPE_READABLE
    else:
        allowed = not is_write or attributes & TYPE_WRITABLE
    if not allowed:
        raise Fault(SS if name == "ss" else GP, 0)


def code_window(state: State, offset: int, count: int) -> tuple[int, int]:
    """The linear address of an instruction byte, and how many of `count` may be read from there on;
    #GP if not even the first.  SDM 3A, 5.3: no byte of an instruction may be beyond CS's limit, so
    none is fetched there; readability does not count.  Outside 64-bit code linear addresses go
    around after 4 GiB."""
    q = state.q
    if q[_CS_ATTRIBUTES] & AR_L and q[_EFER] & EFER_LMA:
        return offset, count
    room, linear = q[_CS_LIMIT] + 1 - offset, offset + q[_CS_BASE] & 0xFFFFFFFF
    if count <= room and linear + count <= 1 << 32:
        return linear, count
    if room <= 0:
        raise Fault(GP, 0)
    return linear, min(count, room, (1 << 32) - linear)


# -- descriptors -----------------------------------------------------------------------------------


def descriptor_address(core: Core, selector: int, vector: int = GP, external: int = 0) -> int:
    """Where a selector's descriptor lies; the fault if that is beyond its table."""
    q = core.state.q
    if selector & SELECTOR_TI:
        if q[_LDTR + 3] & AR_UNUSABLE:
            raise Fault(vector, selector & 0xFFFC | external)
        base, limit = q[_LDTR + 1], q[_LDTR + 2]
    else:
        base, limit = q[_GDTR], q[_GDTR + 1]
    if selector | 7 > limit:
        raise Fault(vector, selector & 0xFFFC | external)
    return base + (selector & 0xFFF8) & core.memory.walker.linear_mask


def read_descriptor(core: Core, selector: int, vector: int = GP, external: int = 0) -> int:
    """The eight bytes of a selector's descriptor."""
    return core.memory.read(descriptor_address(core, selector, vector, external), 8, True)


def read_wide_descriptor(core: Core, selector: int, vector: int = GP) -> tuple[int, int]:
    """A system descriptor: sixteen bytes in long mode, else eight and 0."""
    linear = descriptor_address(core, selector, vector)
    if not core.state.efer & EFER_LMA:
        return core.memory.read(linear, 8, True), 0
    descriptor_address(core, selector + 8 & 0xFFFF, vector)
    low, high = core.memory.read(linear, 8, True), core.memory.read(linear + 8, 8, True)
    if high >> 40 & 0x1F:  # SDM 3A, "System Segment Descriptors": this type field must be 0
        raise Fault(vector, selector & 0xFFFC)
    return low, high


def mark_accessed(core: Core, selector: int, descriptor: int) -> int:
    """Set the accessed flag in the table; the descriptor as it is then.

    A locked access on silicon; not counted as the instruction's own bus lock.
    """
    if not descriptor >> 40 & TYPE_ACCESSED:
        linear = descriptor_address(core, selector) + 5
        rights = core.memory.read(linear, 1, True)
        core.memory.write(linear, 1, rights | TYPE_ACCESSED, True)
        descriptor |= TYPE_ACCESSED << 40
    return descriptor


def fill(state: State, name: str, selector: int, descriptor: int, high: int = 0) -> None:
    """Put a descriptor into a segment register, unchecked."""
    q, at = state.q, _AT[name]
    parsed = _PARSED.get(descriptor)
    if parsed is None:
        if len(_PARSED) > 1000:
            _PARSED.clear()
        parsed = _PARSED[descriptor] = parse_segment(descriptor)
    q[at] = selector
    q[at + 1], q[at + 2], q[at + 3] = parsed
    if high:
        q[at + 1] |= (high & 0xFFFFFFFF) << 32


def fill_real(state: State, name: str, selector: int) -> None:
    """A load in real or virtual-8086 mode: the base follows the selector."""
    q = state.q
    at = _AT[name]
    q[at], q[at + 1] = selector, selector << 4
    if state.system_flags & RFLAGS_VM:
        q[at + 2], q[at + 3] = 0xFFFF, AR_VIRTUAL_8086
    else:  # limit and type stay as protected mode left them, as on all processors since the 386
        q[at + 3] = q[at + 3] & ~AR_UNUSABLE | AR_P | AR_S


# -- loading ---------------------------------------------------------------------------------------


def load(core: Core, name: str, selector: int) -> None:
    """MOV and POP to SS, DS, ES, FS, GS, with all checks."""
    state = core.state
    if not is_protected(state):
        fill_real(state, name, selector)
    elif name == "ss":
        load_stack(core, selector)
    elif not selector & 0xFFFC:
        load_null(core, name, selector)
    else:
        descriptor = read_descriptor(core, selector)
        check_data(selector, descriptor, state.cpl)
        fill(state, name, selector, mark_accessed(core, selector, descriptor))


def load_null(core: Core, name: str, selector: int) -> None:
    """A null selector makes a data segment register unusable."""
    q, at = core.state.q, _AT[name]
    q[at], q[at + 3] = selector, AR_UNUSABLE
    if not core.model.is_amd:  # AMD's processors keep base and limit
        q[at + 1] = q[at + 2] = 0


def check_data(selector: int, descriptor: int, cpl: int) -> None:
    """A data segment, or a readable code segment, that this privilege may use."""
    rights = descriptor >> 40 & 0xFF
    is_code = rights & TYPE_CODE
    if not rights & AR_S or (is_code and not rights & TYPE_READABLE):
        raise Fault(GP, selector & 0xFFFC)
    is_conforming = is_code and rights & TYPE_CONFORMING
    if not is_conforming and max(selector & 3, cpl) > rights >> AR_DPL_SHIFT & 3:
        raise Fault(GP, selector & 0xFFFC)
    if not rights & AR_P:
        raise Fault(NP, selector & 0xFFFC)


def load_stack(core: Core, selector: int) -> None:
    state = core.state
    cpl = state.cpl
    if not selector & 0xFFFC:
        # SDM 2B, MOV: null is for 64-bit code that is not at CPL 3.
        if code_mode(state)[0] != 64 or cpl == 3 or selector & 3 != cpl:
            raise Fault(GP, 0)
        fill_null_stack(state, selector, cpl)
        return
    descriptor = read_descriptor(core, selector)
    check_stack(selector, descriptor, cpl, GP)
    fill(state, "ss", selector, mark_accessed(core, selector, descriptor))


def check_stack(selector: int, descriptor: int, cpl: int, vector: int, external: int = 0) -> None:
    """A present, writable data segment of exactly this privilege."""
    rights = descriptor >> 40 & 0xFF
    wanted = AR_S | TYPE_WRITABLE | cpl << AR_DPL_SHIFT
    mask = AR_S | TYPE_WRITABLE | TYPE_CODE | 3 << AR_DPL_SHIFT
    if selector & 3 != cpl or rights & mask != wanted:
        raise Fault(vector, selector & 0xFFFC | external)
    if not rights & AR_P:
        raise Fault(SS, selector & 0xFFFC | external)


def load_outer_stack(core: Core, selector: int, cpl: int, to_64: bool) -> None:
    """SS on a return to ring `cpl`; null only for 64-bit code that is not ring 3."""
    if not selector & 0xFFFC:
        if not to_64 or cpl == 3:
            raise Fault(GP, 0)
        fill_null_stack(core.state, selector, cpl)
        return
    descriptor = read_descriptor(core, selector)
    check_stack(selector, descriptor, cpl, GP)
    fill(core.state, "ss", selector, mark_accessed(core, selector, descriptor))


def fill_null_stack(state: State, selector: int, cpl: int) -> None:
    """SS as 64-bit code may have it: null, with its privilege."""
    q, at = state.q, _AT["ss"]
    q[at], q[at + 1], q[at + 2] = selector, 0, FLAT_LIMIT
    q[at + 3] = AR_UNUSABLE | cpl << AR_DPL_SHIFT


def drop_privileged(core: Core, cpl: int) -> None:
    """On a return to an outer ring: data segments it may not use become null."""
    q = core.state.q
    for name in ("es", "ds", "fs", "gs"):
        attributes = q[_ATTRIBUTES[name]]
        if attributes & AR_UNUSABLE or attributes >> AR_DPL_SHIFT & 3 >= cpl:
            continue
        if not (attributes & TYPE_CODE and attributes & TYPE_CONFORMING):
            load_null(core, name, 0)
