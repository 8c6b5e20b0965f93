"""The debug registers at work: which breakpoints match, and what a #DB does to DR6 and DR7.

When a debug exception is taken is the boundary's; the bits and their polarity are arch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.cpuid import BUS_LOCK_DETECT, RTM
from trapline.arch.debug import (
    DR7_BREAKPOINTS_ENABLED,
    DR7_GD,
    PAYLOAD_ENABLED_BREAKPOINT,
    Breakpoint,
    BreakpointKind,
    enabled_breakpoints,
    force_dr6_reserved,
    force_dr7_reserved,
    merge_dr6,
)
from trapline.arch.msr import DEBUGCTL_BTF, DEBUGCTL_LBR
from trapline.arch.registers import CR4_DE
from trapline.processor.guest import PRIVILEGED_SOFTWARE_EXCEPTION

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.cpuid import Model
    from trapline.processor.state import State

_ADDRESSES = ("dr0", "dr1", "dr2", "dr3")


def breakpoints(state: State) -> tuple[list[tuple[int, Breakpoint]], frozenset[int]]:
    """The enabled breakpoints on data, each with its address, and the numbers of the linear pages
    that those on execution are in."""
    data: list[tuple[int, Breakpoint]] = []
    pages: set[int] = set()
    if state.dr7 & DR7_BREAKPOINTS_ENABLED:
        for one in enabled_breakpoints(state.dr7):
            linear = getattr(state, _ADDRESSES[one.index])
            if one.kind in (BreakpointKind.WRITE, BreakpointKind.ACCESS):
                data.append((linear, one))
            elif one.kind == BreakpointKind.EXECUTE:
                pages.add(linear >> 12)
    return data, frozenset(pages)


def code_breakpoints(state: State, linear: int) -> int:
    """The payload bits of the execution breakpoints at a linear address."""
    hit = 0
    for one in enabled_breakpoints(state.dr7):
        if one.kind == BreakpointKind.EXECUTE and getattr(state, _ADDRESSES[one.index]) == linear:
            hit |= one.payload
    return hit


def io_breakpoints(state: State, port: int, size: int) -> int:
    """The payload of the I/O breakpoints that an access to ports meets."""
    if not state.dr7 & DR7_BREAKPOINTS_ENABLED or not state.cr4 & CR4_DE:
        return 0
    hit = 0
    for one in enabled_breakpoints(state.dr7):
        watched = getattr(state, _ADDRESSES[one.index])
        if one.kind == BreakpointKind.IO and one.touches(watched, port, size):
            hit |= one.payload | PAYLOAD_ENABLED_BREAKPOINT
    return hit


def record(core: Core, payload: int, kind: int) -> None:
    """What the processor changes when it delivers a #DB itself: DR6, DR7.GD, DEBUGCTL."""
    state, model = core.state, core.model
    if kind != PRIVILEGED_SOFTWARE_EXCEPTION or not model.is_amd:  # AMD: INT1 leaves DR6 alone
        causes = payload & ~PAYLOAD_ENABLED_BREAKPOINT
        has_bld, has_rtm = model.has(BUS_LOCK_DETECT), model.has(RTM)
        state.dr6 = merge_dr6(state.dr6, causes, has_bld, has_rtm)
    state.dr7 &= ~DR7_GD
    # SDM 3B, "IA32_DEBUGCTL MSR"; BLD stays.
    state.debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF)


def dr6_fixed(model: Model) -> int:
    """The bits of DR6 that stay 1 whatever is written."""
    return force_dr6_reserved(0, model.has(BUS_LOCK_DETECT), model.has(RTM))


def write_dr6(core: Core, word: int) -> None:
    """MOV to DR6, reserved bits forced."""
    model = core.model
    core.state.dr6 = force_dr6_reserved(word, model.has(BUS_LOCK_DETECT), model.has(RTM))


def write_dr7(core: Core, word: int) -> None:
    """MOV to DR7, reserved bits forced; breakpoints take effect."""
    core.state.dr7 = force_dr7_reserved(word, core.model.has(RTM))
    core.memory.breakpoints_changed()
