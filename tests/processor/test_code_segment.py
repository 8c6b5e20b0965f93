"""What CS and SS say about code: bitness, stack width, limit and base, on both engines."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import KERNEL_CS, USER, USER32_CS, USER_PHYSICAL, LongMode
from tests.processor.protected import CODE, CODE0, DATA0, HANDLER, Protected
from trapline.arch import descriptor as d
from trapline.arch.exception import Vector
from trapline.arch.paging import PTE_P, PTE_W
from trapline.processor.segment import fill

ENGINES = ("interp", "jit")
STACK = 0x8800
CODE_BY_WIDTH = {
    16: d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE16 | d.AR_G),
    32: d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE32),
}
STACK_BY_WIDTH = {
    16: d.build_segment(0, d.FLAT_LIMIT, d.AR_DATA16 | d.AR_G),
    32: d.build_segment(0, d.FLAT_LIMIT, d.AR_DATA32),
}
MODES = ((16, 32), (32, 16), (16, 16), (32, 32))


def _enter(machine: Protected, at: int, mode: tuple[int, int]) -> None:
    """Code of a bitness at an address, with a stack pointer of a width."""
    state = machine.state
    fill(state, "cs", CODE0, CODE_BY_WIDTH[mode[0]])
    fill(state, "ss", DATA0, STACK_BY_WIDTH[mode[1]])
    state.rip, state.rsp, state.activity = at, STACK, 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [MODES, MODES[::-1]])
def test_the_same_bytes_are_other_instructions_in_another_mode(
    engine: str, order: tuple[tuple[int, int], ...]
) -> None:
    """SDM 3A, 3.4.5: CS.D is the code's default size, SS.B the stack pointer's, independently."""
    code = bytes.fromhex("b8 1122 33c0 f4")  # mov ax, 2211h; xor ax, ax -- or mov eax, c0332211h
    machine = Protected(engine=engine).ring(0, code)
    found = {}
    for mode in order:
        _enter(machine, CODE, mode)
        machine.state.rax = 0x55555555
        machine.core.run()
        found[mode] = machine.state.rax
    wanted = {16: 0x55550000, 32: 0xC0332211}
    assert found == {mode: wanted[mode[0]] for mode in MODES}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_bytes_mean_in_one_mode_is_not_kept_for_another(engine: str) -> None:
    """The same PUSH at four addresses, in four modes: each moves the stack by its own width."""
    machine = Protected(engine=engine).ring(0, b"")
    moved = {}
    for number, mode in enumerate(MODES):
        at = 0xA000 + 0x1000 * number
        machine.bus.bytes[at : at + 2] = bytes.fromhex("50 f4")  # push eax or ax; hlt
        _enter(machine, at, mode)
        machine.core.run()
        moved[mode] = STACK - machine.state.rsp
    assert moved == {mode: mode[0] // 8 for mode in MODES}


# -- the limit: SDM 3A, 5.3 ------------------------------------------------------------------------


def _limited(engine: str, limit: int) -> Protected:
    """32-bit code, MOV EAX and two NOPs, up to a limit of CS."""
    machine = Protected(engine=engine).ring(0, bytes.fromhex("b8 11223344 90 90 f4"))
    machine.state.cs_limit = limit
    return machine


def _fault(machine: Protected, count: int = 2) -> tuple[int | None, list[int]]:
    """What the code came to: the vector, and the handler's stack."""
    machine.core.run()
    machine.state.rip -= 1  # the handler's HLT
    return machine.vector, machine.stacked(count)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 4])
def test_an_instruction_cut_by_the_limit_does_nothing(engine: str, size: int) -> None:
    machine = _limited(engine, CODE + size - 1)
    assert _fault(machine) == (Vector.GP, [0, CODE])
    assert machine.state.rax == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_instruction_may_end_at_the_limit(engine: str) -> None:
    machine = _limited(engine, CODE + 5)
    assert _fault(machine) == (Vector.GP, [0, CODE + 6])
    assert machine.state.rax == 0x44332211


@pytest.mark.parametrize("engine", ENGINES)
def test_a_smaller_limit_counts_for_code_that_is_known(engine: str) -> None:
    """First with one that lets everything pass, then with one that cuts the first instruction."""
    machine = _limited(engine, CODE + 0x100)
    state = machine.state
    for limit in (CODE + 0x100, d.FLAT_LIMIT):
        state.rip, state.rax, state.cs_limit = CODE, 0, limit
        machine.core.run()
        assert (state.rip, state.rax, state.activity) == (CODE + 8, 0x44332211, 1)
        state.rip, state.rax, state.cs_limit, state.activity = CODE, 0, CODE + 3, 0
        assert _fault(machine) == (Vector.GP, [0, CODE])
        assert state.rax == 0
        state.activity = 0


@pytest.mark.parametrize("engine", ENGINES)
def test_real_mode_code_ends_at_its_limit(engine: str) -> None:
    machine = Protected(engine=engine).real(b"")
    machine.bus.bytes[CODE + 0xFFFF : CODE + 0x10002] = bytes.fromhex("b8 3412")
    machine.state.rip = 0xFFFF
    machine.core.run()
    state = machine.state
    assert (state.rip - 1 - HANDLER, state.rax) == (Vector.GP, 0)
    assert machine.stacked(1, 2) == [0xFFFF]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last, vector", [(0x5FFF, Vector.GP), (0x6000, Vector.PF)])
@pytest.mark.parametrize("code", ["90", "b8"])
def test_the_limit_comes_before_the_page_beyond(
    engine: str, last: int, vector: Vector, code: str
) -> None:
    """The last byte of the last page there is: a NOP, or the first of an instruction's bytes."""
    machine = LongMode(engine=engine).user_32(b"")
    machine.bus.bytes[USER_PHYSICAL + 0x5FFF] = int(code, 16)
    machine.state.cs_limit, machine.state.rip = USER + last, USER + 0x5FFF
    machine.core.run()
    machine.state.rip -= 1
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.rip) == (vector, USER + (0x6000 if code == "90" else 0x5FFF))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_instruction_on_two_pages_is_read_whole_each_time(engine: str) -> None:
    """What is kept of it must not outlive its second half."""
    machine = Protected(engine=engine).ring(0, b"")
    code = bytes.fromhex("b8 1122 3344 f4")
    for last in (0x44, 0x55):
        machine.bus.load(0xA000 - 3, code[:4] + bytes((last,)) + code[5:])
        machine.core.flush_translations(machine.bus.start + 0xA000)
        machine.core.memory.flush()
        machine.state.rip, machine.state.activity = 0xA000 - 3, 0
        machine.core.run()
        assert machine.state.rax == 0x332211 | last << 24


# -- the base: SDM 3A, 3.4: linear addresses of such code have 32 bits ----------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_base_and_offset_go_around_in_compatibility_mode(engine: str) -> None:
    machine = LongMode(engine=engine).user_32(bytes.fromhex("b8 01000000 cc"))
    base = d.build_segment(0xFFFF0000, d.FLAT_LIMIT, d.with_dpl(d.AR_CODE32, 3))
    fill(machine.state, "cs", USER32_CS, base)
    machine.state.rip = USER + 0x10000
    machine.core.run()
    machine.state.rip -= 1
    assert (machine.vector, machine.state.rax) == (Vector.BP, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_instruction_goes_around_at_4_gib(engine: str) -> None:
    """Three bytes below 4 GiB, two at 0; above 4 GiB, where 64-bit code may go, are others."""
    machine = LongMode(engine=engine).kernel(b"")
    state, high, above = machine.state, 0x60000, 0x61000
    fill(state, "cs", KERNEL_CS, d.build_segment(0x1000, d.FLAT_LIMIT, d.AR_CODE32))
    machine.tables.map(0xFFFFF000, high, PTE_P | PTE_W)
    machine.tables.map(0x1_0000_0000, above, PTE_P | PTE_W)
    machine.bus.bytes[high + 0xFFD : high + 0x1000] = bytes.fromhex("b8 1122")
    machine.bus.bytes[:3] = bytes.fromhex("3344 f4")
    machine.bus.bytes[above : above + 3] = bytes.fromhex("5566 f4")
    assert machine.core.memory.fetch(0x1_0000_0000, 2) == b"\x55\x66"
    state.rip = 0xFFFFEFFD
    machine.core.run()
    assert (state.rax, state.rip, state.activity) == (0x44332211, 0xFFFFF003, 1)
