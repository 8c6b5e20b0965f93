"""What the registers hold after power-up, and after INIT.

SDM 3A, "Processor State After Reset": INIT leaves the floating-point registers, the MSRs and
whether caches are on as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import descriptor, msr
from trapline.arch.debug import DR6_RESET, DR7_RESET
from trapline.arch.paging import PAT_RESET
from trapline.arch.registers import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_RESET,
    FCW_RESET,
    MXCSR_RESET,
    XCR0_RESET,
)
from trapline.processor.state import GPR_NAMES

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.state import State

_DATA = descriptor.AR_DATA16
_ENTRY_BASE, _ENTRY_SELECTOR, _ENTRY_IP = 0xFFFF0000, 0xF000, 0xFFF0
_CLEARED = (
    *("cr2", "cr3", "cr4", "cr8", "efer", "dr0", "dr1", "dr2", "dr3", "cpl"),
    *("interrupt_shadow", "pending_debug", "nmi_blocked", "activity"),
    *("gdtr_base", "idtr_base"),
)
_MSRS = (
    *("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp"),
    *("sysenter_eip", "tsc_aux", "debugctl", "test_ctrl"),
)


def reset(core: Core, is_bootstrap: bool = True) -> None:
    """RESET: everything, floating point and MSRs too."""
    state = core.state
    state.cr0 = CR0_RESET
    for name in _MSRS:
        setattr(state, name, 0)
    state.pat, state.xcr0 = PAT_RESET, XCR0_RESET
    state.apic_base = msr.APIC_BASE_RESET | msr.APIC_BASE_ENABLE
    if is_bootstrap:
        state.apic_base |= msr.APIC_BASE_BSP
    state.fcw, state.fsw, state.ftw, state.mxcsr = FCW_RESET, 0, 0xFF, MXCSR_RESET
    for number in range(8):
        state.set_x87(number, 0)
    for number in range(16):
        state.set_xmm(number, 0)
    core.msrs.write(msr.IA32_TSC, 0)
    init(core)


def init(core: Core) -> None:
    """INIT: to the reset vector, with what it does not touch kept."""
    state = core.state
    for name in (*GPR_NAMES, *_CLEARED):
        setattr(state, name, 0)
    state.rdx = core.model.signature
    state.rflags, state.rip = 2, _ENTRY_IP
    state.cr0 = state.cr0 & (CR0_CD | CR0_NW) | CR0_ET
    state.dr6, state.dr7 = DR6_RESET, DR7_RESET
    state.gdtr_limit = state.idtr_limit = 0xFFFF
    _segment(state, "cs", _ENTRY_SELECTOR, _ENTRY_BASE, descriptor.AR_CODE16)
    for name in ("ss", "ds", "es", "fs", "gs"):
        _segment(state, name, 0, 0, _DATA)
    _segment(state, "ldtr", 0, 0, descriptor.AR_LDT)
    _segment(state, "tr", 0, 0, descriptor.AR_TSS_BUSY)
    core.memory.notes.drop()
    core.memory.mode_changed()
    core.memory.privilege_changed()
    core.memory.breakpoints_changed()
    core.memory.flush()


def _segment(state: State, name: str, selector: int, base: int, attributes: int) -> None:
    setattr(state, f"{name}_selector", selector)
    setattr(state, f"{name}_base", base)
    setattr(state, f"{name}_limit", 0xFFFF)
    setattr(state, f"{name}_attributes", attributes)
