"""Exceptions of a program without handlers: the signal that Linux ends it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.c_programs import compiled
from tests.process.conftest import Run, skip_on_pvm
from tests.process.test_elf import EXIT_0, small_elf

CASES = {
    "divide by zero": "31d2 31c9 f7f1",  # xor edx, edx; xor ecx, ecx; div ecx
    "divide overflow": "ba02000000 b901000000 f7f1",
    "ud2": "0f0b",
    "int3": "cc",
    "hlt": "f4",
    "cli": "fa",
    "in al, dx": "ec",
    "out 0x80, al": "e680",
    "mov cr0": "0f22c0",
    "wrmsr": "0f30",
    "int 0x81": "cd81",
    "null read": "31c0 8b00",
    "null write": "31c0 8900",
    "write to code": "8805 f0ffffff",  # mov [rip - 16], al
    "jump to data": "4889e0 ffe0",  # mov rax, rsp; jmp rax
    "jump to nowhere": "48b80000000000100000 ffe0",
    "not canonical": "48b80000000000008000 8b00",
    "kernel half": "48b80000000000 80ffff 8b00",
    "the monitor's code": "48b83b000000 0080ffff ffe0",
    "misaligned movaps": "0f28842401000000",  # movaps xmm0, [rsp + 1]
    "sse divide by zero": (
        "6800100000 0fae1424 58"  # push 0x1000; ldmxcsr [rsp]; pop: nothing is masked but precision
        "0f57c0 b801000000 f30f2ac8 f30f5ec8"  # xorps; mov eax, 1; cvtsi2ss xmm1, eax; divss
    ),
    # fld1; fldz; push 0x340; fldcw; pop; fdivp; fwait
    "x87 divide by zero": "d9e8 d9ee 6840030000 d92c24 58 def9 9b",
    "single step": "9c 48810c2400010000 9d 90",  # pushf; or [rsp], TF; popf; nop
    "alignment check": "9c 48810c2400000400 9d 8b442401",  # AC set, mov eax, [rsp + 1]
    "icebp": "f1",
    "stack overflow": "50ebfd",  # push rax; jmp back
}


@pytest.mark.parametrize("name", CASES)
def test_an_exception_ends_the_program_with_linuxs_signal(
    name: str, guest: Run, native: Run, backend: str, tmp_path: Path
) -> None:
    if name == "int 0x81":
        skip_on_pvm(backend, "INT n to a closed gate is #UD")
    program = tmp_path / "program"
    program.write_bytes(small_elf(bytes.fromhex(CASES[name]) + EXIT_0))
    program.chmod(0o755)
    expected, got = native(str(program)), guest(str(program))
    assert expected.returncode > 128
    assert (got.returncode, got.stderr) == (expected.returncode, b"")


def test_an_opcode_cut_off_by_the_end_of_a_page_faults_as_natively(guest: Run, native: Run) -> None:
    """One that is undefined already is #UD, whatever follows; else the next page's #PF is first."""
    program = compiled("page_end")
    expected, got = native(program), guest(program)
    assert got.stdout.decode().splitlines() == expected.stdout.decode().splitlines()
    assert {b"undefined", b"cut"} <= set(expected.stdout.split())
