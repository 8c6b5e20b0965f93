"""What cannot be started: one sentence, a hint, and the status a shell would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.conftest import Run
from tests.process.test_elf import small_elf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "program"


def make(file: Path, data: bytes, mode: int = 0o755) -> str:
    file.write_bytes(data)
    file.chmod(mode)
    return str(file)


def refused(guest: Run, name: str, status: int, words: str) -> None:
    got = guest(name)
    sentence, hint = got.stderr.decode().splitlines()
    assert got.returncode == status
    assert words in sentence
    assert hint
    assert got.stdout == b""


def test_missing_programs(guest: Run, tmp_path: Path) -> None:
    refused(guest, "no-such-program-anywhere", 127, "no such program")
    refused(guest, str(tmp_path / "missing"), 127, "no such file")


def test_a_folder(guest: Run, tmp_path: Path) -> None:
    refused(guest, str(tmp_path), 126, "is a directory")


def test_no_permission(guest: Run, file: Path) -> None:
    refused(guest, make(file, small_elf(), 0o644), 126, "no permission")


def test_a_text_without_an_interpreter_line(guest: Run, file: Path) -> None:
    refused(guest, make(file, b"echo hello\n"), 126, "neither an ELF program nor a script")


def test_an_empty_file(guest: Run, file: Path) -> None:
    refused(guest, make(file, b""), 126, "is empty")


def test_an_empty_interpreter_line(guest: Run, file: Path) -> None:
    refused(guest, make(file, b"#!\n"), 126, "empty #! line")


def test_a_missing_interpreter(guest: Run, file: Path) -> None:
    refused(guest, make(file, b"#!/no/such/interpreter\n"), 127, "/no/such/interpreter")


def test_foreign_truncated_and_32_bit_programs(guest: Run, file: Path) -> None:
    refused(guest, make(file, small_elf(machine=183)), 126, "64-bit ARM")
    refused(guest, make(file, Path("/bin/ls").read_bytes()[:5000]), 126, "cut short")
    refused(guest, make(file, small_elf(**{"class": 1})), 126, "32-bit")


def test_a_small_static_program_at_a_fixed_address(guest: Run, file: Path) -> None:
    """mov eax, 60; xor edi, edi; syscall, linked where Python itself may sit."""
    got = guest(make(file, small_elf()))
    assert (got.returncode, got.stdout, got.stderr) == (0, b"", b"")


def test_scripts_get_their_interpreter_and_its_one_argument(guest: Run, file: Path) -> None:
    name = make(file, b'#!/bin/sh -e\necho "$0 $1 $#"\nfalse\necho not reached\n')
    got = guest(name, "one", "two")
    assert got.stdout == f"{name} one 2\n".encode()
    assert got.returncode == 1


def test_a_script_whose_interpreter_is_a_script(guest: Run, file: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    make(inner, b"#!/bin/echo from echo\n")
    got = guest(make(file, f"#!{inner} option\n".encode()), "argument")
    assert got.stdout == f"from echo {inner} option {file} argument\n".encode()


def test_scripts_in_a_circle_end(guest: Run, file: Path) -> None:
    got = guest(make(file, f"#!{file}\n".encode()))
    assert got.returncode == 126
    assert b"too many interpreters" in got.stderr


def test_a_large_environment(guest: Run) -> None:
    environment = {f"V{index}": "x" * 100_000 for index in range(15)}
    got = guest("sh", "-c", "exec env", env=environment)
    assert got.returncode == 0
    assert got.stdout.count(b"x" * 100_000) == 15
