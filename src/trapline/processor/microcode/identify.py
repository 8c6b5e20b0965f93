"""What the processor tells of itself: CPUID, MSRs, time stamps, counters, XCR0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid as leaves
from trapline.arch.registers import CR4_OSXSAVE, CR4_PCE, CR4_TSD
from trapline.processor.fault import Fault
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

_RAX, _RCX, _RDX, _RBX = (INDEX[name] for name in ("rax", "rcx", "rdx", "rbx"))


@microcode("cpuid")
def cpuid(core: Core, instruction: Decoded) -> None:
    if core.guest is not None:
        core.guest.intercept("cpuid", instruction.length)
    state, q = core.state, core.state.q
    answer = core.model.cpuid(state, q[_RAX] & MASK_32, q[_RCX] & MASK_32, core.apic_id)
    q[_RAX], q[_RBX], q[_RCX], q[_RDX] = answer


@microcode("rdmsr")
def rdmsr(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    q = core.state.q
    number = q[_RCX] & MASK_32
    if core.guest is not None:
        core.guest.intercept_msr(number, False, instruction.length)
    _give(core, core.msrs.read(number))


@microcode("wrmsr")
def wrmsr(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    q = core.state.q
    number = q[_RCX] & MASK_32
    if core.guest is not None:
        core.guest.intercept_msr(number, True, instruction.length)
    core.msrs.write(number, (q[_RDX] & MASK_32) << 32 | q[_RAX] & MASK_32)


@microcode("rdtsc")
def rdtsc(core: Core, instruction: Decoded) -> None:
    _check_time_stamp(core, "rdtsc", instruction)
    _give(core, core.msrs.tsc())


@microcode("rdtscp")
def rdtscp(core: Core, instruction: Decoded) -> None:
    if not core.model.has(leaves.RDTSCP):
        raise undefined()
    _check_time_stamp(core, "rdtscp", instruction)
    _give(core, core.msrs.tsc())
    core.state.rcx = core.state.tsc_aux & MASK_32


@microcode("rdpmc")
def rdpmc(core: Core, instruction: Decoded) -> None:
    """There are no performance counters, so what is left are the checks."""
    if core.state.cpl and not core.state.cr4 & CR4_PCE:
        raise Fault(GP, 0)
    if core.guest is not None:
        core.guest.intercept("rdpmc", instruction.length)
    raise Fault(GP, 0)


@microcode("xgetbv")
def xgetbv(core: Core, instruction: Decoded) -> None:
    state = core.state
    if not state.cr4 & CR4_OSXSAVE:
        raise undefined()
    if state.rcx & MASK_32:
        raise Fault(GP, 0)
    _give(core, state.xcr0)


@microcode("rdpid")
def rdpid(core: Core, instruction: Decoded) -> None:
    if not core.model.has(leaves.RDPID):
        raise undefined()
    core.state.q[instruction.operands[0].offset >> 3] = core.state.tsc_aux & MASK_32


def _check_time_stamp(core: Core, name: str, instruction: Decoded) -> None:
    if core.state.cpl and core.state.cr4 & CR4_TSD:
        raise Fault(GP, 0)
    if core.guest is not None:
        core.guest.intercept(name, instruction.length)


def _give(core: Core, word: int) -> None:
    """EDX:EAX := word."""
    q = core.state.q
    q[_RAX], q[_RDX] = word & MASK_32, word >> 32
