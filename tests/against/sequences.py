"""Runs of instructions that touch only known memory: what one instruction leaves the next finds.

Memory operands are absolute addresses, so every register may be anything; branches go forward,
and now and then the whole is a loop.
"""

from __future__ import annotations

from functools import cache
from random import Random

from iced_x86 import Code, Mnemonic, OpCodeInfo

from tests.against import values
from tests.against.assemble import BRANCHES, IMPLIED, Memory, Operand, Program, build, encode, kinds
from tests.against.forms import (
    EITHER_KINDS,
    MEMORY_KINDS,
    STRING_KINDS,
    Form,
    all_forms,
    float_units,
)
from tests.against.layout import DATA, ENTRY, READ_ONLY, UNMAPPED
from tests.against.operands import SIGNED, WIDTHS, choices, memory_size, touches_memory
from tests.against.state import AC, STATUS, Case
from tests.against.undefined import APPROXIMATE, TRANSCENDENTAL

_M = Mnemonic
LENGTH = 24
PLACES = 12  # few, so that what is stored is loaded again
# Of their own kind: they need a register to point somewhere, load whole states, or approximate.
_ALONE = frozenset((
    _M.FXSAVE, _M.FXSAVE64, _M.FXRSTOR, _M.FXRSTOR64, _M.XSAVE, _M.XSAVE64, _M.XRSTOR,
    _M.XRSTOR64, _M.UD1, _M.UD2, _M.MASKMOVQ, _M.MASKMOVDQU, _M.FRSTOR, _M.FNSAVE,
)) | APPROXIMATE | TRANSCENDENTAL  # fmt: skip
_CONDITIONAL = {
    64: (Code.JE_REL32_64, Code.JB_REL32_64, Code.JL_REL32_64, Code.JA_REL32_64, Code.JS_REL32_64,
         Code.JO_REL32_64, Code.JP_REL32_64, Code.JLE_REL32_64, Code.JNE_REL32_64),
    32: (Code.JE_REL32_32, Code.JB_REL32_32, Code.JL_REL32_32, Code.JA_REL32_32, Code.JS_REL32_32,
         Code.JO_REL32_32, Code.JP_REL32_32, Code.JLE_REL32_32, Code.JNE_REL32_32),
}  # fmt: skip
COUNTER = DATA.linear + 0x40  # of the loop's rounds


@cache
def _usable(bits: int) -> tuple[tuple[Form, ...], ...]:
    """The forms by family: those on flags and general registers, and all others."""
    plain, others = [], []
    for form in all_forms(bits):
        described = OpCodeInfo(form.code)
        operands = set(kinds(form.code))
        if form.mnemonic in _ALONE or operands & (STRING_KINDS | BRANCHES):
            continue
        if described.is_stack_instruction or _goes_elsewhere(form):
            continue
        if memory_size(form.code) > 16 and form.memory:
            continue
        is_plain = not float_units(form.code).strip()
        (plain if is_plain else others).append(form)
    return tuple(plain), tuple(others)


def _goes_elsewhere(form: Form) -> bool:
    return form.mnemonic_name.startswith(("j", "call", "ret", "loop", "enter", "leave"))


def sequence(number: int, bits: int, seed: int = 0) -> Case:
    """The n-th program, and the state it starts from; it ends with UD2."""
    source = Random(f"sequence {seed} {bits} {number}")
    places = _places(source)
    program = Program(bits)
    labels = 0
    length = source.randrange(2, LENGTH)
    families = _usable(bits)
    family = families[0] if source.random() < 0.6 else None
    is_loop = source.random() < 0.25
    program.label("start")
    for _ in range(length):
        if source.random() < 0.15:
            program.add(source.choice(_CONDITIONAL[bits]), f"label {labels}")
            _add(program, source, family or source.choice(families), bits, places)
            program.label(f"label {labels}")
            labels += 1
        _add(program, source, family or source.choice(families), bits, places)
    if is_loop:
        program.add(Code.DEC_RM32, _absolute(COUNTER, bits))
        program.add(Code.JNE_REL32_64 if bits == 64 else Code.JNE_REL32_32, "start")
    program.add(Code.UD2)
    code, _labels = program.assemble(ENTRY)
    registers = values.registers(source, 16)
    if bits == 32:
        registers = [word & 0xFFFF_FFFF for word in registers[:8]] + [0] * 8
    state = values.float_state(source, source.choice(values.KINDS), uses="")
    memory = [(place, values.vector(source, source.choice(values.KINDS), 16)) for place in places]
    memory.append((COUNTER, source.randrange(1, 5).to_bytes(4, "little")))
    flags = source.getrandbits(12) & STATUS | (AC if source.random() < 0.03 else 0)
    return Case(code, ENTRY, registers, flags, state.pack(), memory, bits, f"sequence {number}")


def _places(source: Random) -> list[int]:
    places = [DATA.linear + 0x100 + 16 * source.randrange(400) for _ in range(PLACES)]
    if source.random() < 0.3:
        places[0] += source.randrange(16)
    if source.random() < 0.2:  # a fault in the middle
        places[1] = source.choice((UNMAPPED, READ_ONLY.linear, READ_ONLY.end - 3))
    if source.random() < 0.2:  # across lines, and across pages
        places[2] = source.choice((DATA.linear + 0x1000, DATA.linear + 0x200)) - source.randrange(9)
    return places


def _add(
    program: Program, source: Random, forms: tuple[Form, ...], bits: int, places: list[int]
) -> None:
    while True:
        form = source.choice(forms)
        if form.locked and source.random() < 0.7:
            continue
        operands = [_operand(source, form, kind, bits, places) for kind in kinds(form.code)
                    if kind not in IMPLIED]  # fmt: skip
        instruction = build(form.code, *operands)
        instruction.has_lock_prefix = form.prefix == "lock"
        try:
            encode(instruction, ENTRY, bits)
        except ValueError:  # AH with REX
            continue
        program.append(instruction)
        return


def _operand(source: Random, form: Form, kind: int, bits: int, places: list[int]) -> Operand:
    if kind in MEMORY_KINDS or (kind in EITHER_KINDS and form.memory):
        place = source.choice(places)
        if touches_memory(form.code) and source.random() < 0.2:
            place += source.randrange(8)
        return _absolute(place, bits)
    if kind in WIDTHS:
        return values.integer(source, WIDTHS[kind])
    if kind in SIGNED:
        value = values.integer(source, SIGNED[kind])
        return value - (value >> SIGNED[kind] - 1 << SIGNED[kind])
    return source.choice(list(choices(kind, bits)))


def _absolute(linear: int, bits: int) -> Memory:
    return Memory(displacement=linear, displacement_size=bits // 8)
