"""IN, OUT, INS, OUTS: the I/O permission check, the bus, I/O breakpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.registers import CR0_PE, RFLAGS_IOPL, RFLAGS_VM
from trapline.processor import debug
from trapline.processor.fault import Fault
from trapline.processor.microcode import operands
from trapline.processor.microcode.registry import GP, microcode
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_RAX, _RDX = INDEX["rax"], INDEX["rdx"]
_DF = 1 << 10
_STRING, _REP, _IMMEDIATE = 1 << 4, 1 << 5, 1 << 6  # exit qualification
_IO_MAP_BASE = 0x66
_TSS32 = 8  # bit 3 of the type


def check_permission(core: Core, port: int, size: int) -> None:
    """#GP(0) unless CPL <= IOPL or the TSS's bitmap allows the ports (SDM 1, "I/O Port
    Addressing")."""
    state = core.state
    if not state.cr0 & CR0_PE:
        return
    flags = state.system_flags
    if state.cpl <= (flags & RFLAGS_IOPL) >> 12 and not flags & RFLAGS_VM:
        return
    if not state.tr_attributes & _TSS32 or state.tr_limit < _IO_MAP_BASE + 1:
        raise Fault(GP, 0)
    mask = core.memory.walker.linear_mask
    base = core.memory.read(state.tr_base + _IO_MAP_BASE & mask, 2, True) + (port >> 3)
    if base + 1 > state.tr_limit:
        raise Fault(GP, 0)
    bits = core.memory.read(state.tr_base + base & mask, 2, True) >> (port & 7)
    if bits & (1 << size) - 1:
        raise Fault(GP, 0)


def _begin(core: Core, instruction: Decoded, port_operand: int, size: int, is_input: bool) -> int:
    bound = instruction.operands[port_operand]
    is_immediate = bound.kind == "imm"
    port = bound.immediate & 0xFF if is_immediate else core.state.q[_RDX] & 0xFFFF
    check_permission(core, port, size)
    if core.guest is not None:
        string = _IMMEDIATE if is_immediate else 0
        core.guest.intercept_io(port, size, is_input, instruction.length, string)
    return port


def _note_breakpoints(core: Core, port: int, size: int) -> None:
    core.memory.notes.breakpoints |= debug.io_breakpoints(core.state, port, size)


@microcode("in")
def in_(core: Core, instruction: Decoded) -> None:
    target = instruction.operands[0]
    size = target.width >> 3
    port = _begin(core, instruction, 1, size, True)
    operands.write(core, target, size, core.bus.read_port(port, size))
    _note_breakpoints(core, port, size)


@microcode("out")
def out(core: Core, instruction: Decoded) -> None:
    size = instruction.operands[1].width >> 3
    port = _begin(core, instruction, 0, size, False)
    core.bus.write_port(port, size, core.state.q[_RAX] & (1 << 8 * size) - 1)
    _note_breakpoints(core, port, size)


# -- INS and OUTS ----------------------------------------------------------------------------------


@microcode("ins")
def ins(core: Core, instruction: Decoded) -> int | None:
    return _string(core, instruction, True)


@microcode("outs")
def outs(core: Core, instruction: Decoded) -> int | None:
    return _string(core, instruction, False)


def _string(core: Core, instruction: Decoded, is_input: bool) -> int | None:
    """One element; with REP, the instruction again while the count is not 0."""
    state = core.state
    bound = next(one for one in instruction.operands if one.kind == "mem")
    size, width = bound.width >> 3, bound.address_width
    mask = (1 << width) - 1
    is_repeated = bool(instruction.form.repeat)
    count = state.rcx & mask
    if is_repeated and not count:
        return None
    port = state.q[_RDX] & 0xFFFF
    check_permission(core, port, size)
    linear = operands.linear_of(core, bound, size, is_input)
    if core.guest is not None:
        string = _STRING | (_REP if is_repeated else 0)
        core.guest.intercept_io(port, size, is_input, instruction.length, string, linear)
    if is_input:
        core.memory.probe_write(linear, size)
        core.memory.write(linear, size, core.bus.read_port(port, size))
    else:
        core.bus.write_port(port, size, core.memory.read(linear, size))
    _note_breakpoints(core, port, size)
    step = -size if state.system_flags & _DF else size
    _advance(core, "rdi" if is_input else "rsi", step, width)
    if not is_repeated:
        return None
    _advance(core, "rcx", -1, width)
    if count == 1:
        return None
    core.memory.notes.is_unfinished = True
    return state.rip


def _advance(core: Core, name: str, step: int, width: int) -> None:
    """An index or count register of the address size; 32 bits clear the upper half."""
    state = core.state
    word = getattr(state, name)
    moved = word + step & (1 << width) - 1
    setattr(state, name, word & ~0xFFFF | moved if width == 16 else moved)
