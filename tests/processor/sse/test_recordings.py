"""Properties that every vector description has, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from iced_x86 import Code, EncodingKind, Mnemonic, OpCodeInfo

import trapline.processor.isa  # noqa: F401  (registers the instructions)
from tests.processor.language.forms import every_form
from trapline.processor.jit.facts import facts
from trapline.processor.language import (
    GP,
    INSTRUCTIONS,
    Effect,
    FormFacts,
    Primitive,
    Raise,
    When,
    Write,
    record,
)

# What may lie anywhere (SDM 2, the tables "Exception Conditions", type 4 and 5).
UNALIGNED = {
    "movups", "movupd", "movdqu", "lddqu", "maskmovdqu", "pcmpestri", "pcmpestrm", "pcmpistri",
    "pcmpistrm", "pcmpestri64", "pcmpestrm64",
}  # fmt: skip


NAMES = {number: name.lower() for name, number in vars(Mnemonic).items() if name.isupper()}


def forms(kind: str) -> list[FormFacts]:
    return [
        form
        for form in every_form(64)
        if form.name in INSTRUCTIONS and any(operand.kind == kind for operand in form.operands)
    ]


def effects(form: FormFacts) -> Iterator[Effect]:
    waiting = list(record(form))
    for effect in waiting:
        yield effect
        if isinstance(effect, When):
            waiting += effect.effects


def test_there_are_forms_to_look_at() -> None:
    assert len(forms("xmm")) > 500
    assert len(forms("mmx")) > 150


def test_sixteen_bytes_of_memory_are_aligned_but_where_they_need_not_be() -> None:
    for form in forms("xmm"):
        wide = any(operand.kind == "mem" and operand.width == 128 for operand in form.operands)
        checks = any(isinstance(effect, Raise) and effect.vector == GP for effect in effects(form))
        assert checks == (wide and form.name not in UNALIGNED), form


def test_vector_registers_are_written_whole() -> None:
    """Or a later read of the whole register would wait for the store to reach the cache."""
    for form in (*forms("xmm"), *forms("mmx")):
        for effect in effects(form):
            if not isinstance(effect, Write):
                continue
            place = effect.place
            kind = form.operands[place.index].kind if place.kind == "operand" else place.kind
            assert kind != "xmm" or place.width == 128, form
            assert kind != "mmx" or place.width == 80, form


def test_an_instruction_is_one_floating_point_primitive() -> None:
    """Its lanes raise their exceptions together, or none of them does."""
    for form in forms("xmm"):
        units = [e for e in effects(form) if isinstance(e, Primitive) and e.unit == "sse"]
        assert len(units) <= 1, form


def _alternatives(opcode: str) -> set[str]:
    """ "NP/66 0F FC /r" is two; REX.W and operand sizes make no other opcode here."""
    first, rest = opcode.split(" ", 1) if " " in opcode else (opcode, "")
    plain = " ".join(part for part in rest.split() if part not in ("REX.W", "o64", "o32"))
    return {f"{prefix} {plain}".strip() for prefix in first.split("/")}


def test_the_opcodes_are_those_of_the_decoder() -> None:
    names = {form.name for form in (*forms("xmm"), *forms("mmx"))} - {"movsd", "cmpsd"}
    decoded: dict[str, set[str]] = {}
    for code in vars(Code).values():
        found = OpCodeInfo(code) if isinstance(code, int) else None
        if found is not None and found.encoding == EncodingKind.LEGACY and found.is_instruction:
            known = decoded.setdefault(NAMES[found.mnemonic], set())
            known |= _alternatives(found.op_code_string)
    for name in names:
        described = set().union(*map(_alternatives, INSTRUCTIONS[name].opcodes))
        assert described == decoded[name], name


@pytest.mark.parametrize("kind", ["xmm", "mmx"])
def test_native_code_does_them_all(kind: str) -> None:
    left = {form.name for form in forms(kind) if not facts(form).is_native}
    assert left == set()
