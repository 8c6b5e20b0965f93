"""Two processors on one memory: what one writes to code, the other runs, whenever it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.processor.jit.flat import CODE, UD2, flat_core, run_to_fault

from trapline.processor.cluster import Cluster
from trapline.processor.core import Core
from trapline.processor.memory import Ram

WRITER = CODE + 0x4000
ONE, TWO = bytes.fromhex("b801000000") + UD2, bytes.fromhex("b802000000") + UD2  # mov eax, n


def _pair() -> tuple[Core, Core]:
    ram, cluster = Ram(1 << 20), Cluster()
    first, second = (flat_core(bus=ram, cluster=cluster) for _ in range(2))
    ram.load(CODE, ONE)
    place = (CODE + 1).to_bytes(4, "little")
    ram.load(WRITER, bytes.fromhex("880425") + place + UD2)  # mov [CODE + 1], al
    return first, second


def _write(writer: Core, value: int) -> None:
    """Change the immediate, by an instruction of that processor's."""
    writer.state.rax = value
    run_to_fault(writer, WRITER)


def _result(core: Core) -> int:
    core.state.rax = 0
    run_to_fault(core)
    return int(core.state.rax)


def _interrupt(
    monkeypatch: pytest.MonkeyPatch, core: Core, pages: int, act: Callable[[], None]
) -> None:
    """Do something while the next code that lies on so many pages is being translated."""
    code, waiting = core.cluster.code, [act]
    translate = code.translate

    def wrapped(*args: Any) -> Any:
        if waiting and len(args[2]) == pages:
            waiting.pop()()
        return translate(*args)

    monkeypatch.setattr(code, "translate", wrapped)


@pytest.mark.parametrize(("at", "pages"), [(CODE, 1), (CODE + 0xFFE, 2)])
def test_code_written_while_it_is_translated_is_not_kept(
    at: int, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the bytes and the keeping of what was made of them."""
    first, second = _pair()
    assert isinstance(first.bus, Ram)
    first.bus.load(at, ONE)
    writer = bytes.fromhex("880425") + (at + 1).to_bytes(4, "little") + UD2
    first.bus.load(WRITER, writer)
    _write(second, 1)  # both halves of what the writer needs are translated
    _interrupt(monkeypatch, first, pages, lambda: _write(second, 7))
    run_to_fault(first, at)
    assert first.state.rax == 7
    for value in (8, 9):  # and what is written from now on is seen
        _write(second, value)
        run_to_fault(first, at)
        assert first.state.rax == value


def test_a_page_let_go_while_its_code_is_translated_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes written over themselves: nothing changes, but later writes must be seen."""
    first, second = _pair()
    _write(second, 1)
    _interrupt(monkeypatch, first, 1, lambda: _write(second, 1))
    assert _result(first) == 1
    _write(second, 9)
    assert _result(first) == 9


def test_code_dropped_just_after_it_was_found_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its record is put into the processor's jump cache after it was taken out of all of them."""
    first, second = _pair()
    _write(second, 1)
    keep, waiting = first.cluster.keep_block, [5]

    def keep_and_write(*args: Any) -> bool:
        kept = keep(*args)
        if waiting:
            _write(second, waiting.pop())
        return kept

    monkeypatch.setattr(first.cluster, "keep_block", keep_and_write)
    thread = threading.Thread(target=_result, args=(first,), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and first.state.rax == 5


def test_code_is_read_only_when_no_other_processor_is_about_to_store_there() -> None:
    """One that has found the page writable may store at any moment until it comes out."""
    first, second = _pair()
    data = CODE + 0x100  # in the page of the code, which is not translated yet
    writer = bytes.fromhex("880425") + data.to_bytes(4, "little") + UD2
    assert isinstance(first.bus, Ram)
    first.bus.load(WRITER, writer)
    run_to_fault(second, WRITER)  # from now on it can do so natively
    second.state.running = 1
    done = threading.Event()

    def translate() -> None:
        _result(first)
        done.set()

    thread = threading.Thread(target=translate)
    thread.start()
    while not second.state.attention & 2 and not done.is_set():
        pass  # until it is asked to come out
    assert not done.is_set()
    first.bus.load(CODE, TWO)  # the store that was under way
    second.state.running = 0
    thread.join(60)
    assert done.is_set() and first.state.rax == 2


@pytest.mark.parametrize("size", [1, 0x1000, 1 << 40])
def test_memory_changed_from_outside_is_run_as_it_is_once_that_is_said(size: int) -> None:
    first, second = _pair()
    assert isinstance(first.bus, Ram)
    assert _result(first) == _result(second) == 1
    first.bus.load(CODE, TWO)
    first.cluster.forget_code(first.bus.start + CODE + 1, size)
    assert _result(first) == _result(second) == 2


def test_nothing_else_is_forgotten() -> None:
    first, _ = _pair()
    assert isinstance(first.bus, Ram)
    _result(first)
    translated = first.cluster.code.translated
    for start in (CODE - 0x1000, CODE + 0x1000):
        first.cluster.forget_code(first.bus.start + start, 0x1000)
    _result(first)
    assert first.cluster.code.translated == translated
