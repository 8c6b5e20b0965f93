"""IN, OUT, INS, OUTS: what reaches the bus, and who may do it."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import DATA, KERNEL, TASK, USER, LongMode
from trapline.arch.registers import RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_TF
from trapline.processor.memory import Ram

DB, GP = 1, 13
IN_AL_60, OUT_DX_EAX, OUT_60_AL = b"\xe4\x60", b"\xef", b"\xe6\x60"


class Ports:
    """A device of 16 ports that counts up and keeps what it gets."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int, int]] = []
        self.count = 0

    def read(self, offset: int, size: int) -> int:
        self.count += 1
        return self.count

    def write(self, offset: int, size: int, word: int) -> None:
        self.log.append((offset, size, word))


class Wired(LongMode):
    """A processor with the device at port 0x60."""

    def __init__(self, engine: str = "interp") -> None:
        super().__init__(engine=engine)
        self.ports = Ports()
        assert isinstance(self.bus, Ram)
        self.bus.attach_port(0x60, 16, self.ports)


@pytest.fixture
def machine() -> Wired:
    return Wired()


def test_in_and_out_by_size(machine: Wired) -> None:
    code = IN_AL_60 + OUT_60_AL + b"\x66\xef" + OUT_DX_EAX + b"\xed"
    machine.kernel(code, rax=0x1122334455667788, rdx=0x64).step()
    assert machine.state.rax == 0x1122334455667701  # only AL
    machine.step(3)
    assert machine.ports.log == [(0, 1, 1), (4, 2, 0x7701), (4, 4, 0x55667701)]
    machine.step()
    assert machine.state.rax == 2  # EAX, zero-extended


def test_nobody_answers_with_ones(machine: Wired) -> None:
    machine.kernel(b"\x66\xed", rdx=0x1000, rax=0).step()
    assert machine.state.rax == 0xFFFF


def test_users_need_iopl_or_the_bitmap(machine: Wired) -> None:
    machine.user(IN_AL_60).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)
    machine.user(IN_AL_60, system_flags=2 | RFLAGS_IOPL).step()
    assert machine.state.rip == USER + 2
    machine.state.tr_limit = 0x68 + 0x20
    machine.set_word(TASK + 0x66, 0x68, 2)
    machine.set_word(TASK + 0x68 + 0x0C, 0xFE, 1)  # port 0x60 allowed, 0x61 not
    machine.user(IN_AL_60, system_flags=2).step()
    assert machine.state.rip == USER + 2
    machine.user(b"\x66\xe5\x60").step()  # in ax: both ports
    assert machine.vector == GP
    machine.user(b"\xec", rdx=0x200).step()  # beyond the TSS
    assert machine.vector == GP


def test_repeated_input_fills_memory(machine: Wired) -> None:
    machine.kernel(b"\xf3\x6c", rdx=0x60, rdi=DATA, rcx=3)
    machine.step(3)
    assert (machine.state.rip, machine.state.rcx, machine.state.rdi) == (KERNEL + 2, 0, DATA + 3)
    assert machine.word(0x42000, 3) == 0x030201
    machine.kernel(b"\xf3\x6c", rcx=0).step()
    assert machine.state.rip == KERNEL + 2


def test_repeated_output_goes_down_with_df(machine: Wired) -> None:
    machine.set_word(0x42000, 0x1111_2222_3333_4444)
    registers = {"rdx": 0x60, "rsi": DATA + 4, "rcx": 2, "system_flags": 2 | 1 << 10}
    machine.kernel(b"\xf3\x6f", **registers).step(2)
    assert [word for _, _, word in machine.ports.log] == [0x11112222, 0x33334444]
    assert machine.state.rsi == DATA - 4


def test_a_faulting_element_leaves_the_count(machine: Wired) -> None:
    machine.user(b"\xf3\x6c", rdx=0x60, rdi=USER + 0x5FFF, rcx=3, system_flags=2 | RFLAGS_IOPL)
    machine.step(2)
    assert (machine.vector, machine.state.rcx, machine.state.rdi) == (14, 2, USER + 0x6000)
    assert machine.ports.count == 1


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("code", [b"\xf3\x6c", b"\xf3\x6e", b"\x66\xf3\x6f"])
def test_a_breakpoint_that_was_resumed_over_is_not_hit_between_iterations(
    engine: str, code: bytes
) -> None:
    """SDM 3B, "Instruction-Breakpoint Exception Condition": RF stays until the last iteration."""
    machine = Wired(engine)
    registers = {"rdx": 0x60, "rsi": DATA, "rdi": DATA, "rcx": 3}
    machine.kernel(code + b"\x90\xf4", **registers, system_flags=2 | RFLAGS_RF)
    state = machine.state
    state.dr0, state.dr7 = KERNEL, 0x402
    machine.core.memory.breakpoints_changed()
    machine.step(2)
    assert (state.rip, state.rcx, state.system_flags) == (KERNEL, 1, 2 | RFLAGS_RF)
    machine.step()
    assert (state.rip, state.rcx, state.system_flags) == (KERNEL + len(code), 0, 2)
    machine.kernel(b"", **registers, system_flags=2 | RFLAGS_RF).core.run()
    assert (machine.vector, state.rip, state.rcx) == (None, KERNEL + len(code) + 2, 0)


@pytest.mark.parametrize("code", [b"\xf3\x6c", b"\xf3\x6e"])
def test_what_comes_between_iterations_pushes_rf(machine: Wired, code: bytes) -> None:
    registers = {"rdx": 0x60, "rsi": DATA, "rdi": DATA, "rcx": 3}
    machine.kernel(code, **registers, system_flags=2 | RFLAGS_IF).step()
    machine.core.interrupt_lines.raise_interrupt(0x40)
    machine.step()
    assert machine.vector == 0x40 and machine.state.rcx == 2
    assert (machine.frame().rip, machine.frame().rflags) == (KERNEL, 2 | RFLAGS_IF | RFLAGS_RF)
    for left, rflags in ((2, RFLAGS_RF), (1, RFLAGS_RF), (0, 0)):
        machine.kernel(code, **registers, system_flags=2 | RFLAGS_TF, activity=0)
        machine.state.rcx = left + 1
        machine.step(2)
        assert (machine.vector, machine.state.rcx) == (DB, left)
        assert machine.frame().rflags == 2 | RFLAGS_TF | rflags
