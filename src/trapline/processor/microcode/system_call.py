"""SYSCALL and SYSRET, SYSENTER and SYSEXIT, and what goes with them: SWAPGS, RDFSBASE and so on.

These load CS and SS with fixed contents; no descriptor is read (SDM 2B, SYSCALL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid
from trapline.arch.descriptor import AR_CODE32, AR_CODE64, AR_DATA32, FLAT_LIMIT, with_dpl
from trapline.arch.msr import STAR_SYSCALL_SHIFT, STAR_SYSRET_SHIFT
from trapline.arch.registers import (
    CR0_PE,
    CR4_FSGSBASE,
    EFER_LMA,
    EFER_SCE,
    RFLAGS_FIXED_1,
    RFLAGS_IF,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapline.processor import segment
from trapline.processor.fault import Fault
from trapline.processor.microcode import operands
from trapline.processor.microcode.registry import (
    GP,
    MASK_32,
    microcode,
    require_privilege,
    undefined,
)
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded
    from trapline.processor.state import State

_RCX, _R11, _CPL = INDEX["rcx"], INDEX["r11"], INDEX["cpl"]
_CS, _SS = INDEX["cs_selector"], INDEX["ss_selector"]
_SYSRET_FLAGS = 0x3C7FD7  # SDM 2B, SYSRET: RF, VM and the reserved bits are cleared
_STACK = {cpl: with_dpl(AR_DATA32, cpl) for cpl in (0, 3)}
_CODE = {
    (bits, cpl): with_dpl(AR_CODE64 if bits == 64 else AR_CODE32, cpl)
    for bits in (32, 64)
    for cpl in (0, 3)
}


def _go(core: Core, code: int, stack: int, bits: int, cpl: int) -> None:
    """CS and SS as these instructions load them."""
    q = core.state.q
    q[_CS], q[_CS + 1], q[_CS + 2], q[_CS + 3] = code, 0, FLAT_LIMIT, _CODE[bits, cpl]
    q[_SS], q[_SS + 1], q[_SS + 2], q[_SS + 3] = stack, 0, FLAT_LIMIT, _STACK[cpl]
    q[_CPL] = cpl
    core.memory.privilege_changed()


@microcode("syscall")
def syscall(core: Core, instruction: Decoded) -> int:
    state, is_64 = core.state, instruction.form.bitness == 64
    if not state.efer & EFER_SCE or not is_64 and not core.model.is_amd:
        raise undefined()
    q, flags = state.q, state.rflags
    q[_RCX] = instruction.next_rip
    selector = state.star >> STAR_SYSCALL_SHIFT & 0xFFFC
    if state.efer & EFER_LMA:
        q[_R11] = flags & ~RFLAGS_RF
        state.rflags = flags & ~state.sfmask & ~RFLAGS_RF | RFLAGS_FIXED_1
        target = state.lstar if is_64 else state.cstar
        bits = 64
    else:  # AMD's legacy mode
        state.rflags = flags & ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF)
        target, bits = state.star & MASK_32, 32
    _go(core, selector, selector + 8, bits, 0)
    _step_by_new_flags(core)
    return target


def _step_by_new_flags(core: Core) -> None:
    """The single step that ends here goes by the TF there is now: KVM's em_syscall, and for
    SYSRET Linux, entry_64.S."""
    core.memory.notes.stepping = bool(core.state.system_flags & RFLAGS_TF)


@microcode("sysret")
def sysret(core: Core, instruction: Decoded) -> int:
    state, is_64 = core.state, instruction.form.bitness == 64
    if not state.efer & EFER_SCE or not is_64 and not core.model.is_amd:
        raise undefined()
    require_privilege(core)
    q = state.q
    to_64 = instruction.name.endswith("q")
    if to_64 and not segment.is_canonical(state, q[_RCX]):
        raise Fault(GP, 0)
    base = state.star >> STAR_SYSRET_SHIFT
    target = q[_RCX] if to_64 else q[_RCX] & MASK_32
    if state.efer & EFER_LMA:
        state.rflags = q[_R11] & _SYSRET_FLAGS | RFLAGS_FIXED_1
    else:
        state.system_flags |= RFLAGS_IF
    code = base + (16 if to_64 else 0) | 3
    _go(core, code & 0xFFFF, base + 8 & 0xFFFF | 3, 64 if to_64 else 32, 3)
    _step_by_new_flags(core)
    return target


@microcode("sysenter")
def sysenter(core: Core, instruction: Decoded) -> int:
    state = core.state
    is_long = bool(state.efer & EFER_LMA)
    if is_long and core.model.is_amd:
        raise undefined()  # APM 3, SYSENTER: not in long mode
    selector = state.sysenter_cs & 0xFFFC
    if not state.cr0 & CR0_PE or not selector:
        raise Fault(GP, 0)
    state.system_flags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF)
    _go(core, selector, selector + 8, 64 if is_long else 32, 0)
    mask = -1 if is_long else MASK_32
    state.rsp = state.sysenter_esp & mask
    return state.sysenter_eip & mask


@microcode("sysexit")
def sysexit(core: Core, instruction: Decoded) -> int:
    state = core.state
    if state.efer & EFER_LMA and core.model.is_amd:
        raise undefined()
    selector = state.sysenter_cs & 0xFFFC
    if not state.cr0 & CR0_PE or not selector or state.cpl:
        raise Fault(GP, 0)
    rsp, rip = state.rcx, state.rdx
    to_64 = instruction.name.endswith("q")
    if to_64:
        if not (segment.is_canonical(state, rsp) and segment.is_canonical(state, rip)):
            raise Fault(GP, 0)
        code, bits = selector + 32, 64
    else:
        code, bits, rsp, rip = selector + 16, 32, rsp & MASK_32, rip & MASK_32
    _go(core, code | 3, code + 8 | 3, bits, 3)
    state.rsp = rsp
    return rip


@microcode("swapgs")
def swapgs(core: Core, instruction: Decoded) -> None:
    state = core.state
    require_privilege(core)
    state.gs_base, state.kernel_gs_base = state.kernel_gs_base, state.gs_base


# -- FS and GS bases -------------------------------------------------------------------------------


def _check_base_access(core: Core) -> State:
    if not core.model.has(cpuid.FSGSBASE) or not core.state.cr4 & CR4_FSGSBASE:
        raise undefined()
    return core.state


def _read_base(core: Core, instruction: Decoded, name: str) -> None:
    state, bound = _check_base_access(core), instruction.operands[0]
    operands.write(core, bound, bound.width >> 3, getattr(state, name))


def _write_base(core: Core, instruction: Decoded, name: str) -> None:
    state, bound = _check_base_access(core), instruction.operands[0]
    word = operands.read(core, bound, bound.width >> 3)
    if not core.msrs.is_canonical(word):
        raise Fault(GP, 0)
    setattr(state, name, word)


@microcode("rdfsbase")
def rdfsbase(core: Core, instruction: Decoded) -> None:
    _read_base(core, instruction, "fs_base")


@microcode("rdgsbase")
def rdgsbase(core: Core, instruction: Decoded) -> None:
    _read_base(core, instruction, "gs_base")


@microcode("wrfsbase")
def wrfsbase(core: Core, instruction: Decoded) -> None:
    _write_base(core, instruction, "fs_base")


@microcode("wrgsbase")
def wrgsbase(core: Core, instruction: Decoded) -> None:
    _write_base(core, instruction, "gs_base")
