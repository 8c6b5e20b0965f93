"""Descriptor-table registers, TR and LDTR, and the instructions that look at descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.descriptor import (
    AR_P,
    AR_S,
    AR_UNUSABLE,
    SELECTOR_TI,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_READABLE,
    TYPE_WRITABLE,
    SystemType,
)
from trapline.arch.registers import EFER_LMA, RFLAGS_ZF
from trapline.processor import segment
from trapline.processor.fault import Fault
from trapline.processor.microcode import operands
from trapline.processor.microcode.control import require_umip
from trapline.processor.microcode.registry import GP, microcode, require_privilege, undefined
from trapline.processor.segment import NP

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_LAR_TYPES = frozenset({1, 2, 3, 4, 5, 9, 11, 12})
_LAR_TYPES_LONG = frozenset({2, 9, 11, 12})
_LSL_TYPES = frozenset({1, 2, 3, 9, 11})
_LSL_TYPES_LONG = frozenset({2, 9, 11})
_LAR_MASK = 0x00F0FF00


# -- GDTR and IDTR ---------------------------------------------------------------------------------


def _store(core: Core, instruction: Decoded, name: str) -> None:
    require_umip(core)
    state, bound = core.state, instruction.operands[0]
    size = 8 if instruction.form.bitness == 64 else 4
    linear = operands.linear_of(core, bound, size + 2, True)
    word = getattr(state, f"{name}_limit") | getattr(state, f"{name}_base") << 16
    core.memory.write(linear, size + 2, word & (1 << 8 * (size + 2)) - 1)


def _load(core: Core, instruction: Decoded, name: str) -> None:
    require_privilege(core)
    state, bound = core.state, instruction.operands[0]
    size = 8 if instruction.form.bitness == 64 else 4
    word = core.memory.read(operands.linear_of(core, bound, size + 2), size + 2)
    base = word >> 16
    if size == 8:
        if not core.msrs.is_canonical(base):
            raise Fault(GP, 0)
    elif instruction.form.operand_width == 16:
        base &= 0xFFFFFF
    setattr(state, f"{name}_base", base)
    setattr(state, f"{name}_limit", word & 0xFFFF)


@microcode("sgdt")
def sgdt(core: Core, instruction: Decoded) -> None:
    _store(core, instruction, "gdtr")


@microcode("sidt")
def sidt(core: Core, instruction: Decoded) -> None:
    _store(core, instruction, "idtr")


@microcode("lgdt")
def lgdt(core: Core, instruction: Decoded) -> None:
    _load(core, instruction, "gdtr")


@microcode("lidt")
def lidt(core: Core, instruction: Decoded) -> None:
    _load(core, instruction, "idtr")


# -- LDTR and TR -----------------------------------------------------------------------------------


def _store_selector(core: Core, instruction: Decoded, selector: int) -> None:
    if not segment.is_protected(core.state):
        raise undefined()
    require_umip(core)
    bound = instruction.operands[0]
    operands.write(core, bound, 2 if bound.kind == "mem" else bound.width >> 3, selector)


@microcode("sldt")
def sldt(core: Core, instruction: Decoded) -> None:
    _store_selector(core, instruction, core.state.ldtr_selector)


@microcode("str")
def str_(core: Core, instruction: Decoded) -> None:
    _store_selector(core, instruction, core.state.tr_selector)


def _new_selector(core: Core, instruction: Decoded) -> int:
    if not segment.is_protected(core.state):
        raise undefined()
    require_privilege(core)
    return operands.read(core, instruction.operands[0], 2)


def _check_base(core: Core, low: int, high: int) -> None:
    base = low >> 16 & 0xFFFFFF | low >> 32 & 0xFF000000 | (high & 0xFFFFFFFF) << 32
    if core.state.efer & EFER_LMA and not core.msrs.is_canonical(base):
        raise Fault(GP, 0)


@microcode("lldt")
def lldt(core: Core, instruction: Decoded) -> None:
    selector, state = _new_selector(core, instruction), core.state
    if not selector & 0xFFFC:
        state.ldtr_selector, state.ldtr_attributes = selector, AR_UNUSABLE
        return
    if selector & SELECTOR_TI:
        raise Fault(GP, selector & 0xFFFC)
    low, high = segment.read_wide_descriptor(core, selector)
    if low >> 40 & 0x1F != SystemType.LDT:
        raise Fault(GP, selector & 0xFFFC)
    if not low >> 40 & AR_P:
        raise Fault(NP, selector & 0xFFFC)
    _check_base(core, low, high)
    segment.fill(state, "ldtr", selector, low, high)


@microcode("ltr")
def ltr(core: Core, instruction: Decoded) -> None:
    """The TSS becomes busy; a locked access on silicon, not the instruction's own."""
    selector, state = _new_selector(core, instruction), core.state
    if not selector & 0xFFFC or selector & SELECTOR_TI:
        raise Fault(GP, selector & 0xFFFC)
    low, high = segment.read_wide_descriptor(core, selector)
    kind = low >> 40 & 0x1F
    is_16 = kind == SystemType.TSS16_AVAILABLE and not state.efer & EFER_LMA
    if kind != SystemType.TSS_AVAILABLE and not is_16:
        raise Fault(GP, selector & 0xFFFC)
    if not low >> 40 & AR_P:
        raise Fault(NP, selector & 0xFFFC)
    _check_base(core, low, high)
    linear = segment.descriptor_address(core, selector) + 5
    core.memory.write(linear, 1, low >> 40 & 0xFF | 2, True)
    segment.fill(state, "tr", selector, low | 2 << 40, high)


# -- VERR, VERW, LAR, LSL --------------------------------------------------------------------------


def _set_zf(core: Core, is_set: bool) -> None:
    state = core.state
    flags = state.arithmetic_flags
    state.arithmetic_flags = flags | RFLAGS_ZF if is_set else flags & ~RFLAGS_ZF


def _look(core: Core, selector: int) -> int | None:
    """The descriptor of a selector, None where there is none."""
    if not selector & 0xFFFC:
        return None
    try:
        linear = segment.descriptor_address(core, selector)
    except Fault:
        return None
    return core.memory.read(linear, 8, True)


def _is_visible(core: Core, selector: int, descriptor: int) -> bool:
    rights = descriptor >> 40 & 0xFF
    if rights & AR_S and rights & TYPE_CODE and rights & TYPE_CONFORMING:
        return True
    return rights >> 5 & 3 >= max(core.state.cpl, selector & 3)


def _verify(core: Core, instruction: Decoded, is_write: bool) -> None:
    if not segment.is_protected(core.state):
        raise undefined()
    selector = operands.read(core, instruction.operands[0], 2)
    descriptor = _look(core, selector)
    allowed = False
    if descriptor is not None and descriptor >> 40 & AR_S:
        rights = descriptor >> 40 & 0xFF
        if rights & TYPE_CODE:
            allowed = bool(rights & TYPE_READABLE) and not is_write
        else:
            allowed = bool(rights & TYPE_WRITABLE) or not is_write
        allowed = allowed and _is_visible(core, selector, descriptor)
    _set_zf(core, allowed)


@microcode("verr")
def verr(core: Core, instruction: Decoded) -> None:
    _verify(core, instruction, False)


@microcode("verw")
def verw(core: Core, instruction: Decoded) -> None:
    _verify(core, instruction, True)


def _seen(core: Core, instruction: Decoded, types: frozenset[int]) -> int | None:
    """The descriptor that LAR or LSL may tell of."""
    if not segment.is_protected(core.state):
        raise undefined()
    selector = operands.read(core, instruction.operands[1], 2)
    descriptor = _look(core, selector)
    if descriptor is None or not _is_visible(core, selector, descriptor):
        return None
    if not descriptor >> 40 & AR_S and descriptor >> 40 & 0xF not in types:
        return None
    return descriptor


@microcode("lar")
def lar(core: Core, instruction: Decoded) -> None:
    is_long = core.state.efer & EFER_LMA
    descriptor = _seen(core, instruction, _LAR_TYPES_LONG if is_long else _LAR_TYPES)
    _set_zf(core, descriptor is not None)
    if descriptor is not None:
        size = operands.size_of(instruction)
        operands.write(core, instruction.operands[0], size, descriptor >> 32 & _LAR_MASK)


@microcode("lsl")
def lsl(core: Core, instruction: Decoded) -> None:
    is_long = core.state.efer & EFER_LMA
    descriptor = _seen(core, instruction, _LSL_TYPES_LONG if is_long else _LSL_TYPES)
    _set_zf(core, descriptor is not None)
    if descriptor is not None:
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        if descriptor >> 55 & 1:
            limit = limit << 12 | 0xFFF
        operands.write(core, instruction.operands[0], operands.size_of(instruction), limit)


@microcode("arpl")
def arpl(core: Core, instruction: Decoded) -> None:
    if not segment.is_protected(core.state):
        raise undefined()
    destination, source = instruction.operands
    selector, rpl = operands.read(core, destination, 2), operands.read(core, source, 2) & 3
    is_lower = selector & 3 < rpl
    if is_lower:
        operands.write(core, destination, 2, selector & ~3 | rpl)
    _set_zf(core, is_lower)
