"""INT n, INT3, INTO, INT1, and IRET in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.registers import (
    EFER_LMA,
    RFLAGS_AC,
    RFLAGS_FIXED_1,
    RFLAGS_ID,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_RF,
    RFLAGS_STATUS,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
    RFLAGS_VM,
)
from trapline.processor import exceptions, segment, tasks
from trapline.processor.fault import Fault
from trapline.processor.guest import (
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
)
from trapline.processor.microcode import operands
from trapline.processor.microcode.far import check_code_for_return, load_outer_stack
from trapline.processor.microcode.registry import GP, MASK_64, microcode
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_DF = 1 << 10
_ALWAYS = RFLAGS_STATUS | RFLAGS_TF | _DF | RFLAGS_NT
_WIDE = RFLAGS_RF | RFLAGS_AC | RFLAGS_ID
_ALL_FLAGS = _ALWAYS | _WIDE | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP
_RSP, _CPL = INDEX["rsp"], INDEX["cpl"]


@microcode("int")
def int_(core: Core, instruction: Decoded) -> int:
    vector = instruction.operands[0].immediate & 0xFF
    return exceptions.software_interrupt(core, vector, SOFTWARE_INTERRUPT, instruction.length)


@microcode("int3")
def int3(core: Core, instruction: Decoded) -> int:
    return exceptions.software_interrupt(core, 3, SOFTWARE_EXCEPTION, instruction.length)


@microcode("into")
def into(core: Core, instruction: Decoded) -> int | None:
    if not core.state.rflags & RFLAGS_OF:
        return None
    return exceptions.software_interrupt(core, 4, SOFTWARE_EXCEPTION, instruction.length)


@microcode("int1")
def int1(core: Core, instruction: Decoded) -> int:
    kind = PRIVILEGED_SOFTWARE_EXCEPTION
    return exceptions.software_interrupt(core, 1, kind, instruction.length)


# -- IRET ------------------------------------------------------------------------------------------


@microcode("iret", "iretd", "iretq")
def iret(core: Core, instruction: Decoded) -> int:
    state = core.state
    size = operands.size_of(instruction)
    if not segment.is_protected(state):
        rip = _iret_real(core, size)
    elif state.efer & EFER_LMA:
        if state.system_flags & RFLAGS_NT:
            raise Fault(GP, 0)
        rip = _iret_protected(core, size)
    elif state.system_flags & RFLAGS_NT:
        link = core.memory.read(state.tr_base, 2, True)
        tasks.switch(core, link, tasks.IRET, instruction.length)
        rip = state.rip
    else:
        rip = _iret_protected(core, size)
    state.nmi_blocked = 0
    core.memory.privilege_changed()
    return rip


def _iret_real(core: Core, size: int) -> int:
    """Real mode, and virtual-8086 mode with IOPL 3."""
    state = core.state
    is_virtual = state.system_flags & RFLAGS_VM
    if is_virtual and state.system_flags & RFLAGS_IOPL != RFLAGS_IOPL:
        raise Fault(GP, 0)
    stack = operands.Stack(core)
    rip, selector, image = stack.pop(size), stack.pop(size) & 0xFFFF, stack.pop(size)
    if rip > (0xFFFF if is_virtual else state.cs_limit):
        raise Fault(GP, 0)
    mask = _ALWAYS | RFLAGS_IF | (0 if is_virtual else RFLAGS_IOPL)
    if size == 4:
        mask |= _WIDE
    state.rflags = state.rflags & ~mask | image & mask | RFLAGS_FIXED_1
    segment.fill_real(state, "cs", selector)
    stack.commit()
    return rip


def _flags_mask(core: Core, size: int) -> int:
    """Which flags IRET may load, by CPL and IOPL (SDM 2A, IRET)."""
    state = core.state
    cpl = state.q[_CPL]
    if cpl == 0 and size > 2:
        return _ALL_FLAGS
    mask = _ALWAYS | (_WIDE if size > 2 else 0)
    if cpl <= (state.system_flags & RFLAGS_IOPL) >> 12:
        mask |= RFLAGS_IF
    return mask | (RFLAGS_IOPL if cpl == 0 else 0)


def _iret_protected(core: Core, size: int) -> int:
    """To the same ring or an outer one; from 64-bit code always with a stack."""
    state = core.state
    if size == 8:
        return _iret_64(core)
    stack = operands.Stack(core)
    rip, selector, image = stack.pop(size), stack.pop(size) & 0xFFFF, stack.pop(size)
    is_long = bool(state.efer & EFER_LMA)
    if image & RFLAGS_VM and size == 4 and state.cpl == 0 and not is_long:
        return _iret_to_virtual_8086(core, stack, rip, selector, image)
    code = check_code_for_return(core, selector, rip)
    new_cpl = selector & 3
    if segment.code_mode(state)[0] == 64 or new_cpl != state.cpl:
        rsp, stack_selector = stack.pop(size), stack.pop(size) & 0xFFFF
        load_outer_stack(core, stack_selector, rsp, new_cpl, bool(code >> 53 & 1 and is_long))
    else:
        stack.commit()
    return _return_to(core, rip, selector, code, image, size)


def _iret_64(core: Core) -> int:
    """The frame of five quadwords, read at once: this is on the path of every #DB."""
    state = core.state
    linear = segment.linearize(core, "ss", state.q[_RSP], 40, False)
    frame = core.memory.read(linear, 40)
    rip, selector, image = frame & MASK_64, frame >> 64 & 0xFFFF, frame >> 128 & MASK_64
    code = check_code_for_return(core, selector, rip)
    rsp, stack_selector = frame >> 192 & MASK_64, frame >> 256 & 0xFFFF
    load_outer_stack(core, stack_selector, rsp, selector & 3, bool(code >> 53 & 1))
    return _return_to(core, rip, selector, code, image, 8)


def _return_to(core: Core, rip: int, selector: int, code: int, image: int, size: int) -> int:
    """The end of IRET to a protected-mode ring: flags, CS, and the segments left behind."""
    state = core.state
    new_cpl, cpl = selector & 3, state.q[_CPL]
    mask = _flags_mask(core, size)
    kept = state.rflags & ~mask if mask != _ALL_FLAGS else 0
    state.rflags = kept | image & mask | RFLAGS_FIXED_1
    segment.fill(state, "cs", selector, segment.mark_accessed(core, selector, code))
    state.q[_CPL] = new_cpl
    if new_cpl != cpl:
        segment.drop_privileged(core, new_cpl)
    return rip


def _iret_to_virtual_8086(
    core: Core, stack: operands.Stack, eip: int, selector: int, image: int
) -> int:
    state = core.state
    rsp = stack.pop(4)
    selectors = {name: stack.pop(4) & 0xFFFF for name in ("ss", "es", "ds", "fs", "gs")}
    if eip > 0xFFFF:
        raise Fault(GP, 0)
    mask = _flags_mask(core, 4) | RFLAGS_VM
    state.rflags = state.rflags & ~mask | image & mask | RFLAGS_FIXED_1
    state.cpl = 3
    for name, loaded in (selectors | {"cs": selector}).items():
        segment.fill_real(state, name, loaded)
    state.rsp = rsp
    return eip
