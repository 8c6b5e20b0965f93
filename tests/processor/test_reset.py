"""RESET and INIT (SDM 3A, "Processor State After Reset")."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import LongMode
from trapline.arch.msr import IA32_DEBUGCTL
from trapline.arch.registers import CR0_CD, CR0_NW
from trapline.processor import reset


@pytest.fixture
def machine() -> LongMode:
    machine = LongMode()
    machine.core.msrs.write(IA32_DEBUGCTL, 4)
    registers = {"rax": 1, "dr0": 2, "dr6": 0xFFFF07F0, "dr7": 0x401, "fsw": 3, "cr2": 4}
    return machine.user(b"\x90", pending_debug=0x800, activity=1, **registers)


def test_both_start_at_the_reset_vector(machine: LongMode) -> None:
    for start in (reset.init, reset.reset):
        start(machine.core)
        state = machine.state
        assert (state.rip, state.cs_base, state.cs_selector) == (0xFFF0, 0xFFFF0000, 0xF000)
        assert (state.rax, state.rdx, state.rflags, state.cpl) == (0, 0x806F8, 2, 0)
        assert (state.dr0, state.dr6, state.dr7) == (0, 0xFFFF0FF0, 0x400)
        assert (state.cr2, state.cr4, state.efer) == (0, 0, 0)
        assert (state.activity, state.pending_debug) == (0, 0)
        assert machine.core.code_mode == (16, 16)
        assert state.tlb == state.tlb_supervisor


def test_init_keeps_msrs_floating_point_and_the_caches(machine: LongMode) -> None:
    reset.init(machine.core)
    assert machine.core.msrs.read(IA32_DEBUGCTL) == 4  # BLD survives a soft reboot
    assert (machine.state.fsw, machine.state.fcw) == (3, 0x37F)
    assert not machine.state.cr0 & (CR0_CD | CR0_NW)


def test_reset_keeps_nothing(machine: LongMode) -> None:
    reset.reset(machine.core)
    assert machine.core.msrs.read(IA32_DEBUGCTL) == 0
    assert (machine.state.fsw, machine.state.fcw, machine.state.mxcsr) == (0, 0x40, 0x1F80)
    assert machine.state.cr0 == 0x60000010


def test_the_first_instruction_is_fetched_below_4_gib(machine: LongMode) -> None:
    class Rom:
        """A device of ones with a HLT at the reset vector."""

        def read(self, offset: int, size: int) -> int:
            code = b"\xf4".rjust(0xFF1, b"\xff").ljust(0x1000, b"\xff")
            return int.from_bytes(code[offset : offset + size], "little")

        def write(self, offset: int, size: int, word: int) -> None: ...

    machine.bus.attach(0xFFFF_F000, 0x1000, Rom())  # type: ignore[attr-defined]
    reset.reset(machine.core)
    machine.step()
    assert (machine.state.activity, machine.state.rip) == (1, 0xFFF1)
