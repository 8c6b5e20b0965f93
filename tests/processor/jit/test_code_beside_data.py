"""Data in a page that holds translated code is written natively; code that is written counts."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processor.jit.flat import CODE, UD2, flat_core, load_code, run_to_fault

from trapline.arch.exception import Vector
from trapline.processor.cluster import Cluster
from trapline.processor.memory import Ram

DATA = CODE + 0x800
TURNS = 2_000
LOOP = bytes.fromhex("48ffc9 75")  # dec rcx; jnz

STORES = {
    "mov [rdi], al": ("8807", 1),
    "mov [rdi], ax": ("668907", 2),
    "mov [rdi], eax": ("8907", 4),
    "mov [rdi], rax": ("488907", 8),
    "movups [rdi], xmm0": ("0f1107", 16),
    "add [rdi], rax": ("480107", 8),
    "push rax; pop rdx": ("50 5a", 8),
    "stosq; sub rdi, 8": ("48ab 4883ef08", 8),
}


@pytest.mark.parametrize("at", [DATA, DATA + 1, CODE + 0xFF0, CODE + 0x1000 - 16])
@pytest.mark.parametrize("name", STORES)
def test_data_beside_code_is_written_natively(name: str, at: int) -> None:
    code, size = STORES[name]
    core = flat_core()
    body = bytes.fromhex(code)
    load_code(core, body + LOOP + struct.pack("b", -(len(body) + 5)) + UD2)
    state = core.state
    state.rax, state.rcx, state.rdi, state.rsp = 0x1122334455667788, TURNS, at, at + 8
    state.set_xmm(0, 0xFFEEDDCCBBAA99881122334455667788)
    run_to_fault(core)
    word = 0xFFEEDDCCBBAA99881122334455667788 if size == 16 else 0x1122334455667788
    if name.startswith("add"):
        word = word * TURNS
    assert isinstance(core.bus, Ram)
    written = core.bus.bytes[at : at + size]
    assert int.from_bytes(written, "little") == word & (1 << 8 * size) - 1
    assert core.engine is not None and core.engine.entries < 40


@pytest.mark.parametrize("offset, drops", [(-1, False), (0, True), (9, True), (10, False)])
def test_only_bytes_of_code_take_its_translation_away(offset: int, drops: bool) -> None:
    core = flat_core()
    load_code(core, bytes.fromhex("8807") + UD2)  # mov [rdi], al
    jump = b"\xe9" + struct.pack("<i", CODE + 2 - (DATA + 10))  # to the UD2
    load_code(core, bytes.fromhex("b801000000") + jump, DATA)  # mov eax, 1: ten bytes in all
    core.state.rdi = DATA + 0x100
    run_to_fault(core)
    run_to_fault(core, DATA)
    before = set(core.cluster.code.blocks)
    assert isinstance(core.bus, Ram)
    core.state.rdi, core.state.rax = DATA + offset, core.bus.bytes[DATA + offset]
    run_to_fault(core)
    assert (before <= set(core.cluster.code.blocks)) is not drops


def test_data_becomes_code_and_changes_again() -> None:
    """mov [DATA + 1], ecx; call DATA (mov eax, imm32; ret); add rdx, rax: 1 + 2 + ... + n."""
    core = flat_core()
    store = bytes.fromhex("890c25") + struct.pack("<I", DATA + 1)
    call = b"\xe8" + struct.pack("<i", DATA - (CODE + len(store) + 5))
    body = store + call + bytes.fromhex("4801c2")
    load_code(core, body + LOOP + struct.pack("b", -(len(body) + 5)) + UD2)
    load_code(core, bytes.fromhex("b800000000 c3"), DATA)
    core.state.rcx = 300
    run_to_fault(core)
    assert core.state.rdx == 300 * 301 // 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=12,
    )
)
def test_written_code_is_what_runs(writes: list[tuple[int, int, int]]) -> None:
    """Stores into and around a row of `add eax, imm8`, run after each."""
    core = flat_core()
    row = bytearray(bytes.fromhex("83c001") * 8 + UD2)
    load_code(core, bytes(row), DATA)
    for size, code in ((1, "8807"), (2, "668907"), (4, "8907"), (8, "488907")):
        load_code(core, bytes.fromhex(code) + UD2, CODE + 0x10 * size)
    assert isinstance(core.bus, Ram)
    for at, size, word in writes:
        # Only into immediates, or behind the row: so that what runs stays what it looks like.
        place = DATA + len(row) + at if size > 1 else DATA + 3 * (at % 8) + 2
        core.state.rdi, core.state.rax = place, word
        run_to_fault(core, CODE + 0x10 * size)
        core.state.rax = 0
        run_to_fault(core, DATA)
        seen = core.bus.bytes[DATA : DATA + 24]
        signed = struct.unpack("8b", bytes(seen[2::3]))
        assert core.state.rax == sum(signed) & 0xFFFFFFFF


def test_another_processors_data_is_written_natively_too() -> None:
    ram, cluster = Ram(1 << 20), Cluster()
    first, second = (flat_core(bus=ram, cluster=cluster) for _ in range(2))
    body = bytes.fromhex("480107")  # add [rdi], rax
    ram.load(CODE, body + LOOP + struct.pack("b", -(len(body) + 5)) + UD2)
    for i, core in enumerate((first, second)):
        core.state.rax, core.state.rcx, core.state.rdi = 1, TURNS, DATA + 64 * i
        run_to_fault(core)
        assert int.from_bytes(ram.bytes[DATA + 64 * i : DATA + 64 * i + 8], "little") == TURNS
        assert core.engine is not None and core.engine.entries < 40


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("code, size", [("f3a4", 1), ("f348a5", 8), ("f3aa", 1), ("f366ab", 2)])
@pytest.mark.parametrize("down", [False, True])
def test_a_rep_instruction_that_writes_itself_is_fetched_again(
    engine: str, code: str, size: int, down: bool
) -> None:
    """MOVS and STOS with bytes that are no instruction: #UD right after the one that hits it."""
    instruction = bytes.fromhex(code)
    core = flat_core(engine)
    load_code(core, instruction + UD2)
    assert isinstance(core.bus, Ram)
    core.bus.bytes[0x30000:0x32000] = b"\x06" * 0x2000
    state, before = core.state, 20
    state.rax, state.rsi, state.rcx = 0x0606060606060606, 0x31000, 100
    last = len(instruction) - 1
    state.rdi = CODE + (last // size + before) * size if down else CODE - before * size
    state.system_flags = 2 | down << 10
    fault = run_to_fault(core)
    assert (fault.vector, state.rip, state.rcx) == (Vector.UD, CODE, 100 - before - 1)
