"""Loading segment registers: MOV, POP, LDS and its relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.registers import CS, SEGMENT_NAMES, SS
from trapline.processor import segment
from trapline.processor.boundary import SHADOW_MOV_SS
from trapline.processor.microcode import operands
from trapline.processor.microcode.registry import microcode, undefined

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded

_FAR_LOADS = {"les": "es", "lds": "ds", "lss": "ss", "lfs": "fs", "lgs": "gs"}


@microcode("mov_segment")
def mov_segment(core: Core, instruction: Decoded) -> None:
    destination, source = instruction.operands
    if destination.number == CS or destination.number > 5:
        raise undefined()
    selector = operands.read(core, source, 2)
    segment.load(core, SEGMENT_NAMES[destination.number], selector)
    if destination.number == SS:
        core.state.interrupt_shadow = SHADOW_MOV_SS


@microcode("pop_segment")
def pop_segment(core: Core, instruction: Decoded) -> None:
    number = instruction.operands[0].number
    stack = operands.Stack(core)
    selector = stack.pop(operands.size_of(instruction)) & 0xFFFF
    segment.load(core, SEGMENT_NAMES[number], selector)
    stack.commit()
    if number == SS:
        core.state.interrupt_shadow = SHADOW_MOV_SS


@microcode("load_far_pointer")
def load_far_pointer(core: Core, instruction: Decoded) -> None:
    """LDS, LES, LFS, LGS, LSS."""
    destination, source = instruction.operands
    if source.kind != "mem":
        raise undefined()
    size = operands.size_of(instruction)
    linear = operands.linear_of(core, source, size + 2)
    word = core.memory.read(linear, size + 2)
    segment.load(core, _FAR_LOADS[instruction.name], word >> 8 * size)
    operands.write(core, destination, size, word)
