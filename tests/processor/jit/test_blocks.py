"""Blocks: links, code that is written, instructions across pages, silent bus locks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.processor.jit.flat import CODE, DATA, UD2, flat_core, load_code, run_to_fault

from trapline.processor import exceptions
from trapline.processor.buslock import BusLock, Cause, Outcome
from trapline.processor.core import Core
from trapline.processor.fault import Fault
from trapline.processor.memory import Ram


def _load(core: Core, at: int, content: bytes) -> None:
    assert isinstance(core.bus, Ram)
    core.bus.load(at, content)


def test_a_loop_stays_in_native_code() -> None:
    core = flat_core()
    _load(core, CODE, bytes.fromhex("48ffc875fb") + UD2)  # dec rax; jne -5
    core.state.rax = 100_000
    run_to_fault(core)
    assert core.state.rax == 0
    assert core.engine is not None and core.engine.entries < 10


def test_code_that_writes_its_own_page_runs_what_it_wrote() -> None:
    core = flat_core()
    # mov byte [CODE + 16], 2; nops; at 16: the immediate of add eax, 1
    code = bytes.fromhex("c60425") + (CODE + 16).to_bytes(4, "little") + b"\x02"
    code = code.ljust(14, b"\x90") + bytes.fromhex("83c001") + UD2
    _load(core, CODE, code)
    run_to_fault(core)
    assert core.state.rax == 2


def test_code_written_after_it_ran_is_translated_again() -> None:
    core = flat_core()
    _load(core, CODE, bytes.fromhex("b801000000") + UD2)  # mov eax, 1
    run_to_fault(core)
    assert core.state.rax == 1
    _load(
        core,
        CODE + 0x1000,
        bytes.fromhex("c60425") + (CODE + 1).to_bytes(4, "little") + b"\x07" + UD2,
    )
    run_to_fault(core, CODE + 0x1000)
    run_to_fault(core)
    assert core.state.rax == 7


def test_an_instruction_across_two_pages_runs_and_follows_writes_to_either() -> None:
    core = flat_core()
    at = CODE + 0xFFD
    _load(core, at, bytes.fromhex("b801020304") + UD2)  # mov eax, 0x04030201
    run_to_fault(core, at)
    assert core.state.rax == 0x04030201
    core.memory.write(CODE + 0x1001, 1, 0x77)
    run_to_fault(core, at)
    assert core.state.rax == 0x77030201


def test_operands_across_two_pages_are_read_and_written_whole() -> None:
    core = flat_core()
    at = DATA + 0xFFC
    word = 0x1122334455667788
    core.memory.write(at, 8, word)
    # mov rax, [rdi]; inc qword [rdi]; xchg [rsi], rax
    _load(core, CODE, bytes.fromhex("488b0748ff07488706") + UD2)
    core.state.rdi, core.state.rsi = at, DATA + 0x10
    run_to_fault(core)
    assert core.memory.read(at, 8) == word + 1
    assert core.memory.read(DATA + 0x10, 8) == word


class _Recorder:
    def __init__(self) -> None:
        self.locks: list[tuple[BusLock, Outcome]] = []
        self.totals: list[tuple[Any, ...]] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(self, *total: Any) -> None:
        self.totals.append(total)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        pass


def _stop(core: Core, fault: Fault) -> None:
    raise fault


def test_silent_bus_locks_are_counted_without_leaving_native_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = flat_core()
    core.observer = recorder = _Recorder()
    _load(core, CODE, bytes.fromhex("f0ff0748ffc875f8") + UD2)  # lock inc [rdi]; dec; jne
    core.state.rax, core.state.rdi = 50_000, DATA + 62
    monkeypatch.setattr(exceptions, "deliver_fault", _stop)
    core.state.rip = CODE
    with pytest.raises(Fault):
        core.run()
    core.hand_over_bus_locks()
    assert core.memory.read(DATA + 62, 4) == 50_000
    assert core.state.bus_lock_count == 50_000
    assert len(recorder.locks) == 1  # the first one, with its outcome
    assert sum(total[-1] for total in recorder.totals) == 49_999
    assert recorder.totals[0][:6] == (CODE, CODE + 3, Cause.SPLIT, 4, 0, DATA + 62)
    assert core.engine is not None and core.engine.entries < 10


def test_a_locked_operand_within_a_line_is_no_bus_lock() -> None:
    core = flat_core()
    _load(core, CODE, bytes.fromhex("f0ff07f0480fc10748870f") + UD2)
    for offset in (0, 1, 31, 56):
        core.state.rdi = DATA + offset
        run_to_fault(core)
    assert core.state.bus_lock_count == 0


def test_a_guest_that_rewrites_its_code_does_not_fill_memory() -> None:
    core = flat_core()
    assert core.engine is not None
    code = core.engine.code
    code.most_words = 400
    for number in range(60):
        load_code(core, b"\xb8" + number.to_bytes(4, "little") + b"\x90" * 20 + UD2)
        run_to_fault(core)
        assert core.state.rax == number
    assert code.generation > 1
    assert code.arena.used < 1000
    assert len(code._retired) <= 1
