"""VMX and SVM instructions as a guest executes them, MONITOR and MWAIT.

No processor here is a hypervisor by these instructions: entering guests is done from outside.  So
without a guest they are undefined, as outside of VMX operation and with EFER.SVME clear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid
from trapline.arch.registers import CR0_PE, EFER_LMA, RFLAGS_VM
from trapline.processor import segment
from trapline.processor.fault import Fault
from trapline.processor.microcode.registry import (
    GP,
    MASK_32,
    MASK_64,
    microcode,
    require_privilege,
    undefined,
)

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_BREAK_ON_INTERRUPT = 1  # the one extension of MWAIT, which changes nothing here


def _is_protected(core: Core) -> bool:
    state = core.state
    return bool(state.cr0 & CR0_PE) and not state.system_flags & RFLAGS_VM


@microcode("vmx_instruction")
def vmx_instruction(core: Core, instruction: Decoded) -> None:
    """SDM 3C, "VMX Instructions": by the mode undefined, else the exit comes before the CPL."""
    state, guest = core.state, core.guest
    is_compatibility = state.efer & EFER_LMA and instruction.form.bitness != 64
    if guest is None or not core.model.has(cpuid.VMX) or not _is_protected(core):
        raise undefined()
    if is_compatibility:
        raise undefined()
    guest.intercept(instruction.form.name, instruction.length)
    raise undefined()


@microcode("vmcall")
def vmcall(core: Core, instruction: Decoded) -> None:
    """At any CPL and in any mode."""
    if core.guest is not None and core.model.has(cpuid.VMX):
        core.guest.intercept("vmcall", instruction.length)
    raise undefined()


@microcode("svm_instruction")
def svm_instruction(core: Core, instruction: Decoded) -> None:
    """APM 3, VMRUN and its like: in protected mode at CPL 0.  Not intercepted, they would be the
    host's affair in the middle of its guest."""
    if core.guest is None or not core.model.has(cpuid.SVM) or not _is_protected(core):
        raise undefined()
    require_privilege(core)
    core.guest.intercept(instruction.form.name, instruction.length)
    raise undefined()


@microcode("vmmcall")
def vmmcall(core: Core, instruction: Decoded) -> None:
    """At any CPL; undefined unless it is intercepted."""
    if core.guest is not None and core.model.has(cpuid.SVM):
        core.guest.intercept("vmmcall", instruction.length)
    raise undefined()


def _require_monitor(core: Core) -> None:
    if core.state.cpl or not core.model.has(cpuid.MONITOR):
        raise undefined()


@microcode("monitor")
def monitor(core: Core, instruction: Decoded) -> None:
    """The address is checked as a byte's read; nothing is watched, as MWAIT does not wait."""
    _require_monitor(core)
    state = core.state
    if core.guest is not None:
        core.guest.intercept("monitor", instruction.length)
    if state.rcx & MASK_32:
        raise Fault(GP, 0)
    name = next((one.segment for one in instruction.operands if one.kind == "mem"), "ds")
    mask = MASK_64 if instruction.form.bitness == 64 else MASK_32
    core.memory.read(segment.linearize(core, name, state.rax & mask, 1, False), 1)


@microcode("mwait")
def mwait(core: Core, instruction: Decoded) -> None:
    """A hint, which may end at once for any reason, and here does."""
    _require_monitor(core)
    if core.guest is not None:
        core.guest.intercept("mwait", instruction.length)
    if core.state.rcx & MASK_32 & ~_BREAK_ON_INTERRUPT:
        raise Fault(GP, 0)
