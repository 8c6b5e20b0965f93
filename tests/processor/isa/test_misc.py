"""Hints that do nothing, what is undefined for ever, BOUND."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run

UNMAPPED = 0x5000_0000
UD, BR = 6, 5


@pytest.mark.parametrize(
    "text, code",
    [
        ("nop", "90"),
        ("nop [rax]", "0f 1f 00"),
        ("nop [rax], eax", "0f 1e 00"),
        ("pause", "f3 90"),
        ("endbr64", "f3 0f 1e fa"),
        ("endbr32", "f3 0f 1e fb"),
        ("rdsspq rax", "f3 48 0f 1e c8"),
        ("prefetcht0 [rax]", "0f 18 08"),
        ("prefetchnta [rax]", "0f 18 00"),
        ("prefetchw [rax]", "0f 0d 08"),
        ("lfence", "0f ae e8"),
        ("sfence", "0f ae f8"),
        ("mfence", "0f ae f0"),
    ],
)
def test_hints_access_and_change_nothing(run: Run, text: str, code: str) -> None:
    after = run(text, code, rax=UNMAPPED, flags="cf pf af zf sf of")
    assert (after.fault, after.rax, after.accesses) == (None, UNMAPPED, [])
    assert after.flags == {"cf", "pf", "af", "zf", "sf", "of"}
    assert after.moved == after.length


@pytest.mark.parametrize("text, code", [("clflush", "0f ae 38"), ("clflushopt", "66 0f ae 38")])
def test_flushing_a_line_needs_the_right_to_read_it(run: Run, text: str, code: str) -> None:
    assert run(f"{text} [rax]", code, rax=0x8001).accesses == [("read", 0x8001, 1)]
    assert run(f"{text} [rax]", code, rax=UNMAPPED).fault == 14


@pytest.mark.parametrize(
    "text, code", [("ud2", "0f 0b"), ("ud1 eax, [rax]", "0f b9 00"), ("ud0 eax, eax", "0f ff c0")]
)
def test_undefined_instructions(run: Run, text: str, code: str) -> None:
    after = run(text, code, rax=UNMAPPED)
    assert (after.fault, after.moved) == (UD, 0)


@pytest.mark.parametrize(
    "index, inside", [(-5, True), (-6, False), (7, True), (8, False), (0, True)]
)
def test_bound_checks_a_signed_index(run: Run, index: int, inside: bool) -> None:
    bounds = (-5 & 0xFFFFFFFF).to_bytes(4, "little") + (7).to_bytes(4, "little")
    after = run("bound eax, qword ptr [ebx]", "62 03", 32, rax=index & 0xFFFFFFFF, rbx=0x8000,
                memory={0x8000: bounds})  # fmt: skip
    assert (after.fault, after.error_code) == (None if inside else BR, None)
