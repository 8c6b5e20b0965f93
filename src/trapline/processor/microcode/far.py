"""Far JMP, CALL and RET: real mode, code segments, call gates, task gates and TSSs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.descriptor import (
    AR_DB,
    AR_P,
    AR_S,
    TYPE_CODE,
    TYPE_CONFORMING,
    SystemType,
)
from trapline.arch.registers import EFER_LMA
from trapline.processor import delivery, segment, tasks
from trapline.processor.fault import Fault
from trapline.processor.microcode import operands
from trapline.processor.microcode.registry import GP, MASK_64, microcode
from trapline.processor.segment import NP, SS, TS

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_CODE_RIGHTS = AR_S | TYPE_CODE
_TASKS = (
    SystemType.TSS_AVAILABLE,
    SystemType.TSS16_AVAILABLE,
    SystemType.TSS_BUSY,
    SystemType.TSS16_BUSY,
)


# -- code segments ---------------------------------------------------------------------------------


def _limit(descriptor: int) -> int:
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    return limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit


def check_target(core: Core, descriptor: int, rip: int) -> None:
    """#GP(0) for a target outside the code segment, or not canonical in a 64-bit one."""
    is_64 = core.state.efer & EFER_LMA and descriptor >> 53 & 1
    if not segment.is_canonical(core.state, rip) if is_64 else rip > _limit(descriptor):
        raise Fault(GP, 0)


def _check_mode(core: Core, selector: int, descriptor: int) -> None:
    """In long mode L and D exclude each other."""
    if core.state.efer & EFER_LMA and descriptor >> 53 & 3 == 3:
        raise Fault(GP, selector & 0xFFFC)


def _check_code(core: Core, selector: int, descriptor: int, cpl: int) -> None:
    """A code segment that ring `cpl` may jump to or call directly (SDM 2A, JMP)."""
    rights = descriptor >> 40 & 0xFF
    dpl = rights >> 5 & 3
    allowed = dpl <= cpl if rights & TYPE_CONFORMING else dpl == cpl and selector & 3 <= cpl
    if not allowed:
        raise Fault(GP, selector & 0xFFFC)
    _check_mode(core, selector, descriptor)
    if not rights & AR_P:
        raise Fault(NP, selector & 0xFFFC)


def check_code_for_return(core: Core, selector: int, rip: int) -> int:
    """The descriptor of a code segment that RET or IRET may return to."""
    if not selector & 0xFFFC:
        raise Fault(GP, 0)
    descriptor = segment.read_descriptor(core, selector)
    rights, rpl = descriptor >> 40 & 0xFF, selector & 3
    dpl = rights >> 5 & 3
    if rights & _CODE_RIGHTS != _CODE_RIGHTS or rpl < core.state.cpl:
        raise Fault(GP, selector & 0xFFFC)
    if dpl > rpl if rights & TYPE_CONFORMING else dpl != rpl:
        raise Fault(GP, selector & 0xFFFC)
    _check_mode(core, selector, descriptor)
    if not rights & AR_P:
        raise Fault(NP, selector & 0xFFFC)
    check_target(core, descriptor, rip)
    return descriptor


def _load_code(core: Core, selector: int, descriptor: int, cpl: int) -> None:
    descriptor = segment.mark_accessed(core, selector, descriptor)
    segment.fill(core.state, "cs", selector & 0xFFFC | cpl, descriptor)


def _pointer(core: Core, instruction: Decoded) -> tuple[int, int]:
    """Selector and offset of a far JMP or CALL."""
    bound = instruction.operands[0]
    if bound.kind == "far":
        return bound.selector, bound.immediate
    size = operands.size_of(instruction)
    linear = operands.linear_of(core, bound, size + 2)
    offset = core.memory.read(linear, size)
    return core.memory.read(linear + size & core.memory.walker.linear_mask, 2), offset


# -- JMP -------------------------------------------------------------------------------------------


@microcode("jmp_far")
def jmp_far(core: Core, instruction: Decoded) -> int:
    state = core.state
    selector, rip = _pointer(core, instruction)
    if not segment.is_protected(state):
        return _jump_real(core, selector, rip)
    if not selector & 0xFFFC:
        raise Fault(GP, 0)
    descriptor = segment.read_descriptor(core, selector)
    rights, cpl = descriptor >> 40 & 0xFF, state.cpl
    if rights & AR_S:
        if not rights & TYPE_CODE:
            raise Fault(GP, selector & 0xFFFC)
        _check_code(core, selector, descriptor, cpl)
    else:
        gate = _system(core, selector, descriptor, tasks.JMP, instruction)
        if gate is None:
            return state.rip
        selector, rip, descriptor, _ = gate
        rights = descriptor >> 40 & 0xFF
        if not rights & TYPE_CONFORMING and rights >> 5 & 3 != cpl:
            raise Fault(GP, selector & 0xFFFC)
    check_target(core, descriptor, rip)
    _load_code(core, selector, descriptor, cpl)
    return rip


def _jump_real(core: Core, selector: int, rip: int) -> int:
    if rip > core.state.cs_limit:
        raise Fault(GP, 0)
    segment.fill_real(core.state, "cs", selector)
    return rip


def _system(
    core: Core, selector: int, descriptor: int, source: int, instruction: Decoded
) -> tuple[int, int, int, int] | None:
    """A gate or TSS as a target: selector, offset and descriptor behind a call gate with the
    gate itself; None after a task switch."""
    state, kind, code = core.state, descriptor >> 40 & 0x1F, selector & 0xFFFC
    is_long = bool(state.efer & EFER_LMA)
    dpl = descriptor >> 45 & 3
    if kind == SystemType.CALL_GATE or kind == SystemType.CALL_GATE16 and not is_long:
        return _call_gate(core, selector, descriptor)
    if is_long or kind != SystemType.TASK_GATE and kind not in _TASKS:
        raise Fault(GP, code)
    if dpl < max(state.cpl, selector & 3):
        raise Fault(GP, code)
    if kind == SystemType.TASK_GATE:
        if not descriptor >> 47 & 1:
            raise Fault(NP, code)
        selector = descriptor >> 16 & 0xFFFF
    tasks.switch(core, selector, source, instruction.length)
    return None


def _call_gate(core: Core, selector: int, gate: int) -> tuple[int, int, int, int]:
    state, code = core.state, selector & 0xFFFC
    high = 0
    if state.efer & EFER_LMA:
        gate, high = segment.read_wide_descriptor(core, selector)
    if gate >> 45 & 3 < max(state.cpl, selector & 3):
        raise Fault(GP, code)
    if not gate >> 47 & 1:
        raise Fault(NP, code)
    target = gate >> 16 & 0xFFFF
    if not target & 0xFFFC:
        raise Fault(GP, 0)
    descriptor = segment.read_descriptor(core, target)
    rights = descriptor >> 40 & 0xFF
    if rights & _CODE_RIGHTS != _CODE_RIGHTS or rights >> 5 & 3 > state.cpl:
        raise Fault(GP, target & 0xFFFC)
    if state.efer & EFER_LMA and descriptor >> 53 & 3 != 1:
        raise Fault(GP, target & 0xFFFC)
    if not rights & AR_P:
        raise Fault(NP, target & 0xFFFC)
    offset = gate & 0xFFFF
    if gate >> 43 & 1:
        offset |= gate >> 32 & 0xFFFF0000 | (high & 0xFFFFFFFF) << 32
    return target, offset, descriptor, gate


# -- CALL ------------------------------------------------------------------------------------------


@microcode("call_far")
def call_far(core: Core, instruction: Decoded) -> int:
    state = core.state
    selector, rip = _pointer(core, instruction)
    size = operands.size_of(instruction)
    stack = operands.Stack(core)
    if not segment.is_protected(state):
        stack.push(size, state.cs_selector, instruction.next_rip)
        rip = _jump_real(core, selector, rip)
        stack.commit()
        return rip
    if not selector & 0xFFFC:
        raise Fault(GP, 0)
    descriptor = segment.read_descriptor(core, selector)
    rights, cpl = descriptor >> 40 & 0xFF, state.cpl
    if not rights & AR_S:
        gate = _system(core, selector, descriptor, tasks.CALL, instruction)
        if gate is None:
            return state.rip
        return _call_through_gate(core, instruction, *gate)
    if not rights & TYPE_CODE:
        raise Fault(GP, selector & 0xFFFC)
    _check_code(core, selector, descriptor, cpl)
    check_target(core, descriptor, rip)
    stack.push(size, state.cs_selector, instruction.next_rip)
    _load_code(core, selector, descriptor, cpl)
    stack.commit()
    return rip


def _call_through_gate(
    core: Core, instruction: Decoded, selector: int, rip: int, descriptor: int, gate: int
) -> int:
    """To the same ring on this stack, to an inner one on its own, parameters copied."""
    state = core.state
    rights, cpl = descriptor >> 40 & 0xFF, state.cpl
    dpl = rights >> 5 & 3
    is_long = bool(state.efer & EFER_LMA)
    size = 8 if is_long else 4 if gate >> 43 & 1 else 2
    check_target(core, descriptor, rip)
    if rights & TYPE_CONFORMING or dpl == cpl:
        stack = operands.Stack(core)
        stack.push(size, state.cs_selector, instruction.next_rip)
        stack.commit()
        _load_code(core, selector, descriptor, cpl)
        return rip
    if is_long:
        _push_long_frame(core, dpl, instruction.next_rip)
    else:
        present = operands.Stack(core)
        copied = [present.pop(size) for _ in range(gate >> 32 & 0x1F)]
        inner = delivery.Stack.of_task(core, dpl, 0)
        frame = [instruction.next_rip, state.cs_selector, *copied, state.rsp, state.ss_selector]
        inner.load(core, inner.push(core, frame, size, dpl, 0), dpl)
    _load_code(core, selector, descriptor, dpl)
    state.cpl = dpl
    core.memory.privilege_changed()
    return rip


def _push_long_frame(core: Core, cpl: int, rip: int) -> None:
    state, memory = core.state, core.memory
    offset = 4 + 8 * cpl
    if offset + 7 > state.tr_limit:
        raise Fault(TS, state.tr_selector & 0xFFFC)
    rsp = memory.read(state.tr_base + offset, 8, True) - 32
    frame = rip | state.cs_selector << 64 | state.rsp << 128 | state.ss_selector << 192
    if not segment.is_canonical(state, rsp):
        raise Fault(SS, 0)
    memory.write(rsp, 32, frame, True)
    state.rsp = rsp
    segment.fill_null_stack(state, cpl, cpl)


# -- RET -------------------------------------------------------------------------------------------


def load_outer_stack(core: Core, selector: int, rsp: int, cpl: int, to_64: bool) -> None:
    """SS and RSP on a return to ring `cpl`, and to 64-bit code or not.

    A 16-bit stack takes only the low 16 bits of what was popped (Linux, espfix_64.c); above bit
    31 RSP stays as it was on AMD's processors, and is 0 on Intel's (Linux selftests, sigreturn.c).
    """
    state = core.state
    segment.load_outer_stack(core, selector, cpl, to_64)
    if not to_64 and not state.ss_attributes & AR_DB:
        kept = MASK_64 ^ 0xFFFF if core.model.is_amd else 0xFFFF0000
        rsp = state.rsp & kept | rsp & 0xFFFF
    state.rsp = rsp


@microcode("retf")
def retf(core: Core, instruction: Decoded) -> int:
    state = core.state
    size = operands.size_of(instruction)
    release = instruction.operands[0].immediate & 0xFFFF if instruction.operands else 0
    stack = operands.Stack(core)
    rip, selector = stack.pop(size), stack.pop(size) & 0xFFFF
    if not segment.is_protected(state):
        rip = _jump_real(core, selector, rip)
        stack.release(release)
        stack.commit()
        return rip
    descriptor = check_code_for_return(core, selector, rip)
    new_cpl = selector & 3
    stack.release(release)
    if new_cpl == state.cpl:
        _load_code(core, selector, descriptor, new_cpl)
        stack.commit()
        return rip
    rsp, stack_selector = stack.pop(size), stack.pop(size) & 0xFFFF
    to_64 = bool(state.efer & EFER_LMA and descriptor >> 53 & 1)
    load_outer_stack(core, stack_selector, rsp, new_cpl, to_64)
    _load_code(core, selector, descriptor, new_cpl)
    state.cpl = new_cpl
    after = operands.Stack(core)
    after.release(release)
    after.commit()
    segment.drop_privileged(core, new_cpl)
    core.memory.privilege_changed()
    return rip
