"""The list of forms and their cases: nothing is missing, and the cases are what they claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest
from iced_x86 import Decoder, DecoderOptions, EncodingKind, Mnemonic, OpCodeInfo, Register

from tests.against.cases import case, cases
from tests.against.forms import (
    NAMES,
    OUTSIDE,
    Form,
    all_forms,
    exclusions,
    features,
    forms_of,
    why_excluded,
)
from tests.against.host import Host
from tests.against.layout import LINE
from tests.against.operands import touches_memory
from tests.against.safety import locked_access, locks
from tests.against.state import Case

UNDEFINED_OPCODES = frozenset((Mnemonic.UD1, Mnemonic.UD2))
INVALID_OPCODE = 6
FEW = 12


def described(form: Form) -> OpCodeInfo:
    return OpCodeInfo(form.code)


@pytest.mark.parametrize("bits", [64, 32])
def test_every_code_is_compared_or_left_out_for_a_reason(bits: int) -> None:
    compared = {form.code for form in all_forms(bits)}
    left_out = {name for names in exclusions(bits).values() for name in names}
    assert {NAMES[code] for code in compared} | left_out == set(NAMES.values())
    assert not {NAMES[code] for code in compared} & left_out


def test_nothing_of_x86_64_v2_is_left_out_as_foreign() -> None:
    """What is outside x86-64-v2 is so by its encoding or by its CPUID feature."""
    for name, code in ((name, code) for code, name in NAMES.items()):
        if why_excluded(code) == OUTSIDE:
            info = OpCodeInfo(code)
            foreign = info.encoding != EncodingKind.LEGACY or not info.is_instruction
            assert foreign or features(code) & _FOREIGN, name


_FOREIGN = frozenset().union(
    *(features(code) for code in NAMES if why_excluded(code) == OUTSIDE)
) - frozenset().union(*(features(form.code) for form in all_forms()))


def test_forms_have_the_prefixes_their_instructions_allow() -> None:
    names = {form.name for form in all_forms()}
    assert {
        "lock add_rm32_r32 [m]",
        "add_rm32_r32",
        "rep movsb_m8_m8",
        "repne scasq_rax_m64",
    } <= names
    assert "lock add_rm32_r32" not in names
    assert "repne movsb_m8_m8" not in names
    assert "lock cmp_rm32_r32 [m]" not in names


@pytest.mark.parametrize("bits", [64, 32])
def test_cases_decode_to_their_form(bits: int) -> None:
    """iced-x86 reads each case's bytes back as the form they were made for."""
    for form in all_forms(bits):
        for made in cases(form, FEW):
            options = DecoderOptions.NONE
            found = Decoder(bits, made.code, options, ip=made.entry).decode()
            assert found.code == form.code, (form.name, made.code.hex())
            assert found.len == len(made.code)
            if form.prefix == "lock":
                assert found.has_lock_prefix


def test_cases_are_the_same_each_time() -> None:
    for form in all_forms()[::50]:
        assert list(cases(form, 5)) == list(cases(form, 5))
        assert case(form, 3, seed=1) != case(form, 3, seed=2)


def test_no_case_takes_a_bus_lock() -> None:
    """Of the locked forms, including XCHG and bit strings that reach far."""
    for form in (form for form in all_forms() if form.locked):
        for made in cases(form, 40):
            found = Decoder(64, made.code, DecoderOptions.NO_INVALID_CHECK, ip=made.entry).decode()
            assert locks(found)
            linear, size = locked_access(made, found)
            assert linear % LINE + size <= LINE


def test_a_family_meets_every_way_of_addressing() -> None:
    """Within the cases of one CI run: shapes, segments, and both sizes of address."""
    seen: Counter[tuple[str, int, bool]] = Counter()
    for made in (made for name in _FAMILY for made in _cases_in_memory(name, 200)):
        found = Decoder(64, made.code, ip=made.entry).decode()
        parts = [
            "rip" if found.is_ip_rel_memory_operand else "base" * (found.memory_base != 0),
            "index" * (found.memory_index != 0),
            f"disp{found.memory_displ_size}",
        ]
        segment = found.segment_prefix if found.segment_prefix >= Register.FS else 0
        seen["+".join(part for part in parts if part), segment, b"\x67" in made.code[:4]] += 1
    shapes = {shape for shape, _segment, _small in seen}
    assert {"base+disp0", "base+index+disp1", "index+disp8", "disp8", "rip+disp8"} <= shapes
    for segment, small in product((0, Register.FS, Register.GS), (False, True)):
        assert any(key[1:] == (segment, small) for key in seen), (segment, small)


def test_a_form_meets_further_ways_of_addressing_in_further_cases() -> None:
    first, later = ({_way(made) for made in _cases_in_memory("ADD", n)} for n in (200, 1000))
    assert len(later) > len(first) + 5


_FAMILY = ("ADD", "OR", "ADC", "SBB", "AND", "SUB", "XOR", "CMP")


def _cases_in_memory(name: str, count: int) -> Iterator[Case]:
    code = _code(f"{name}_RM32_R32")
    (form,) = (form for form in forms_of(code) if form.memory and not form.prefix)
    return cases(form, count)


def _way(made: Case) -> tuple[object, ...]:
    found = Decoder(64, made.code, ip=made.entry).decode()
    present = (found.memory_base != 0, found.memory_index != 0, found.memory_displ_size)
    return *present, found.segment_prefix, b"\x67" in made.code[:4]


def _code(name: str) -> int:
    return next(code for code, known in NAMES.items() if known == name)


def test_registers_are_used_in_all_places() -> None:
    """High bytes, the new registers, and one register in both places."""
    (form,) = (form for form in forms_of(_code("ADD_RM8_R8")) if not form.memory)
    pairs = set()
    for made in cases(form, 600):
        found = Decoder(64, made.code, ip=made.entry).decode()
        pairs.add((found.op0_register, found.op1_register))
    assert {first for first, _second in pairs} == set(range(Register.AL, Register.R15L + 1))
    assert any(first == second for first, second in pairs)


@pytest.mark.parametrize("bits", [64, 32])
def test_the_host_executes_every_form(bits: int) -> None:
    """Each form ends well at least once; only UD1 and UD2 are always undefined."""
    with Host() as host:
        made = [one for form in all_forms(bits) for one in cases(form, FEW)]
        ended: Counter[str] = Counter()
        undefined: Counter[str] = Counter()
        for one, done in zip(made, host.run(made), strict=True):
            ended[one.form] += done.fault is None
            undefined[one.form] += done.fault is not None and done.fault.vector == INVALID_OPCODE
            assert not done.hung
    for form in all_forms(bits):
        if form.mnemonic in UNDEFINED_OPCODES:
            assert undefined[form.name] and not ended[form.name], form.name
        else:
            assert ended[form.name] and not undefined[form.name], form.name


def test_no_memory_is_touched_by_those_that_only_name_it() -> None:
    assert not touches_memory(_code("LEA_R64_M"))
    assert not touches_memory(_code("NOP_RM32"))
    assert touches_memory(_code("MOV_R64_RM64"))
