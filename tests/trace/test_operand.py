"""Operands with register values, also where the instruction overwrote a register."""

from __future__ import annotations

import pytest

from trapline.processor.buslock import BusLock, Cause
from trapline.processor.decode import disassemble
from trapline.trace.operand import Operand, evaluate, find_operand

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


@pytest.mark.parametrize(
    ("code", "bit", "distance", "shown"),
    [
        ("f0 48 0f ab 07", 448 + 3, 56, {"rax": 451}),  # lock bts [rdi], rax
        ("f0 48 0f b3 07", -72 * 8 + 3, -72, {"rax": (-573) & (1 << 64) - 1}),  # btr
        ("f0 0f bb 07", 0xFFFF_FFFF, -4, {"eax": 0xFFFF_FFFF}),  # btc [rdi], eax: -1
        ("f0 0f bb 07", 1 << 40 | 31, 0, {"eax": 31}),
        ("66 f0 0f ab 07", 0x1_8000, -4096, {"ax": 0x8000}),
        ("66 f0 0f ab 07", 16, 2, {"ax": 16}),
        ("f0 0f ba 2f 23", 99, 0, {}),  # bts dword ptr [rdi], 35: stays in the operand
    ],
)
def test_the_register_of_a_bit_test_moves_the_address(code, bit, distance, shown):
    """SDM 2A, "BTS": a bit offset in a register selects memory around the operand, signed."""
    content = bytes.fromhex(code)
    text = disassemble(content, 0x401000, 64)
    registers = {**REGISTERS, "rax": bit & (1 << 64) - 1}
    operand = operand_of(text, registers, 0x6000 + distance, 0x401000 + len(content))
    assert operand is not None
    assert operand.registers == {"rdi": 0x6000, **shown}
    assert evaluate(text, registers, 0x401000 + len(content)) == 0x6000 + distance


def test_a_bit_test_whose_bit_is_also_its_address():
    """The instruction changes neither: nothing is to be found again."""
    text = disassemble(bytes.fromhex("f0 48 0f ab 00"), 0x401000, 64)  # lock bts [rax], rax
    operand = operand_of(text, {**REGISTERS, "rax": 0x1000}, 0x1000 + 0x200, 0x401005)
    assert operand is not None
    assert operand.registers == {"rax": 0x1000}
