"""What CS and SS say about code: bitness, stack width, limit and base, on both engines."""

from __future__ import annotations

import pytest

from tests.processor.protected import CODE, CODE0, DATA0, Protected
from trapline.arch import descriptor as d
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
