"""Instructions built from iced-x86's codes: any form, any operands, and programs with labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from iced_x86 import (
    BlockEncoder,
    Decoder,
    Encoder,
    Instruction,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
)


@dataclass(frozen=True)
class Memory:
    """A memory operand as ModRM and SIB say it."""

    base: int = Register.NONE
    index: int = Register.NONE
    scale: int = 1
    displacement: int = 0
    displacement_size: int = 0  # 0, 1, or the size of an address for a full displacement
    segment: int = Register.NONE


Operand = int | Memory | str  # a register or a number; memory; a label

_K, _O = OpCodeOperandKind, OpKind
_FIXED = {
    _K.ES: Register.ES, _K.CS: Register.CS, _K.SS: Register.SS, _K.DS: Register.DS,
    _K.FS: Register.FS, _K.GS: Register.GS, _K.AL: Register.AL, _K.CL: Register.CL,
    _K.AX: Register.AX, _K.DX: Register.DX, _K.EAX: Register.EAX, _K.RAX: Register.RAX,
    _K.ST0: Register.ST0,
}  # fmt: skip
_IMMEDIATE = {
    _K.IMM8: _O.IMMEDIATE8, _K.IMM8_CONST_1: _O.IMMEDIATE8, _K.IMM8SEX16: _O.IMMEDIATE8TO16,
    _K.IMM8SEX32: _O.IMMEDIATE8TO32, _K.IMM8SEX64: _O.IMMEDIATE8TO64, _K.IMM16: _O.IMMEDIATE16,
    _K.IMM32: _O.IMMEDIATE32, _K.IMM32SEX64: _O.IMMEDIATE32TO64, _K.IMM64: _O.IMMEDIATE64,
}  # fmt: skip
_BRANCH = {
    _K.BR16_1: _O.NEAR_BRANCH16, _K.BR16_2: _O.NEAR_BRANCH16, _K.BR32_1: _O.NEAR_BRANCH32,
    _K.BR32_4: _O.NEAR_BRANCH32, _K.BR64_1: _O.NEAR_BRANCH64, _K.BR64_4: _O.NEAR_BRANCH64,
}  # fmt: skip
# By address size.  XLAT's RBX+AL is handled apart.
_STRING = {
    _K.SEG_RSI: {64: _O.MEMORY_SEG_RSI, 32: _O.MEMORY_SEG_ESI, 16: _O.MEMORY_SEG_SI},
    _K.SEG_RDI: {64: _O.MEMORY_SEG_RDI, 32: _O.MEMORY_SEG_EDI, 16: _O.MEMORY_SEG_DI},
    _K.ES_RDI: {64: _O.MEMORY_ESRDI, 32: _O.MEMORY_ESEDI, 16: _O.MEMORY_ESDI},
}
_XLAT_BASE = {64: Register.RBX, 32: Register.EBX, 16: Register.BX}

IMPLIED = frozenset(_FIXED) | frozenset(_STRING) | {_K.SEG_RBX_AL, _K.IMM8_CONST_1}
IMMEDIATES = frozenset(_IMMEDIATE) - {_K.IMM8_CONST_1}
BRANCHES = frozenset(_BRANCH)


@cache
def kinds(code: int) -> tuple[int, ...]:
    """The operand kinds of a code, those the opcode implies among them."""
    described = OpCodeInfo(code)
    return tuple(described.op_kind(n) for n in range(described.op_count))


def build(
    code: int, *operands: Operand, address_bits: int = 64, segment: int = Register.NONE
) -> Instruction:
    """An instruction; `operands` are those the opcode does not imply, in order."""
    instruction = Instruction()
    instruction.code = code
    given = iter(operands)
    immediates = 0
    for number, kind in enumerate(kinds(code)):
        if kind in _FIXED:
            instruction.set_op_kind(number, _O.REGISTER)
            instruction.set_op_register(number, _FIXED[kind])
        elif kind in _STRING:
            instruction.set_op_kind(number, _STRING[kind][address_bits])
        elif kind == _K.SEG_RBX_AL:
            _set_memory(instruction, number, Memory(_XLAT_BASE[address_bits], Register.AL, 1))
        elif kind in _IMMEDIATE:
            value = 1 if kind == _K.IMM8_CONST_1 else next(given)
            second = kind == _K.IMM8 and immediates
            instruction.set_op_kind(number, _O.IMMEDIATE8_2ND if second else _IMMEDIATE[kind])
            instruction.set_immediate_i64(number, _signed(value))
            immediates += 1
        else:
            _set_given(instruction, number, kind, next(given))
    if segment != Register.NONE:
        instruction.segment_prefix = segment
    return instruction


def _set_given(instruction: Instruction, number: int, kind: int, operand: Operand) -> None:
    if kind in _BRANCH:
        instruction.set_op_kind(number, _BRANCH[kind])
        instruction.near_branch64 = 0 if isinstance(operand, str) else operand
    elif isinstance(operand, Memory):
        _set_memory(instruction, number, operand)
    else:
        instruction.set_op_kind(number, _O.REGISTER)
        instruction.set_op_register(number, operand)


def _set_memory(instruction: Instruction, number: int, memory: Memory) -> None:
    instruction.set_op_kind(number, _O.MEMORY)
    instruction.memory_base = memory.base
    instruction.memory_index = memory.index
    instruction.memory_index_scale = memory.scale
    instruction.memory_displacement = memory.displacement & 0xFFFF_FFFF_FFFF_FFFF
    instruction.memory_displ_size = memory.displacement_size
    instruction.segment_prefix = memory.segment


def _signed(value: Operand) -> int:
    if not isinstance(value, int):
        raise TypeError("an immediate is a number")
    return (value & 0xFFFF_FFFF_FFFF_FFFF ^ 1 << 63) - (1 << 63)


def encode(instruction: Instruction, linear: int, bits: int = 64) -> bytes:
    """The bytes of an instruction at an address."""
    encoder = Encoder(bits)
    encoder.encode(instruction, linear)
    return encoder.take_buffer()


class Program:
    """A run of instructions with labels."""

    def __init__(self, bits: int = 64) -> None:
        self.bits = bits
        self._lines: list[tuple[Instruction, str | None]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """The next instruction bears this name."""
        self._labels[name] = len(self._lines)

    def add(self, code: int, *operands: Operand, rep: bool = False) -> None:
        instruction = build(code, *operands)
        instruction.has_rep_prefix = rep
        label = next((operand for operand in operands if isinstance(operand, str)), None)
        self._lines.append((instruction, label))

    def append(self, instruction: Instruction) -> None:
        """An instruction made elsewhere."""
        self._lines.append((instruction, None))

    def assemble(self, linear: int) -> tuple[bytes, dict[str, int]]:
        """The bytes for this address, and where each label came to lie."""
        block = BlockEncoder(self.bits)
        for number, (instruction, label) in enumerate(self._lines):
            instruction.ip = number + 1  # a name until the encoder places it
            if label is not None:
                instruction.near_branch64 = self._labels[label] + 1
            block.add(instruction)
        code = block.encode(linear)
        return code, self._places(code, linear)

    def _places(self, code: bytes, linear: int) -> dict[str, int]:
        starts = [i.ip for i in Decoder(self.bits, code, ip=linear)]
        return {name: starts[number] for name, number in self._labels.items()}
