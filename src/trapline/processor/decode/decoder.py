"""Bytes to instructions.  iced-x86 finds the fields; here they become operands and forms.

Nothing outside this package sees an iced-x86 object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, cast

import iced_x86
from iced_x86 import DecoderOptions, MemorySizeExt, OpKind, Register

from trapline.processor.decode.instruction import TOO_LONG, Bound, Decoded
from trapline.processor.decode.limits import LONGEST, is_too_long, is_undefined
from trapline.processor.language import FormFacts, OperandKind
from trapline.processor.state import GPR_NAMES, OFFSET, XMM_OFFSET

_ZERO = OFFSET["zero"]
_RSP = OFFSET["rsp"]
_STACK_BASES = frozenset((Register.RSP, Register.ESP, Register.RBP, Register.EBP))
_SEGMENT_NAMES = {
    Register.ES: "es", Register.CS: "cs", Register.SS: "ss",
    Register.DS: "ds", Register.FS: "fs", Register.GS: "gs",
}  # fmt: skip


def _mnemonics() -> dict[int, str]:
    module = iced_x86.Mnemonic
    return {
        number: name.lower()
        for name, number in vars(module).items()
        if name.isupper() and isinstance(number, int)
    }


_MNEMONICS = _mnemonics()


def _registers() -> dict[int, tuple[str, int, int, int]]:
    """iced register -> (kind, width, byte offset in State, number)."""
    table: dict[int, tuple[str, int, int, int]] = {}
    named = {k: v for k, v in vars(Register).items() if k.isupper() and isinstance(v, int)}
    legacy = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
    for number, name in enumerate(GPR_NAMES):
        offset = OFFSET[name]
        if number < 8:
            names = {64: "R" + legacy[number], 32: "E" + legacy[number], 16: legacy[number]}
            names[8] = ("AL", "CL", "DL", "BL", "SPL", "BPL", "SIL", "DIL")[number]
        else:
            names = {64: f"R{number}", 32: f"R{number}D", 16: f"R{number}W", 8: f"R{number}L"}
        for width, register in names.items():
            table[named[register]] = ("reg", width, offset, number)
    for number, register in enumerate(("AH", "CH", "DH", "BH")):
        table[named[register]] = ("reg", 8, OFFSET[GPR_NAMES[number]] + 1, number + 4)
    for number in range(16):
        table[named[f"XMM{number}"]] = ("xmm", 128, XMM_OFFSET + 16 * number, number)
        table[named[f"CR{number}"]] = ("cr", 64, 0, number)
        table[named[f"DR{number}"]] = ("dr", 64, 0, number)
    for number in range(8):
        table[named[f"MM{number}"]] = ("mmx", 64, 0, number)
        table[named[f"ST{number}"]] = ("st", 80, 0, number)
        table[named[f"TR{number}"]] = ("tr", 32, 0, number)
    for number, segment in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
        table[named[segment.upper()]] = ("sreg", 16, OFFSET[segment + "_selector"], number)
    return table


_REGISTERS = _registers()
_REGISTER_BOUNDS = {
    register: Bound(kind, width, offset, number)
    for register, (kind, width, offset, number) in _REGISTERS.items()
}
_IMMEDIATE_WIDTHS = {
    OpKind.IMMEDIATE8: 8, OpKind.IMMEDIATE8_2ND: 8, OpKind.IMMEDIATE16: 16,
    OpKind.IMMEDIATE32: 32, OpKind.IMMEDIATE64: 64, OpKind.IMMEDIATE8TO16: 16,
    OpKind.IMMEDIATE8TO32: 32, OpKind.IMMEDIATE8TO64: 64, OpKind.IMMEDIATE32TO64: 64,
}  # fmt: skip
_STRING_KINDS = {
    OpKind.MEMORY_SEG_SI: ("rsi", 16), OpKind.MEMORY_SEG_ESI: ("rsi", 32),
    OpKind.MEMORY_SEG_RSI: ("rsi", 64), OpKind.MEMORY_SEG_DI: ("rdi", 16),
    OpKind.MEMORY_SEG_EDI: ("rdi", 32), OpKind.MEMORY_SEG_RDI: ("rdi", 64),
    OpKind.MEMORY_ESDI: ("rdi", 16), OpKind.MEMORY_ESEDI: ("rdi", 32),
    OpKind.MEMORY_ESRDI: ("rdi", 64),
}  # fmt: skip
_BRANCH_KINDS = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)


@cache
def _memory_width(memory_size: int) -> int:
    return int(MemorySizeExt.size(cast(Any, memory_size))) * 8


@cache
def _operand_size(code: int) -> int:
    return int(iced_x86.OpCodeInfo(cast(Any, code)).operand_size)


@cache
def _address_size(code: int) -> int:
    """What the opcode itself says, as that of LOOP does; 0 where it says nothing."""
    return int(iced_x86.OpCodeInfo(cast(Any, code)).address_size)


def _segment(item: iced_x86.Instruction, bitness: int) -> str:
    """64-bit code ignores the prefixes of ES, CS, SS and DS (SDM 2A, 2.1.1)."""
    name = _SEGMENT_NAMES[item.memory_segment]
    if bitness != 64 or name in ("fs", "gs"):
        return name
    return "ss" if item.memory_base in _STACK_BASES else "ds"


def _address_width(item: iced_x86.Instruction, bitness: int) -> int:
    base = item.memory_base or item.memory_index
    if base == Register.RIP:
        return 64
    if base == Register.EIP:
        return 32
    if base:
        return _REGISTERS[base][1]
    size = item.memory_displ_size
    return {2: 16, 4: 32, 8: 64}.get(size, bitness)


def _memory(item: iced_x86.Instruction, bitness: int) -> Bound:
    base, index = item.memory_base, item.memory_index
    absent = base == 0 or base == Register.RIP or base == Register.EIP
    width = _address_width(item, bitness)
    scale = item.memory_index_scale
    return Bound(
        "mem",
        _memory_width(item.memory_size),
        base=_ZERO if absent else _REGISTERS[base][2],
        index=_REGISTERS[index][2] if index else _ZERO,
        scale=scale.bit_length() - 1,
        displacement=item.memory_displacement & 0xFFFFFFFFFFFFFFFF,
        segment=_segment(item, bitness),
        address_width=width,
    )


def _operand(item: iced_x86.Instruction, number: int, bitness: int) -> Bound:
    kind = item.op_kind(number)
    if kind == OpKind.REGISTER:
        return _REGISTER_BOUNDS.get(item.op_register(number)) or Bound("unknown", 0)
    if kind == OpKind.MEMORY:
        return _memory(item, bitness)
    if kind in _IMMEDIATE_WIDTHS:
        width = _IMMEDIATE_WIDTHS[kind]
        return Bound("imm", width, immediate=item.immediate(number) & ((1 << width) - 1))
    if kind in _BRANCH_KINDS:
        return Bound("branch", 64, immediate=item.near_branch_target)
    if kind in _STRING_KINDS:
        register, width = _STRING_KINDS[kind]
        to_es = kind in (OpKind.MEMORY_ESDI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESRDI)
        segment = "es" if to_es else _segment(item, bitness)
        return Bound(
            "mem", _memory_width(item.memory_size), base=OFFSET[register], index=_ZERO,
            segment=segment, address_width=width,
        )  # fmt: skip
    far16 = kind == OpKind.FAR_BRANCH16
    return Bound(
        "far",
        16 if far16 else 32,
        immediate=item.far_branch16 if far16 else item.far_branch32,
        selector=item.far_branch_selector,
    )


def _after_pop(bound: Bound) -> Bound:
    """POP [RSP+n] computes its address after RSP has moved (SDM 2B, POP)."""
    return replace(bound, displacement=bound.displacement + bound.width // 8 & (1 << 64) - 1)


def _shaping_immediate(name: str, operands: tuple[Bound, ...]) -> int | None:
    """An immediate that is part of the form: see FormFacts."""
    if name == "enter":
        return operands[1].immediate & 31
    if any(bound.kind in ("xmm", "mmx") for bound in operands):
        return next((bound.immediate for bound in operands if bound.kind == "imm"), None)
    return None


_SHIFTS = frozenset(("shl", "sal", "shr", "sar", "rol", "ror", "rcl", "rcr", "shld", "shrd"))


def _shifts(name: str, operands: tuple[Bound, ...]) -> bool:
    """Whether this shifts by an immediate count that is not 0 as the processor counts."""
    if name not in _SHIFTS or operands[-1].kind != "imm":
        return False
    return bool(operands[-1].immediate & (63 if operands[0].width == 64 else 31))


def _strays(operands: tuple[Bound, ...], bitness: int) -> bool:
    """Whether this is a near branch of 64-bit code that leaves the canonical addresses of 48
    bits, so that its target must be looked at."""
    if bitness != 64 or not operands or operands[0].kind != "branch":
        return False
    return 1 << 47 <= operands[0].immediate < (1 << 64) - (1 << 47)


_FORMS: dict[tuple[object, ...], FormFacts] = {}


def _form(item: iced_x86.Instruction, name: str, operands: tuple[Bound, ...], bitness: int,
          stack_width: int) -> FormFacts:  # fmt: skip
    repeat = ""
    if item.has_repne_prefix:
        repeat = "repne"
    elif item.has_rep_prefix:
        repeat = "rep"
    address_width = _address_size(item.code) or bitness
    for bound in operands:
        if bound.kind == "mem":
            address_width = bound.address_width
    aliased = (
        len(operands) >= 2
        and operands[0].kind == operands[1].kind != "mem"
        and operands[0].number == operands[1].number
        and operands[0].offset == operands[1].offset
        and operands[0].width == operands[1].width
        and operands[0].kind != "imm"
    )
    immediate, shifts = _shaping_immediate(name, operands), _shifts(name, operands)
    strays = _strays(operands, bitness)
    lock = item.has_lock_prefix
    code = item.code
    kinds = tuple((b.kind, b.width) for b in operands)
    key = (
        code, kinds, lock, repeat, bitness, address_width, stack_width, aliased, immediate, shifts,
        strays,
    )  # fmt: skip
    form = _FORMS.get(key)
    if form is None:
        width = _operand_size(code) or next(
            (b.width for b in operands if b.kind in ("reg", "mem")), bitness
        )
        form = _FORMS[key] = FormFacts(
            name, tuple(OperandKind(k, w) for k, w in kinds), lock, repeat, bitness,
            width, address_width, stack_width, aliased, immediate, shifts, strays,
        )  # fmt: skip
    return form


_INVALID = FormFacts("", ())


def decode_run(code: bytes, rip: int, bitness: int, stack_width: int) -> Iterator[Decoded]:
    """Decode one instruction after the other until the bytes run out.

    An instruction cut off by the end of `code` ends the run without being given; one that does
    not decode, or is too long, is given with the name "" and ends it.
    """
    decoder = iced_x86.Decoder(bitness, code, DecoderOptions.NONE, ip=rip)
    position, end = 0, len(code)
    seen = _seen(bitness, stack_width)
    while position < end:
        item = decoder.decode()
        length = item.len
        if not item.code:
            if decoder.last_error == iced_x86.DecoderError.NO_MORE_BYTES:
                if is_undefined(code[position:], bitness):
                    yield Decoded("", rip + position, end - position, code[position:], _INVALID, ())
                return
            raw = code[position : position + max(length, 1)]
            # iced-x86 takes what goes on beyond 15 bytes for undefined.
            too_long = length == LONGEST and is_too_long(raw, bitness)
            form = TOO_LONG if too_long else _INVALID
            yield Decoded("", rip + position, length, raw, form, ())
            return
        raw = code[position : position + length]
        known = seen.get(raw)
        if known is None:
            known = _operands_and_form(item, bitness, stack_width)
            # What is relative to RIP differs from place to place; the rest follows from the bytes.
            is_relative = item.is_ip_rel_memory_operand or any(
                bound.kind == "branch" for bound in known[1]
            )
            if not is_relative:
                if len(seen) >= _MOST_SEEN:
                    seen.clear()
                seen[raw] = known
        form, operands = known
        yield Decoded(form.name, rip + position, length, raw, form, operands)
        position += length


_Known = tuple[FormFacts, tuple[Bound, ...]]
_MOST_SEEN = 100_000
_SEEN: dict[tuple[int, int], dict[bytes, _Known]] = {}


def _seen(bitness: int, stack_width: int) -> dict[bytes, _Known]:
    """What the instructions met so far in one mode are, by their bytes."""
    return _SEEN.setdefault((bitness, stack_width), {})


def _operands_and_form(item: iced_x86.Instruction, bitness: int, stack_width: int) -> _Known:
    name = _MNEMONICS[item.mnemonic]
    operands = tuple([_operand(item, i, bitness) for i in range(item.op_count)])
    if name == "pop" and operands[0].base == _RSP and operands[0].kind == "mem":
        operands = (_after_pop(operands[0]),)
    return _form(item, name, operands, bitness, stack_width), operands


def decode(code: bytes, rip: int, bitness: int = 64, stack_width: int = 64) -> Decoded | None:
    """The first instruction in `code`, or None if the bytes end within it."""
    return next(decode_run(code, rip, bitness, stack_width), None)


_FORMATTER = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
_FORMATTER.hex_prefix, _FORMATTER.hex_suffix = "0x", ""
_FORMATTER.space_after_operand_separator = True


def disassemble(code: bytes, rip: int, bitness: int = 64) -> str:
    """The text of the first instruction in `code`, Intel syntax."""
    item = iced_x86.Decoder(bitness, code, ip=rip).decode()
    return str(_FORMATTER.format(item)) if item.code else "(bad)"
