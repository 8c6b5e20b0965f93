"""Back from a trap's address to the locked instruction, in real code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trapline.processor.decode import disassemble
from trapline.trace import find_culprit
from trapline.trace.culprit import operand_size
from trapline.trace.operand import evaluate

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]


class Memory:
    """A thread that has code in front of its next instruction."""

    tid, name, bitness = 1, "trapped", 64

    def __init__(self, code: bytes, next_rip: int, **registers: int) -> None:
        self._code, self._end, self._registers = code, next_rip, registers

    def registers(self) -> dict[str, int]:
        return {**dict.fromkeys(GENERAL, 65536), "fs_base": 0x20000, **self._registers}

    def read(self, linear: int, size: int) -> bytes:
        start = linear - (self._end - len(self._code))
        return self._code[max(start, 0) : start + size]

    def region(self, linear: int) -> None:
        return None


@pytest.mark.parametrize(
    ("code", "linear", "size", "text"),
    [
        ("f0 0f c1 07", 0x1003E, 4, "xadd"),
        ("f0 48 0f c1 07", 0x1003E, 8, "xadd"),
        ("f0 66 ff 07", 0x1003F, 2, "inc"),
        ("66 87 07", 0x1003F, 2, "xchg"),
        ("48 87 07", 0x1003C, 8, "xchg"),
        ("f0 0f c7 0f", 0x1003C, 8, "cmpxchg8b"),
        ("64 f0 83 47 00 01", 0x3003D, 4, "add"),
    ],
)
def test_the_instruction_its_address_and_its_size(code, linear, size, text):
    content = bytes.fromhex("90 89 c0 90 90 89 c0 90 90 89 c0 90" + code)
    rdi = linear - (0x20000 if code.startswith("64") else 0)
    found = find_culprit(0x401000, Memory(content, 0x401000, rdi=rdi), disassemble)
    assert found is not None
    assert (found.linear, found.size, found.cause.value) == (linear, size, "split")
    assert found.rip == 0x401000 - len(bytes.fromhex(code))
    assert text in disassemble(content[found.rip - 0x401000 :], found.rip, 64)


def test_an_operand_within_a_line_was_uncached():
    found = find_culprit(0x401000, Memory(b"\x90" * 11 + b"\xf0\xff\x07", 0x401000), disassemble)
    assert found is not None and found.cause.value == "uncached"


@pytest.mark.parametrize("code", [b"", b"\x90" * 15, b"\x8b\x07", b"\x87\xc7", b"\xff\x07"])
def test_code_that_locks_nothing_has_no_culprit(code):
    assert find_culprit(0x401000, Memory(code, 0x401000), disassemble) is None


@pytest.mark.skipif(
    not (shutil.which("objdump") and LIBC.exists()), reason="needs binutils and Debian's libc"
)
def test_every_locked_instruction_of_the_c_library_is_found_again():
    content = LIBC.read_bytes()
    listing = subprocess.run(
        ["objdump", "-d", "-w", "-j", ".text", LIBC], check=True, capture_output=True, text=True
    ).stdout
    pattern = re.compile(
        r"^ +([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(?:lock|xchg .*\()", re.MULTILINE
    )
    found = pattern.findall(listing)
    assert len(found) > 500
    for place, code in found[::3]:
        rip, length = int(place, 16), len(code.split())  # libc's .text: file offset is address
        registers = splitting(content[rip : rip + length], rip, rip + length)
        if registers is None:
            continue
        thread = Memory(content[rip - 40 : rip + length], rip + length, **registers)
        culprit = find_culprit(rip + length, thread, disassemble)
        assert culprit is not None and culprit.rip == rip, place


def splitting(code: bytes, rip: int, next_rip: int) -> dict[str, int] | None:
    """Registers with which the operand crosses a line; None where its address is fixed."""
    text = disassemble(code, rip, 64)
    size = operand_size(text)
    if size == 1 or "rip" in text or not re.search(r"\[r", text):
        return None
    for low in range(64):
        registers = dict.fromkeys(GENERAL, 65536 + low) | {"fs_base": 0x20000}
        linear = evaluate(text, registers, next_rip)
        if linear is not None and linear % 64 + (size or 0) > 64:
            return registers
    return None
