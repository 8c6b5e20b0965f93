"""Facts about operand kinds and codes: which registers, which size of memory, read or written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from iced_x86 import (
    Code,
    InstructionInfoFactory,
    MemorySize,
    MemorySizeExt,
    OpAccess,
    OpCodeInfo,
    OpCodeOperandKind,
    Register,
)

from tests.against.assemble import BRANCHES, IMMEDIATES, IMPLIED, Memory, Operand, build, kinds
from tests.against.forms import EITHER_KINDS, MEMORY_KINDS

_K, _R, _S = OpCodeOperandKind, Register, MemorySize

LOW8 = (_R.AL, _R.CL, _R.DL, _R.BL, _R.AH, _R.CH, _R.DH, _R.BH)
NEW8 = (_R.SPL, _R.BPL, _R.SIL, _R.DIL, *range(_R.R8L, _R.R15L + 1))
_SETS = {
    **dict.fromkeys((_K.R16_OR_MEM, _K.R16_REG, _K.R16_RM, _K.R16_OPCODE), _R.AX),
    **dict.fromkeys((_K.R32_OR_MEM, _K.R32_REG, _K.R32_RM, _K.R32_OPCODE), _R.EAX),
    **dict.fromkeys((_K.R64_OR_MEM, _K.R64_REG, _K.R64_RM, _K.R64_OPCODE), _R.RAX),
    **dict.fromkeys((_K.XMM_OR_MEM, _K.XMM_REG, _K.XMM_RM), _R.XMM0),
}
_KINDS8 = frozenset((_K.R8_OR_MEM, _K.R8_REG, _K.R8_OPCODE))
KINDS_XMM = frozenset((_K.XMM_OR_MEM, _K.XMM_REG, _K.XMM_RM))
KINDS_MM = frozenset((_K.MM_OR_MEM, _K.MM_REG, _K.MM_RM))
WIDTHS = {_K.IMM8: 8, _K.IMM16: 16, _K.IMM32: 32, _K.IMM64: 64}
SIGNED = {_K.IMM8SEX16: 8, _K.IMM8SEX32: 8, _K.IMM8SEX64: 8, _K.IMM32SEX64: 32}
_ELEMENTS = {
    **dict.fromkeys((_S.UINT8, _S.INT8), "i8"),
    **dict.fromkeys((_S.UINT16, _S.INT16), "i16"),
    **dict.fromkeys((_S.UINT32, _S.INT32), "i32"),
    _S.FLOAT32: "f32",
    _S.FLOAT64: "f64",
    _S.FLOAT80: "f80",
    _S.BCD: "bcd",
}
_SIZES = {_S.XSAVE: 576, _S.XSAVE64: 576}
_WRITING = frozenset((
    OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE,
))  # fmt: skip
# The number of a general register, and how far its bits are shifted.
GENERAL: dict[int, tuple[int, int, int]] = {
    **{_R.AX + n: (n, 0, 16) for n in range(16)},
    **{_R.EAX + n: (n, 0, 32) for n in range(16)},
    **{_R.RAX + n: (n, 0, 64) for n in range(16)},
    **{name: (n % 4, 8 * (n // 4), 8) for n, name in enumerate(LOW8)},
    **{name: (n + 4, 0, 8) for n, name in enumerate(NEW8)},
}


@cache
def memory_size(code: int) -> int:
    if code == Code.MOVSXD_R16_RM16:
        return 4  # see undefined.DIVERGENCES
    size = OpCodeInfo(code).memory_size
    return _SIZES.get(size, MemorySizeExt.size(size))


@cache
def element_kind(code: int) -> str:
    return _ELEMENTS.get(MemorySizeExt.element_type(OpCodeInfo(code).memory_size), "i64")


@cache
def _memory_access(code: int) -> int:
    """How a code's memory operand is used, as iced-x86 says it."""
    operands: list[Operand] = []
    position = 0
    for number, kind in enumerate(kinds(code)):
        if kind in MEMORY_KINDS | EITHER_KINDS:
            position = number
            operands.append(Memory(Register.RAX))
        elif kind not in IMPLIED:
            operands.append(0 if kind in IMMEDIATES | BRANCHES else next(choices(kind, 32)))
    return InstructionInfoFactory().info(build(code, *operands)).op_access(position)


def writes_memory(code: int) -> bool:
    return _memory_access(code) in _WRITING


def touches_memory(code: int) -> bool:
    return _memory_access(code) not in (OpAccess.NONE, OpAccess.NO_MEM_ACCESS)


def choices(kind: int, bits: int) -> Iterator[int]:
    """The registers an operand kind may name."""
    every = 16 if bits == 64 else 8
    if kind in _KINDS8:
        yield from LOW8
        if bits == 64:
            yield from NEW8
    elif kind in _SETS:
        yield from range(_SETS[kind], _SETS[kind] + every)
    elif kind in KINDS_MM:
        yield from range(_R.MM0, _R.MM0 + 8)
    elif kind == _K.STI_OPCODE:
        yield from range(_R.ST0, _R.ST0 + 8)
    elif kind == _K.SEG_REG:
        yield from range(_R.ES, _R.ES + 6)
    else:
        raise ValueError(f"operand kind {kind} is not known")
