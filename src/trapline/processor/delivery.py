"""Through the IDT to a handler, in every mode: gates, stacks, what is pushed, what is cleared.

Faults first, commits last: a fault on the way leaves the registers as they were.  What such a
fault leads to is in `exceptions`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from trapline.arch.descriptor import (
    AR_DB,
    AR_UNUSABLE,
    TYPE_EXPAND_DOWN,
    SystemType,
)
from trapline.arch.registers import (
    CR0_PE,
    EFER_LMA,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapline.processor import segment, tasks
from trapline.processor.fault import Fault
from trapline.processor.guest import (
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
)
from trapline.processor.memory import NonCanonical
from trapline.processor.segment import GP, NP, SS, TS
from trapline.processor.state import ARITHMETIC_FLAGS, INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.state import State

_RSP, _RIP, _CPL = INDEX["rsp"], INDEX["rip"], INDEX["cpl"]
_CS, _SS, _SS_ATTRIBUTES = INDEX["cs_selector"], INDEX["ss_selector"], INDEX["ss_attributes"]
_FLAGS, _EFER = INDEX["system_flags"], INDEX["efer"]
_IDTR_BASE, _IDTR_LIMIT = INDEX["idtr_base"], INDEX["idtr_limit"]
_TR_BASE, _TR_LIMIT = INDEX["tr_base"], INDEX["tr_limit"]
_CLEARED = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM
_MASK_64 = (1 << 64) - 1
_FRAME, _FRAME_ERROR = struct.Struct("<5Q"), struct.Struct("<6Q")
_CODE_64 = 0x00201800_00000000  # L, and S with the code bit of the type
_CODE_64_MASK = 0x00601800_00000000  # and D clear
_PRESENT = 1 << 47
_DATA_SEGMENTS = ("es", "ds", "fs", "gs")  # as virtual-8086 mode's frame has them, upwards


def enter(core: Core, vector: int, error_code: int | None, kind: int, length: int) -> None:
    """Push the frame of an event and go to its handler."""
    state = core.state
    rip = state.q[_RIP]
    is_software = kind >= SOFTWARE_INTERRUPT
    is_long, engine = state.q[_EFER] & EFER_LMA, core.engine
    if is_long and engine and not is_software and engine.deliver(vector, error_code):
        core.memory.privilege_changed()
        return
    if is_software:
        wide = segment.code_mode(state)[0] == 64
        rip = rip + length & (_MASK_64 if wide else 0xFFFFFFFF)
        is_software = kind != PRIVILEGED_SOFTWARE_EXCEPTION
    if is_long:
        _enter_long(core, vector, error_code, is_software, rip)
    elif state.cr0 & CR0_PE:
        _check_virtual_8086(state, kind)
        _enter_protected(core, vector, error_code, is_software, rip)
    else:
        _enter_real(core, vector, rip)
    core.memory.privilege_changed()


# -- long mode -------------------------------------------------------------------------------------


def _enter_long(
    core: Core, vector: int, error_code: int | None, is_software: bool, rip: int
) -> None:
    """SDM 3A, "Exception and Interrupt Handling in 64-bit Mode"."""
    state, external = core.state, 0 if is_software else 1
    q = state.q
    cpl = q[_CPL]
    gate, offset_high = _long_gate(core, vector, is_software, external)
    selector = gate >> 16 & 0xFFFC
    if not selector:
        raise Fault(GP, external)
    code = segment.read_descriptor(core, selector, GP, external)
    dpl = code >> 45 & 3
    if code & _CODE_64_MASK != _CODE_64 or dpl > cpl:
        raise Fault(GP, selector | external)
    if not code & _PRESENT:
        raise Fault(NP, selector | external)
    new_cpl = cpl if code >> 42 & 1 else dpl
    rsp = _long_stack(core, gate >> 32 & 7, new_cpl, cpl, external) & ~0xF
    flags = state.rflags
    words = (rip, q[_CS], flags, q[_RSP], q[_SS])
    frame = _FRAME.pack(*words) if error_code is None else _FRAME_ERROR.pack(error_code, *words)
    rsp = rsp - len(frame) & _MASK_64
    try:
        core.memory.write(rsp, len(frame), int.from_bytes(frame, "little"), new_cpl < 3)
    except NonCanonical:
        raise Fault(SS, external) from None
    segment.fill(state, "cs", selector | new_cpl, segment.mark_accessed(core, selector, code))
    q[_RSP], q[_RIP] = (
        rsp,
        gate & 0xFFFF | gate >> 32 & 0xFFFF0000 | (offset_high & 0xFFFFFFFF) << 32,
    )
    q[_FLAGS] = flags & ~(ARITHMETIC_FLAGS | _CLEARED | (0 if gate >> 40 & 1 else RFLAGS_IF))
    if new_cpl != cpl:
        q[_CPL] = new_cpl
        segment.fill_null_stack(state, new_cpl, new_cpl)


def _long_gate(core: Core, vector: int, is_software: bool, external: int) -> tuple[int, int]:
    """Both quadwords of a vector's gate, which must be an interrupt or trap gate."""
    q, read = core.state.q, core.memory.read
    if 16 * vector + 15 > q[_IDTR_LIMIT]:
        raise Fault(GP, 8 * vector | 2 | external)
    at = q[_IDTR_BASE] + 16 * vector
    gate, offset_high = read(at, 8, True), read(at + 8, 8, True)
    if gate >> 40 & 0x1E != 0xE or is_software and (gate >> 45 & 3) < q[_CPL]:
        raise Fault(GP, 8 * vector | 2 | external)
    if not gate & _PRESENT:
        raise Fault(NP, 8 * vector | 2 | external)
    return gate, offset_high


def _long_stack(core: Core, interrupt_stack: int, new_cpl: int, cpl: int, external: int) -> int:
    """RSP of the handler: an interrupt stack, the inner ring's, or the present one."""
    q = core.state.q
    if interrupt_stack:
        offset = 28 + 8 * interrupt_stack
    elif new_cpl < cpl:
        offset = 4 + 8 * new_cpl
    else:
        return q[_RSP]
    if offset + 7 > q[_TR_LIMIT]:
        raise Fault(TS, core.state.tr_selector & 0xFFFC | external)
    return core.memory.read(q[_TR_BASE] + offset, 8, True)


# -- protected mode --------------------------------------------------------------------------------


def _check_virtual_8086(state: State, kind: int) -> None:
    # SDM 3B, "Virtual-8086 Mode": INT n needs IOPL 3; INT3, INTO and INT1 do not.
    limits = state.system_flags & (RFLAGS_VM | RFLAGS_IOPL)
    if kind == SOFTWARE_INTERRUPT and limits & RFLAGS_VM and limits != RFLAGS_VM | RFLAGS_IOPL:
        raise Fault(GP, 0)


def _enter_protected(
    core: Core, vector: int, error_code: int | None, is_software: bool, eip: int
) -> None:
    """SDM 3A, "Exception or Interrupt Handling", and 3B, "Virtual-8086 Mode"."""
    state, external = core.state, 0 if is_software else 1
    gate = _protected_gate(core, vector, is_software, external)
    kind, selector = gate >> 40 & 0x1F, gate >> 16 & 0xFFFF
    if kind == SystemType.TASK_GATE:
        length = eip - state.rip & 0xFFFFFFFF  # INT1's too, though its gate is not checked
        tasks.switch(core, selector, tasks.IDT, length, error_code, external)
        return
    code, new_cpl = _handler_code(core, selector, external)
    size = 4 if kind >= 14 else 2
    target = gate & 0xFFFF | (gate >> 32 & 0xFFFF0000 if size == 4 else 0)
    frame = [eip, state.cs_selector, state.rflags]
    stack = Stack.present(state)
    was_virtual = state.system_flags & RFLAGS_VM
    if new_cpl < state.cpl:
        frame += [state.rsp, state.ss_selector]
        if was_virtual:
            frame += [getattr(state, f"{name}_selector") for name in _DATA_SEGMENTS]
        stack = Stack.of_task(core, new_cpl, external)
    if error_code is not None:
        frame.insert(0, error_code)
    _check_target(code, target, external)
    stack.load(core, stack.push(core, frame, size, new_cpl, external), new_cpl)
    if was_virtual:
        for name in _DATA_SEGMENTS:
            segment.load_null(core, name, 0)
    code = segment.mark_accessed(core, selector, code)
    segment.fill(state, "cs", selector & 0xFFFC | new_cpl, code)
    state.cpl, state.rip = new_cpl, target
    state.system_flags &= ~(_CLEARED | (0 if kind & 1 else RFLAGS_IF))


def _protected_gate(core: Core, vector: int, is_software: bool, external: int) -> int:
    state = core.state
    if 8 * vector + 7 > state.idtr_limit:
        raise Fault(GP, 8 * vector | 2 | external)
    gate = core.memory.read(state.idtr_base + 8 * vector & 0xFFFFFFFF, 8, True)
    is_wrong = gate >> 40 & 0x1F not in (5, 6, 7, 14, 15)
    if is_wrong or is_software and (gate >> 45 & 3) < state.cpl:
        raise Fault(GP, 8 * vector | 2 | external)
    if not gate & _PRESENT:
        raise Fault(NP, 8 * vector | 2 | external)
    return gate


def _handler_code(core: Core, selector: int, external: int) -> tuple[int, int]:
    """The descriptor of a handler's code segment, and the ring it runs in."""
    state = core.state
    if not selector & 0xFFFC:
        raise Fault(GP, external)
    code = segment.read_descriptor(core, selector, GP, external)
    dpl, is_conforming = code >> 45 & 3, code >> 42 & 1
    if code >> 43 & 3 != 3 or dpl > state.cpl:
        raise Fault(GP, selector & 0xFFFC | external)
    if not code & _PRESENT:
        raise Fault(NP, selector & 0xFFFC | external)
    if state.system_flags & RFLAGS_VM and (is_conforming or dpl):
        raise Fault(GP, selector & 0xFFFC | external)
    return code, state.cpl if is_conforming else dpl


def _check_target(code: int, target: int, external: int) -> None:
    limit = code & 0xFFFF | code >> 32 & 0xF0000
    if code >> 55 & 1:
        limit = limit << 12 | 0xFFF
    if target > limit:
        raise Fault(GP, external)


class Stack:
    """A stack that a transfer is about to use: the present one, or an inner ring's."""

    __slots__ = ("selector", "descriptor", "base", "limit", "attributes", "pointer")

    def __init__(self, base: int, limit: int, attributes: int, pointer: int) -> None:
        self.selector: int | None = None  # None: SS stays
        self.descriptor = 0
        self.base, self.limit, self.attributes = base, limit, attributes
        self.pointer = pointer

    @classmethod
    def present(cls, state: State) -> Stack:
        return cls(state.ss_base, state.ss_limit, state.ss_attributes, state.rsp)

    @classmethod
    def of_task(cls, core: Core, cpl: int, external: int) -> Stack:
        """The stack that the 16- or 32-bit TSS names for a ring, checked."""
        state = core.state
        task = state.tr_selector & 0xFFFC | external
        is_32 = state.tr_attributes & 8
        offset, size = (4 + 8 * cpl, 4) if is_32 else (2 + 4 * cpl, 2)
        if offset + size + 1 > state.tr_limit:
            raise Fault(TS, task)
        at = state.tr_base + offset
        pointer = core.memory.read(at & 0xFFFFFFFF, size, True)
        selector = core.memory.read(at + size & 0xFFFFFFFF, 2, True)
        if not selector & 0xFFFC:
            raise Fault(TS, external)
        descriptor = segment.read_descriptor(core, selector, TS, external)
        segment.check_stack(selector, descriptor, cpl, TS, external)
        base = descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        attributes = descriptor >> 40 & 0xF0FF
        if descriptor >> 55 & 1:
            limit = limit << 12 | 0xFFF
        stack = cls(base, limit, attributes, pointer)
        stack.selector, stack.descriptor = selector, descriptor
        return stack

    def push(self, core: Core, words: list[int], size: int, cpl: int, external: int) -> int:
        """Write the words, the first one lowest, below the pointer; the new stack pointer.

        Nothing is written unless all of it can be.
        """
        mask = 0xFFFFFFFF if self.attributes & AR_DB else 0xFFFF
        code = external if self.selector is None else self.selector & 0xFFFC | external
        implicit, low, places = cpl < 3, self.pointer, []
        for word in reversed(words):
            low = low - size & mask
            self._check(low, low + size - 1, code)
            linear = self.base + low & 0xFFFFFFFF
            core.memory.probe_write(linear, size, implicit)
            places.append((linear, word & (1 << 8 * size) - 1))
        for linear, word in places:
            core.memory.write(linear, size, word, implicit)
        return self.pointer & ~mask & 0xFFFFFFFF | low

    def _check(self, first: int, last: int, code: int) -> None:
        if self.attributes & TYPE_EXPAND_DOWN:
            top = 0xFFFFFFFF if self.attributes & AR_DB else 0xFFFF
            fits = first > self.limit and last <= top
        else:
            fits = last <= self.limit
        if not fits or self.attributes & AR_UNUSABLE:
            raise Fault(SS, code)

    def load(self, core: Core, pointer: int, cpl: int) -> None:
        """Make this the stack."""
        if self.selector is not None:
            descriptor = segment.mark_accessed(core, self.selector, self.descriptor)
            segment.fill(core.state, "ss", self.selector & 0xFFFC | cpl, descriptor)
        core.state.rsp = pointer


# -- real mode -------------------------------------------------------------------------------------


def _enter_real(core: Core, vector: int, ip: int) -> None:
    """SDM 3B, "Interrupt and Exception Handling" in real-address mode."""
    state = core.state
    if 4 * vector + 3 > state.idtr_limit:
        raise Fault(GP, 0)
    entry = core.memory.read(state.idtr_base + 4 * vector & 0xFFFFFFFF, 4, True)
    frame = [ip & 0xFFFF, state.cs_selector, state.rflags & 0xFFFF]
    stack = Stack.present(state)
    state.rsp = stack.push(core, frame, 2, 0, 0)
    segment.fill_real(state, "cs", entry >> 16)
    state.rip = entry & 0xFFFF
    state.system_flags &= ~(_CLEARED | RFLAGS_IF)


__all__ = ["Stack", "enter"]
