"""Modes in which only a part of the code is native: units switched off, exceptions unmasked."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from tests.processor.jit.flat import CODE, UD2, flat_core, load_code, run_to_fault
from tests.processor.long_mode import KERNEL, LongMode
from tests.processor.protected import CODE as CODE_32
from tests.processor.protected import Protected

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_EM, CR0_TS, CR4_OSFXSR, RFLAGS_RF
from trapline.processor.core import Core
from trapline.processor.segment import load_null

LOOP = bytes.fromhex("48ffc8 75fb")  # dec rax; jnz
ADDPS, FLD1, PADDD_MMX = (bytes.fromhex(code) for code in ("0f58c1", "d9e8", "0ffec1"))
DIVPS = bytes.fromhex("0f5ec1")  # xmm0 by xmm1
SET_OSFXSR = bytes.fromhex("0f20e1 80cd02 0f22e1")  # mov rcx, cr4; or ch, 2; mov cr4, rcx
CLTS = bytes.fromhex("0f06")
TURNS = 100_000


def _off(core: Core) -> None:
    core.state.cr4 &= ~CR4_OSFXSR


def _switched(core: Core) -> None:
    core.state.cr0 |= CR0_TS


def _emulated(core: Core) -> None:
    core.state.cr0 |= CR0_EM


def _unmasked(core: Core) -> None:
    core.state.mxcsr &= ~0x200  # division by zero


@pytest.mark.parametrize(
    "change, instruction, vector",
    [
        (_off, ADDPS, Vector.UD),
        (_switched, ADDPS, Vector.NM),
        (_switched, FLD1, Vector.NM),
        (_switched, PADDD_MMX, Vector.NM),
        (_emulated, ADDPS, Vector.UD),
        (_emulated, FLD1, Vector.NM),
        (_unmasked, DIVPS, Vector.XM),
    ],
)
def test_integers_stay_native_where_a_unit_is_not(
    change: Callable[[Core], None], instruction: bytes, vector: Vector
) -> None:
    core = flat_core()
    core.state.cr4 |= 0x400  # OSXMMEXCPT
    core.state.set_xmm(0, 0x3F800000)
    change(core)
    load_code(core, LOOP + b"\x90" * 3 + instruction + UD2)
    core.state.rax = TURNS
    fault = run_to_fault(core)
    assert (fault.vector, core.state.rip, core.state.rax) == (vector, CODE + len(LOOP) + 3, 0)
    assert core.engine is not None and core.engine.entries < 10


@pytest.mark.parametrize("change, cure", [(_off, SET_OSFXSR), (_switched, CLTS)])
def test_a_unit_works_once_it_is_switched_on(change: Callable[[Core], None], cure: bytes) -> None:
    """The same code in both modes: what was translated before does not count any more."""
    core = flat_core()
    change(core)
    load_code(core, ADDPS + UD2 + cure + b"\xeb" + bytes((-(len(cure) + 7) & 0xFF,)))
    core.state.set_xmm(0, 0x3F800000)
    core.state.set_xmm(1, 0x40000000)
    assert run_to_fault(core).vector in (Vector.UD, Vector.NM)
    assert core.state.rip == CODE
    core.state.rip = CODE + 5
    assert run_to_fault(core, CODE + 5).vector == Vector.UD
    assert core.state.rip == CODE + 3
    assert core.state.xmm(0) == 0x40400000


def test_32_bit_code_without_sse_is_native() -> None:
    """As a guest begins that a boot loader has started: CR4 is 0."""
    machine = Protected(engine="jit").ring(0, bytes.fromhex("4875fd f4"))  # dec eax; jnz; hlt
    machine.state.cr4 = 0
    machine.state.rax = TURNS
    machine.core.memory.mode_changed()
    machine.core.run()
    assert (machine.state.rax, machine.state.activity) == (0, 1)
    assert machine.core.engine is not None and machine.core.engine.entries < 10


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_code_breakpoints_slow_down_their_own_page_only(engine: str) -> None:
    """A loop at KERNEL calls two pages on, where the second instruction has a breakpoint."""
    turns, there = 30 if engine == "interp" else TURNS, KERNEL + 0x2000
    call = b"\xe8" + struct.pack("<i", there - (KERNEL + len(LOOP) + 5))
    machine = LongMode(engine=engine).kernel(LOOP + call + LOOP + b"\xf4", rax=turns)
    machine.bus.bytes[there : there + 8] = bytes.fromhex("90 b800000000 90 c3")
    state = machine.state
    machine.bus.bytes[there + 2 : there + 6] = struct.pack("<I", turns)
    state.dr1, state.dr7 = there + 1, 0x408
    machine.core.run()
    frame = machine.frame()
    assert (machine.vector, frame.rip, state.rax) == (Vector.DB, there + 1, 0)
    state.rip, state.rsp, state.activity = frame.rip, frame.rsp, 0
    state.system_flags |= RFLAGS_RF
    machine.core.run()  # over the breakpoint, through the other loop, to the HLT
    assert (state.rip, state.rax) == (KERNEL + len(LOOP) * 2 + 6, 0)
    if machine.core.engine is not None:
        assert machine.core.engine.entries < 40


def test_a_breakpoint_that_moves_is_met_where_it_is() -> None:
    """Code that native code knows already, and a breakpoint set and cleared by the guest."""
    set_dr0 = bytes.fromhex("b900a00000 0f23c1 31c9 66b90204 0f23f9")  # dr0 := a000h; dr7 := 402h
    machine = LongMode(engine="jit")
    machine.bus.bytes[0xA000:0xA002] = b"\x90\xc3"
    call = b"\xe8" + struct.pack("<i", 0xA000 - (KERNEL + 5))
    again = b"\xe8" + struct.pack("<i", 0xA000 - (KERNEL + 10 + len(set_dr0)))
    machine.kernel(call + set_dr0 + again + b"\xf4")
    machine.core.run()
    assert (machine.vector, machine.frame().rip) == (Vector.DB, 0xA000)


def test_32_bit_code_with_a_null_gs_is_native_but_for_gs() -> None:
    """dec eax; jnz; mov eax, gs:[eax]: the selector of GS is null, so that is #GP."""
    machine = Protected(engine="jit").ring(0, bytes.fromhex("4875fd 658b00 f4"))
    machine.state.rax = TURNS
    load_null(machine.core, "gs", 0)
    machine.core.run()
    assert (machine.vector, machine.state.rax) == (Vector.GP, 0)
    assert machine.stacked(2) == [0, CODE_32 + 3]  # the error code, and the faulting instruction
    assert machine.core.engine is not None and machine.core.engine.entries < 10
