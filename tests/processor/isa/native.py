"""The same instruction on the fast engine, held against the reference engine's whole answer."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.processor.isa.machine import ENTRY, SEGMENT_BASES, SIZE, After, interp, prepare
from trapline.arch.descriptor import AR_DB, AR_DPL, AR_L, AR_P, AR_S, TYPE_CODE, TYPE_WRITABLE
from trapline.arch.msr import IA32_MTRR_DEF_TYPE
from trapline.arch.paging import PTE_P, PTE_U, PTE_W
from trapline.arch.registers import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    RFLAGS_RF,
    RFLAGS_VM,
)
from trapline.processor.core import Core
from trapline.processor.fault import Fault
from trapline.processor.memory import Ram
from trapline.processor.state import GPR_NAMES, SEGMENTS

_TABLES = 0x100000
_PAGE = 0x1000
_FLAGS = PTE_P | PTE_W | PTE_U
_COMPARED = (*GPR_NAMES, "rip", "system_flags", "arithmetic_flags")
_SYSTEM = ("cr4", "cpl", "cs_limit")  # what changes the mode: the reference engine's alone


@cache
def _core() -> Core:
    """A processor in long mode at CPL 3, its first 128 KiB mapped one to one."""
    ram = Ram(2 << 20)
    for level in range(3):
        below = _TABLES + (level + 1) * _PAGE
        ram.load(_TABLES + level * _PAGE, (below | _FLAGS).to_bytes(8, "little"))
    entries = (page | _FLAGS for page in range(0, SIZE, _PAGE))
    ram.load(_TABLES + 3 * _PAGE, b"".join(entry.to_bytes(8, "little") for entry in entries))
    core = Core("max", ram)
    state = core.state
    state.cr0, state.cr3 = CR0_PE | CR0_PG | CR0_WP, _TABLES
    state.cr4, state.efer = CR4_PAE | CR4_OSFXSR, EFER_LME | EFER_LMA
    state.mxcsr, state.fcw = 0x1F80, 0x37F
    state.pat = 0x0007_0406_0007_0406
    core.msrs.mtrrs.write(IA32_MTRR_DEF_TYPE, 0x806)  # write-back, or every LOCK is a bus lock
    for name in SEGMENTS[:6]:
        setattr(state, f"{name}_limit", 0xFFFFFFFF)
    return core


def _set_mode(core: Core, bits: int, stack: int) -> None:
    state = core.state
    base = AR_P | AR_S | AR_DPL | TYPE_WRITABLE
    for name in SEGMENTS[:6]:
        setattr(state, f"{name}_base", SEGMENT_BASES.get(name, 0))
        setattr(state, f"{name}_attributes", base | (AR_DB if stack == 32 else 0))
    size = {64: AR_L, 32: AR_DB, 16: 0}[bits]
    state.cs_attributes = base | TYPE_CODE | size


def both(text: str, code: str, bits: int = 64, stack: int | None = None, **given: Any) -> After:
    """The reference engine's answer, after the fast engine has given the same.

    Where it would not run at all (microcode, another mode) there is nothing to compare.
    """
    after = interp(text, code, bits, stack, **given)
    # RF is cleared at the boundary, which the reference engine here does not have.
    is_special = given.get("system", 0) & (RFLAGS_VM | RFLAGS_RF)
    if after.microcode or is_special or any(name in given for name in _SYSTEM):
        return after
    core, ram = _core(), _core().bus
    assert isinstance(ram, Ram)
    state = core.state
    _set_mode(core, bits, stack or bits)
    for name in GPR_NAMES:
        setattr(state, name, 0)
    state.rflags = 2
    ram.bytes[:SIZE] = bytes(SIZE)
    prepare(state, ram.bytes, given)
    ram.load(ENTRY, bytes.fromhex(code))
    core.memory.mode_changed()
    core.memory.privilege_changed()
    fault = _step(core, after)
    _compare(core, ram, after, fault)
    return after


def _step(core: Core, after: After) -> Fault | None:
    """Once, or until a REP instruction has done what it did on the reference engine."""
    repeats = bool(after.instruction.form.repeat)
    try:
        while True:
            core.step_natively()
            if not repeats or core.state.rip != ENTRY:
                return None
    except Fault as raised:
        return raised


def _compare(core: Core, ram: Ram, after: After, fault: Fault | None) -> None:
    expected = {name: getattr(after.machine.state, name) for name in _COMPARED}
    assert {name: getattr(core.state, name) for name in _COMPARED} == expected
    raised = (None, None) if fault is None else (fault.vector, fault.error_code)
    assert raised == (after.fault, after.error_code)
    code = slice(ENTRY, ENTRY + after.length)
    memory = after.machine.memory.bytes
    memory[code] = ram.bytes[code]
    assert ram.bytes[:SIZE] == memory
