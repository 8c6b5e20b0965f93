"""Cases of a form: instructions with all kinds of operands and addressing, and a state for each.

What an instruction needs beyond its explicit operands, a stack for PUSH or a divisor that does
not always overflow, is said in `shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

from iced_x86 import (
    Code,
    Decoder,
    FlowControl,
    Instruction,
    Mnemonic,
    OpCodeOperandKind,
    OpKind,
    Register,
)

from tests.against import shapes, values
from tests.against.addressing import EPOCH, WHOLE, Unreachable, solve
from tests.against.assemble import BRANCHES, IMPLIED, Memory, Operand, build, encode
from tests.against.draft import Draft
from tests.against.forms import EITHER_KINDS, MEMORY_KINDS, Form
from tests.against.layout import CODE, ENTRY
from tests.against.operands import (
    GENERAL,
    SIGNED,
    WIDTHS,
    choices,
    touches_memory,
    writes_memory,
)
from tests.against.safety import Unsafe, refuse
from tests.against.state import Case

_K, _R = OpCodeOperandKind, Register
ATTEMPTS = 200
PATIENCE = 20
IMMEDIATE_COUNT = 12

# Not cut off by the end of a page: see undefined.DIVERGENCES.
_MASKED = (Mnemonic.MASKMOVQ, Mnemonic.MASKMOVDQU)
_UNDEFINED = (Mnemonic.UD0, Mnemonic.UD1)
# Prefixes that change nothing: ignored segments, a superfluous 66, REX, REPNE, REP.
_IDLE = tuple(bytes.fromhex(text) for text in ("2e", "36", "3e", "26", "66", "6666"))
_IDLE += tuple(bytes.fromhex(text) for text in ("40", "48", "f2", "f3"))


def cases(form: Form, count: int, seed: int = 0, first: int = 0) -> Iterator[Case]:
    """`count` cases of a form, the same ones for the same seed."""
    for number in range(first, first + count):
        yield case(form, number, seed)


def case(form: Form, number: int, seed: int = 0) -> Case:
    """The n-th case of a form."""
    source = Random(f"{seed} {form.name} {number}")
    for attempt in range(ATTEMPTS):
        # Another place may be in reach; when none is, another way of addressing.
        draft = Draft(form, number + attempt // PATIENCE, source)
        try:
            made = _make(draft)
            if not _is_of(made, form):
                continue
            refuse(made)
        except (Unreachable, Unsafe):
            continue
        return made
    raise ValueError(f"no case of {form.name} could be made")


def _make(draft: Draft) -> Case:
    shapes.prepare(draft)
    for kind in draft.kinds:
        if kind not in IMPLIED:
            draft.operands.append(_operand(draft, kind))
    _relate(draft)
    shapes.finish(draft)
    if draft.linear is not None and draft.content:
        draft.memory.append((draft.linear, draft.content))
    code = _encode(draft)
    if draft.landing is not None and 0 <= draft.landing - draft.entry < len(code):
        raise Unreachable("into itself")
    return Case(
        code,
        draft.entry,
        draft.registers,
        draft.flags,
        draft.float.pack(),
        draft.memory,
        draft.form.bits,
        draft.form.name,
    )


def _is_of(made: Case, form: Form) -> bool:
    """Some bytes mean something else: XCHG EAX, EAX is NOP."""
    found = Decoder(form.bits, made.code, ip=made.entry).decode()
    return found.code == form.code and found.len == len(made.code)


def _operand(draft: Draft, kind: int) -> Operand:
    source, form = draft.source, draft.form
    if kind in MEMORY_KINDS or (kind in EITHER_KINDS and form.memory):
        return _memory(draft, kind)
    if kind == _K.IMM8 and draft.is_vector:
        return source.choice(_vector_immediates(form.name, draft.number // EPOCH))
    if kind in WIDTHS:
        value = values.integer(source, WIDTHS[kind])
        return values.count(source) if kind == _K.IMM8 and source.random() < 0.7 else value
    if kind in SIGNED:
        value = values.integer(source, SIGNED[kind])
        return value - (value >> SIGNED[kind] - 1 << SIGNED[kind])
    if kind in BRANCHES:
        reach = source.choice((100, 0x700))
        return ENTRY + source.randrange(-reach, reach)
    chosen = list(choices(kind, form.bits))
    if draft.operands and source.random() < 0.15 and draft.operands[-1] in chosen:
        return draft.operands[-1]
    return source.choice(chosen)


@cache
def _vector_immediates(name: str, epoch: int) -> list[int]:
    """Each is native code of its own."""
    source = Random(f"immediates {name} {epoch}")
    return [
        values.count(source) if source.random() < 0.5 else source.getrandbits(8)
        for _ in range(IMMEDIATE_COUNT)
    ]


def _memory(draft: Draft, kind: int) -> Memory:
    source, form = draft.source, draft.form
    if not touches_memory(form.code):
        draft.linear = None
        target = source.getrandbits(draft.way.address_bits) + draft.way.segment_base
    else:
        target = draft.put(draft.size, writes=writes_memory(form.code), locked=form.locked)
        if form.code == Code.MOVSXD_R16_RM16:
            target &= -4  # of which AMD's processors read all: see undefined.DIVERGENCES
        if draft.size == WHOLE and source.random() < 0.6:
            target &= -WHOLE  # most SSE operands must be aligned
        draft.linear = target
        draft.content = content(source, draft.element, draft.size)
    if kind == _K.MEM_OFFS:
        return _offset_only(draft, target)
    operand, used = solve(source, draft.way, target, draft.registers, draft.pinned)
    draft.address_registers |= used
    return operand


def _offset_only(draft: Draft, linear: int) -> Memory:
    """The address in the instruction itself, of the full size (MOV AL, moffs8 and so on)."""
    offset = linear - draft.way.segment_base & (1 << 64) - 1
    if offset >> draft.way.address_bits:
        raise Unreachable
    return Memory(displacement=offset, displacement_size=draft.way.address_bits // 8)


def content(source: Random, kind: str, size: int) -> bytes:
    """What a memory operand of a kind holds."""
    match kind:
        case "f80":
            return values.float80(source)
        case "bcd":
            return values.packed_decimal(source)
    if size > 16:
        return source.randbytes(size)
    if size > 8 and kind == "i64":
        kind = source.choice(values.KINDS)
    if size < 8 and kind == "i64":
        return values.integer(source, 8 * size).to_bytes(size, "little")
    return values.vector(source, kind, size)


def _relate(draft: Draft) -> None:
    """Now and then make the operands equal, or nearly."""
    source = draft.source
    if source.random() < 0.75 or len(draft.operands) < 2:
        return
    first, second = draft.operands[:2]
    if draft.names_register(1) and second in GENERAL:
        draft.write(second, draft.read(first) + source.choice((0, 0, 1, -1)))
    elif draft.names_register(0) and _R.XMM0 <= first <= _R.XMM15:
        nearly = values.near(source, draft.float.xmm[first - _R.XMM0], draft.vector_kind)
        if isinstance(second, Memory):
            draft.content = nearly[: draft.size]
        elif draft.names_register(1) and _R.XMM0 <= second <= _R.XMM15:
            draft.float.xmm[second - _R.XMM0] = nearly


def _encode(draft: Draft) -> bytes:
    """The bytes, with idle prefixes now and then, placed anywhere in the code page."""
    instruction = _build(draft)
    try:
        code = encode(instruction, draft.entry, draft.form.bits)
    except ValueError as error:  # AH with REX, a branch out of reach
        raise Unreachable(str(error)) from None
    if draft.source.random() < 0.12:
        code = _with_idle_prefix(draft, code)
    entry = _entry(draft.source, len(code), may_be_cut=draft.form.mnemonic not in _UNDEFINED)
    if entry != ENTRY and not _is_relative(instruction):
        draft.entry = entry
    return code


def _build(draft: Draft) -> Instruction:
    instruction = build(
        draft.form.code,
        *draft.operands,
        address_bits=draft.way.address_bits,
        segment=draft.way.segment if _uses_segment(draft) else Register.NONE,
    )
    match draft.form.prefix:
        case "lock":
            instruction.has_lock_prefix = True
        case "rep":
            instruction.has_rep_prefix = True
        case "repne":
            instruction.has_repne_prefix = True
    return instruction


def _uses_segment(draft: Draft) -> bool:
    chosen = MEMORY_KINDS | {_K.SEG_RSI, _K.SEG_RDI, _K.SEG_RBX_AL}
    has_memory = any(kind in chosen for kind in draft.kinds)
    return has_memory or any(isinstance(operand, Memory) for operand in draft.operands)


def _is_relative(instruction: Instruction) -> bool:
    return instruction.is_ip_rel_memory_operand or any(
        instruction.op_kind(n) in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
        for n in range(instruction.op_count)
    )


def _entry(source: Random, length: int, *, may_be_cut: bool) -> int:
    """Mostly the usual place; elsewhere, up to the page's end, or cut off by it."""
    chance = source.random()
    if chance < 0.85:
        return ENTRY
    if chance < 0.93:
        return CODE.linear + source.randrange(16, CODE.size - 32)
    if chance < 0.98 or length == 1 or not may_be_cut:
        return CODE.end - length
    return CODE.end - source.randrange(1, length)


def _with_idle_prefix(draft: Draft, code: bytes) -> bytes:
    """One more prefix, if iced-x86 finds the same instruction behind it."""
    extra = draft.source.choice(_IDLE)
    bits, linear = draft.form.bits, draft.entry
    plain = Decoder(bits, code, ip=linear).decode()
    if "66" in extra.hex() and plain.flow_control != FlowControl.NEXT:
        return code  # of a near branch: see undefined.DIVERGENCES
    if draft.form.mnemonic in _MASKED:
        return code  # CS may not be written, but whether that is looked at is left open
    if _is_relative(plain) or len(code) + len(extra) > 15:
        return code
    longer = extra + code
    found = Decoder(bits, longer, ip=linear).decode()
    same = found.len == len(longer) and _operands(found) == _operands(plain)
    return longer if same else code


def _operands(instruction: Instruction) -> tuple[object, ...]:
    """All that says what an instruction does."""
    parts: list[object] = [instruction.code, instruction.has_lock_prefix]
    if instruction.is_string_instruction:
        parts += [instruction.has_rep_prefix, instruction.has_repne_prefix]
    for number in range(instruction.op_count):
        kind = instruction.op_kind(number)
        parts.append(kind)
        if kind == OpKind.REGISTER:
            parts.append(instruction.op_register(number))
        elif kind == OpKind.MEMORY:
            parts += [
                instruction.memory_base,
                instruction.memory_index,
                instruction.memory_index_scale,
                instruction.memory_displacement,
                instruction.segment_prefix in (Register.FS, Register.GS),
            ]
        else:
            parts.append(instruction.segment_prefix in (Register.FS, Register.GS))
    return tuple(parts)
