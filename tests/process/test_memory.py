"""Reading the program's memory from the VMM's own threads."""

from __future__ import annotations

import ctypes
import mmap
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trapline.process.areas import PAGE, Area, MappedFile
from trapline.process.memory import GuestFault, GuestMemory

SOME_FILE = MappedFile("/some/file", 0xFE00, 7)


class Mapped:
    """Two pages of this process as the program's memory, with nothing behind them."""

    def __init__(self, file: MappedFile | None = None) -> None:
        self._map = mmap.mmap(-1, 2 * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._map[:5] = b"first"
        self._map[2 * PAGE - 4 :] = b"last"
        machine: Any = SimpleNamespace(low_base=1 << 40, forget_code=lambda start, end: None)
        world: Any = SimpleNamespace()
        self.memory = GuestMemory(machine, world)
        self.memory.areas.add(Area(self.start, self.start + 2 * PAGE, 3, file=file))


@pytest.mark.parametrize("file", [None, SOME_FILE], ids=["anonymous", "of a file"])
def test_memory_is_read_while_another_thread_changes_the_address_space(
    file: MappedFile | None,
) -> None:
    """Who changes it waits, with the lock held, for the very thread that reads for an observer."""
    mapped = Mapped(file)
    found: list[bytes] = []
    reader = threading.Thread(
        target=lambda: found.append(mapped.memory.read_some(mapped.start, 5)), daemon=True
    )
    with mapped.memory.lock:
        reader.start()
        reader.join(60)
        assert found == [b"first"]


@pytest.mark.parametrize("file", [None, SOME_FILE], ids=["anonymous", "of a file"])
def test_as_much_is_read_as_there_is(file: MappedFile | None) -> None:
    mapped = Mapped(file)
    end = mapped.start + 2 * PAGE
    assert mapped.memory.read_some(end - 4, 100) == b"last"
    assert mapped.memory.read_some(end, 100) == b""
    with pytest.raises(GuestFault):
        mapped.memory.read(end - 4, 5)


def test_what_is_written_is_told_where_it_may_be_code() -> None:
    mapped = Mapped()
    told: list[tuple[int, int]] = []
    machine: Any = mapped.memory.machine
    machine.forget_code = lambda start, end: told.append((start, end))
    mapped.memory.write(mapped.start, b"data")
    assert told == []
    mapped.memory.will_change(3, 7)
    mapped.memory.write(mapped.start + 8, b"code")
    assert told == [(mapped.start + 8, mapped.start + 12)]


@pytest.mark.parametrize(
    ("before", "after", "is_code"),
    [
        (0, 3, False),
        (0, 5, False),
        (0, 7, True),
        (3, 5, False),
        (5, 7, True),
        (5, 3, True),
        (5, 1, True),
    ],
)
def test_which_memory_calls_may_put_code_into(before: int, after: int, is_code: bool) -> None:
    """Writable and executable, or executable no longer: what was translated may still be known
    when it is written and executable again."""
    memory = Mapped().memory
    memory.will_change(before, after)
    assert memory.has_writable_code is is_code
