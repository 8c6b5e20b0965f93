"""Segments of 4 GiB, whatever their base: both engines hold operands to the limit (SDM 3A, 5.3)."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import KERNEL_CS, KERNEL_SS, LongMode
from tests.processor.protected import CODE, CODE3, DATA3, Protected
from trapline.arch import descriptor as d
from trapline.arch.exception import Vector
from trapline.arch.paging import PTE_P, PTE_W
from trapline.processor.segment import fill

ENGINES = ("interp", "jit")
BASE, TURNS = 0x10000, 2000
# A segment, an instruction that goes through it at EBX, EBP, EDI or ESP, its operand's size.
OPERANDS = [
    ("ds", "8b03", 4),  # mov eax, [ebx]
    ("ds", "668903", 2),  # mov [ebx], ax
    ("ds", "f0ff03", 4),  # lock inc dword [ebx]
    ("es", "ab", 4),  # stosd
    ("ss", "8b4500", 4),  # mov eax, [ebp]
    ("ss", "58", 4),  # pop eax
    ("cs", "2e8b03", 4),  # mov eax, cs:[ebx]
    ("fs", "648b03", 4),  # mov eax, fs:[ebx]
    ("fs", "64ff03", 4),  # inc dword fs:[ebx]
    ("gs", "65f0ff03", 4),  # lock inc dword gs:[ebx]
    ("gs", "650f1003", 16),  # movups xmm0, gs:[ebx]
    ("fs", "64dd03", 8),  # fld qword fs:[ebx]
]


def _machine(engine: str, base: int, segment: str, code: str, offset: int) -> Protected:
    """32-bit code at CPL 3 with one segment that has a base, its pointers at an offset there."""
    machine = Protected(engine=engine).ring(3, bytes.fromhex(code + "f4"))
    state = machine.state
    rights, selector = (d.AR_CODE32, CODE3) if segment == "cs" else (d.AR_DATA32, DATA3)
    descriptor = d.build_segment(base, d.FLAT_LIMIT, d.with_dpl(rights, 3))
    fill(state, segment, selector, descriptor)
    for name in ("rbx", "rbp", "rdi"):
        setattr(state, name, offset)
    if code == "58":
        state.rsp = offset
    state.rip = CODE - state.cs_base & 0xFFFFFFFF
    return machine


def _run(machine: Protected) -> tuple[int | None, int]:
    """Up to a fault: its vector and EIP.  HLT at CPL 3 is one."""
    machine.core.run()
    machine.state.rip -= 1  # the handler's own HLT
    return machine.vector, machine.stacked(2)[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [0, BASE])
@pytest.mark.parametrize("segment, code, size", OPERANDS)
def test_no_operand_goes_on_beyond_4_gib(
    engine: str, base: int, segment: str, code: str, size: int
) -> None:
    machine = _machine(engine, base, segment, code, (1 << 32) - size // 2)
    rip, around = machine.state.rip, slice(BASE - 16, BASE + 16)
    before = bytes(machine.bus.bytes[around])
    assert _run(machine) == (Vector.SS if segment == "ss" else Vector.GP, rip)
    assert (machine.state.rax, bytes(machine.bus.bytes[around])) == (0, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("segment, code, size", OPERANDS)
def test_an_operand_may_end_at_4_gib(engine: str, segment: str, code: str, size: int) -> None:
    """Its end is then where the segment begins, less one."""
    machine = _machine(engine, BASE, segment, code, (1 << 32) - size)
    state, rip, length = machine.state, machine.state.rip, len(code) // 2
    machine.bus.bytes[BASE - 1] = 0x12
    before = bytes(machine.bus.bytes[BASE - size : BASE])
    assert _run(machine) == (Vector.GP, rip + length)
    after = bytes(machine.bus.bytes[BASE - size : BASE])
    if "8b" in code or code == "58":
        assert (state.rax, after) == (0x12 << 24, before)
    elif "ff" in code:
        assert after == (int.from_bytes(before, "little") + 1).to_bytes(size, "little")
    elif code in ("ab", "668903"):
        assert after == bytes(size)
    else:
        assert after == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["8b03", "8903", "f0ff03"])
def test_what_64_bit_code_has_beyond_4_gib_is_not_reached(engine: str, code: str) -> None:
    """The pages below and above 4 GiB, which 64-bit code has just used, and compatibility mode."""
    setup = "b8ffffffff fe00 48ffc0 fe00 f4"  # inc byte [ffffffff]; inc byte [100000000]
    machine = LongMode(engine=engine).kernel(bytes.fromhex(setup))
    machine.tables.map(0xFFFFF000, 0x60000, PTE_P | PTE_W)
    machine.tables.map(0x1_0000_0000, 0x61000, PTE_P | PTE_W)
    state = machine.state
    machine.core.run()
    assert (machine.bus.bytes[0x60FFF], machine.bus.bytes[0x61000], state.activity) == (1, 1, 1)
    fill(state, "cs", KERNEL_CS, d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE32))
    for name in ("ds", "es", "ss"):
        fill(state, name, KERNEL_SS, d.build_segment(0, d.FLAT_LIMIT, d.AR_DATA32))
    state.rip, state.activity, state.rax, state.rbx = state.rip + 0x20, 0, 0, 0xFFFFFFFE
    rip = state.rip
    machine.bus.load(rip, bytes.fromhex(code + "f4"))
    machine.core.run()
    state.rip -= 1
    assert (machine.vector, machine.frame(has_error_code=True).rip) == (Vector.GP, rip)
    assert (machine.bus.bytes[0x60FFF], machine.bus.bytes[0x61000]) == (1, 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["488b03", "488903", "f048ff03"])
def test_64_bit_code_goes_across_4_gib(engine: str, code: str) -> None:
    machine = LongMode(engine=engine).kernel(
        bytes.fromhex(code + "f4"), rbx=0xFFFFFFFC, rax=0x1122334455667788
    )
    machine.tables.map(0xFFFFF000, 0x60000, PTE_P | PTE_W)
    machine.tables.map(0x1_0000_0000, 0x61000, PTE_P | PTE_W)
    machine.set_word(0x60FFC, 0xFFFFFFFF, 4)
    machine.core.run()
    found = machine.word(0x60FFC, 4) | machine.word(0x61000, 4) << 32
    wanted = {"488b03": 0xFFFFFFFF, "488903": 0x1122334455667788, "f048ff03": 1 << 32}
    assert (found, machine.state.activity) == (wanted[code], 1)
    if code == "488b03":
        assert machine.state.rax == 0xFFFFFFFF


def test_thread_data_below_a_base_is_native() -> None:
    """As the i386 ABI has it: GS with a base, reached with small negative offsets."""
    machine = _machine("jit", BASE, "gs", "65ff03 4e 75fa", (1 << 32) - 4)
    machine.state.rsi = TURNS  # inc dword gs:[ebx]; dec esi; jnz
    assert _run(machine)[0] == Vector.GP
    assert machine.word(BASE - 4, 4) == TURNS
    assert machine.core.engine is not None and machine.core.engine.entries < 20
