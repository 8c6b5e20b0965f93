"""MOV, its widening and conditional kin, LEA, XLAT, the sign extensions."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run
from trapline.processor.isa.conditions import CONDITIONS

ALL = (1 << 64) - 1
UNMAPPED = 0x5000_0000
WORD = 0x1122_3344_5566_7788


def test_mov_to_a_dword_register_clears_the_rest(run: Run) -> None:
    assert run("mov eax, ebx", "89 d8", rax=ALL, rbx=WORD).rax == 0x5566_7788
    assert run("mov ax, bx", "66 89 d8", rax=ALL, rbx=WORD).rax == ALL & ~0xFFFF | 0x7788
    assert run("mov ah, bl", "88 dc", rax=ALL, rbx=WORD).rax == ALL & ~0xFF00 | 0x8800


def test_mov_of_immediates(run: Run) -> None:
    assert run("mov rax, 0xFFFFFFFFFFFFFFFF", "48 c7 c0 ff ff ff ff").rax == ALL
    assert run("mov rax, 0x1122334455667788", "48 b8 88 77 66 55 44 33 22 11").rax == WORD
    assert run("mov eax, 0xFFFFFFFF", "b8 ff ff ff ff", rax=ALL).rax == 0xFFFFFFFF


def test_mov_with_an_address_of_eight_bytes(run: Run) -> None:
    after = run("mov eax, [0x8000]", "a1 00 80 00 00 00 00 00 00", memory={0x8000: b"\x05"})
    assert after.rax == 5


def test_mov_of_the_largest_offsets_wraps_only_at_its_address_size(run: Run) -> None:
    after = run("mov al, [ebx+0x10]", "67 8a 43 10", rbx=0xFFFF_FFF8, memory={8: b"\x2a"})
    assert after.rax == 0x2A


def test_a_selector_is_read_zero_extended_into_a_register(run: Run) -> None:
    assert run("mov eax, ds", "8c d8", rax=ALL, ds_selector=0x2B).rax == 0x2B
    assert run("mov ax, ds", "66 8c d8", rax=ALL, ds_selector=0x2B).rax == ALL & ~0xFFFF | 0x2B
    after = run("mov [rdi], ds", "8c 1f", rdi=0x8000, ds_selector=0x2B)
    assert after.accesses == [("write", 0x8000, 2)]


@pytest.mark.parametrize(
    "text, code, name",
    [
        ("mov ds, ax", "66 8e d8", "mov_segment"),
        ("mov rax, cr0", "0f 20 c0", "mov_cr"),
        ("mov cr0, rax", "0f 22 c0", "mov_cr"),
        ("mov dr7, rax", "0f 23 f8", "mov_dr"),
    ],
)
def test_the_system_forms_are_microcode(run: Run, text: str, code: str, name: str) -> None:
    assert run(text, code).microcode == [(name, ())]


def test_zero_and_sign_extension(run: Run) -> None:
    assert run("movzx eax, bl", "0f b6 c3", rax=ALL, rbx=0x80).rax == 0x80
    assert run("movsx eax, bl", "0f be c3", rax=ALL, rbx=0x80).rax == 0xFFFF_FF80
    assert run("movsx rax, bx", "48 0f bf c3", rbx=0x8000).rax == ALL & ~0x7FFF
    assert run("movsxd rax, ebx", "48 63 c3", rbx=0x8000_0000).rax == ALL & ~0x7FFF_FFFF
    assert run("movsxd eax, ebx", "63 c3", rax=ALL, rbx=0x8000_0000).rax == 0x8000_0000


def test_movzx_from_memory_reads_only_the_source(run: Run) -> None:
    after = run("movzx eax, byte ptr [rdi]", "0f b6 07", rdi=0x8000)
    assert after.accesses == [("read", 0x8000, 1)]


@pytest.mark.parametrize("code, name", list(enumerate(CONDITIONS)))
def test_cmov_moves_when_setcc_would_set(run: Run, code: int, name: str) -> None:
    for flags in ("", "cf", "zf", "sf", "of", "pf", "sf of", "cf zf"):
        holds = run(f"set{name} al", f"0f {0x90 + code:02x} c0", flags=flags).rax
        after = run(f"cmov{name} rax, rbx", f"48 0f {0x40 + code:02x} c3", rbx=7, flags=flags)
        assert after.rax == 7 * holds


def test_cmov_of_dwords_clears_the_upper_half_even_if_it_does_not_move(run: Run) -> None:
    assert run("cmovb eax, ebx", "0f 42 c3", rax=ALL, rbx=7).rax == 0xFFFF_FFFF


def test_cmov_reads_its_source_even_if_it_does_not_move(run: Run) -> None:
    after = run("cmovb eax, [rdi]", "0f 42 07", rax=ALL, rdi=UNMAPPED)
    assert (after.fault, after.rax) == (14, ALL)


def test_bswap(run: Run) -> None:
    assert run("bswap rax", "48 0f c8", rax=WORD).rax == 0x8877_6655_4433_2211
    assert run("bswap eax", "0f c8", rax=WORD).rax == 0x8877_6655
    assert run("bswap ax", "66 0f c8", rax=WORD).rax == WORD & ~0xFFFF  # as Zen does


@pytest.mark.parametrize(
    "text, code, bits, result",
    [
        ("lea rax, [rbx+rcx*4+0x10]", "48 8d 44 8b 10", 64, (WORD + 40 + 16) & ALL),
        ("lea eax, [rbx+rcx*4+0x10]", "8d 44 8b 10", 64, 0x5566_77C0),
        ("lea ax, [rbx]", "66 8d 03", 64, ALL & ~0xFFFF | 0x7788),
        ("lea rax, [ebx]", "67 48 8d 03", 64, 0x5566_7788),
        ("lea rax, [rbx]", "64 48 8d 03", 64, WORD),
        ("lea eax, [bx+si]", "67 8d 00", 32, 0x7787),
    ],
)
def test_lea_computes_an_offset_and_accesses_nothing(
    run: Run, text: str, code: str, bits: int, result: int
) -> None:
    after = run(text, code, bits, rax=ALL, rbx=WORD, rcx=10, rsi=0xFFFF)
    assert (after.rax, after.accesses) == (result, [])


def test_xlat_indexes_by_al_unsigned(run: Run) -> None:
    after = run("xlat [rbx]", "d7", rax=0x12FF, rbx=0x8000, memory={0x80FF: b"\x42"})
    assert (after.rax, after.accesses) == (0x1242, [("read", 0x80FF, 1)])
    assert run("xlat fs:[rbx]", "64 d7", rbx=0x8000).accesses == [("read", 0x9000, 1)]
    wrapped = run("xlat [ebx]", "67 d7", rax=2, rbx=0xFFFF_FFFF)
    assert wrapped.accesses == [("read", 1, 1)]


@pytest.mark.parametrize(
    "text, code, rax, result, rdx",
    [
        ("cbw", "66 98", 0x80, 0xFF80, 0),
        ("cwde", "98", ALL & ~0x7FFF, 0xFFFF_8000, 0),
        ("cdqe", "48 98", 0x8000_0000, ALL & ~0x7FFF_FFFF, 0),
        ("cwd", "66 99", 0x8000, 0x8000, 0xFFFF),
        ("cdq", "99", 0x8000_0000, 0x8000_0000, 0xFFFF_FFFF),
        ("cqo", "48 99", 1 << 63, 1 << 63, ALL),
        ("cqo", "48 99", 1, 1, 0),
    ],
)
def test_the_accumulator_is_sign_extended(
    run: Run, text: str, code: str, rax: int, result: int, rdx: int
) -> None:
    after = run(text, code, rax=rax)
    assert (after.rax, after.rdx) == (result, rdx)


def test_movnti_stores(run: Run) -> None:
    assert run("movnti [rdi], rax", "48 0f c3 07", rdi=0x8000, rax=WORD).word(0x8000) == WORD
