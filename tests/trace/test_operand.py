"""Operands with register values, also where the instruction overwrote a register."""

from __future__ import annotations

import pytest

from trapline.processor.buslock import BusLock, Cause
from trapline.processor.decode import disassemble
from trapline.trace.operand import Operand, find_operand

REGISTERS = {name: 0x1000 * (n + 1) for n, name in enumerate(
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
)} | {"rip": 0x401005, "fs_base": 0x7000_0000, "gs_base": 0}  # fmt: skip


def operand_of(text: str, registers: dict, linear: int, next_rip: int) -> Operand | None:
    lock = BusLock(0x401000, next_rip, linear, 0, 4, 3, Cause.SPLIT)
    return find_operand(text, registers, lock)


@pytest.mark.parametrize(
    ("code", "expression", "shown", "linear"),
    [
        ("f0 0f c1 07", "dword ptr [rdi]", {"rdi": 0x6000}, 0x6000),
        ("f0 48 83 44 f7 3e 01", "qword ptr [rdi+rsi*8+0x3E]", {"rdi": 0x6000, "rsi": 0x5000},
         0x6000 + 0x5000 * 8 + 0x3E),
        ("f0 41 ff 45 f0", "dword ptr [r13-0x10]", {"r13": 0xE000}, 0xDFF0),
        ("f0 67 ff 07", "dword ptr [edi]", {"edi": 0x6000}, 0x6000),
        ("64 f0 ff 07", "dword ptr fs:[rdi]", {"rdi": 0x6000, "fs_base": 0x7000_0000}, 0x7000_6000),
        ("f0 ff 04 25 00 10 40 00", "dword ptr [0x401000]", {}, 0x401000),
    ],
)  # fmt: skip
def test_expressions_and_their_registers(code, expression, shown, linear):
    content = bytes.fromhex(code)
    text = disassemble(content, 0x401000, 64)
    operand = operand_of(text, REGISTERS, linear, 0x401000 + len(content))
    assert operand is not None
    assert operand.text.lower() == expression.lower()
    assert operand.registers == shown


def test_a_rip_relative_operand_uses_the_next_instruction():
    text = disassemble(bytes.fromhex("f0 ff 05 10 00 00 00"), 0x401000, 64)
    operand = operand_of(text, REGISTERS, 0x401017, 0x401007)
    assert operand is not None
    assert operand.registers in ({}, {"rip": 0x401007})


@pytest.mark.parametrize(
    ("code", "name", "before", "after"),
    [
        ("f0 0f c1 3f", "rdi", 0x9003E, 1),  # lock xadd [rdi], edi
        ("48 87 1b", "rbx", 0x9003E, 7),  # xchg [rbx], rbx
        ("f0 0f b1 0c 85 00 00 00 00", "rax", 0x2400F, 0x77),  # lock cmpxchg [rax*4], ecx
        ("f0 45 0f c1 00", "r8", 0x9003E, 2),  # lock xadd [r8], r8d
    ],
)
def test_a_register_the_instruction_changed_is_found_again(code, name, before, after):
    content = bytes.fromhex(code)
    text = disassemble(content, 0x401000, 64)
    linear = before * 4 if "*4" in text else before
    operand = operand_of(text, {**REGISTERS, name: after}, linear, 0x401000 + len(content))
    assert operand is not None
    assert operand.registers == {name: before}


def test_an_unexplained_address_leaves_the_registers_as_they_are():
    operand = operand_of("lock inc dword ptr [rdi]", REGISTERS, 0x1234, 0x401005)
    assert operand is not None
    assert str(operand) == "dword ptr [rdi]  rdi=0x6000"


@pytest.mark.parametrize("text", ["(bad)", "", "lock", "inc eax"])
def test_text_without_a_memory_operand_has_none(text):
    assert operand_of(text, REGISTERS, 0, 0) is None
