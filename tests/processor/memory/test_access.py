"""Accesses: crossing pages, locked updates and what locks the bus, breakpoints, devices, code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.processor.bare import FLAT, Bare, Tables
from trapline.arch.paging import PTE_P, PTE_PCD, PTE_U
from trapline.arch.registers import CR0_AM, RFLAGS_AC
from trapline.processor.buslock import BusLock, Cause, Outcome
from trapline.processor.fault import Fault
from trapline.processor.memory import READ, WRITE

PAGE = 0x40_0000
SECOND = PAGE + 0x1000
LAST = PAGE + 0xFFD


class Watching:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[BusLock, Outcome]] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.seen.append((lock, outcome))


def user(second: int | None = FLAT) -> Bare:
    """A processor at CPL 3 with two pages that are not neighbours in RAM."""
    bare = Bare()
    tables = Tables(bare)
    tables.map(PAGE, 0x8000)
    if second is not None:
        tables.map(SECOND, 0x3000, second)
    bare.enter_long_mode(tables.root, cpl=3)
    return bare


def test_reads_and_writes_cross_pages() -> None:
    bare = user()
    bare.memory.write(LAST, 8, 0x1122334455667788)
    assert bare.word(0x8FFD, 3) == 0x667788
    assert bare.word(0x3000, 5) == 0x1122334455
    assert bare.memory.read(LAST, 8) == 0x1122334455667788


@pytest.mark.parametrize("second", [None, PTE_P | PTE_U])
def test_a_write_whose_second_page_faults_writes_nothing(second: int | None) -> None:
    bare = user(second)
    for attempt in (
        lambda: bare.memory.write(LAST, 8, 0xFFFF_FFFF_FFFF_FFFF),
        lambda: bare.memory.update(LAST, 8, lambda old: 0xFFFF_FFFF_FFFF_FFFF),
    ):
        with pytest.raises(Fault) as caught:
            attempt()
        assert (caught.value.vector, caught.value.cr2) == (14, SECOND)
        assert bare.word(0x8FFD, 3) == 0
        assert bare.memory.notes.lock is None


def test_addresses_wrap_at_the_top_of_a_32_bit_space() -> None:
    bare = Bare(size=0x10000)
    reads: list[int] = []

    class Echo:
        def read(self, offset: int, size: int) -> int:
            reads.append(offset)
            return 0x5A

        def write(self, offset: int, size: int, word: int) -> None: ...

    bare.bus.attach(0xFFFF_F000, 0x1000, Echo())
    bare.set_word(0, 0x42, 1)
    assert bare.memory.read(0xFFFF_FFFF, 2) == 0x425A
    assert reads == [0xFFF]


@given(
    offset=some.integers(0, 0x1FF0),
    size=some.sampled_from([1, 2, 4, 8]),
    addend=some.integers(0, 2**64 - 1),
)
def test_updates_change_just_their_bytes(offset: int, size: int, addend: int) -> None:
    bare = user()
    content = bytes(range(256)) * 32
    for start, physical in ((0, 0x8000), (0x1000, 0x3000)):
        bare.bus.load(physical, content[start : start + 0x1000])
    mask = (1 << 8 * size) - 1
    before = bare.memory.update(PAGE + offset, size, lambda old: old + addend & mask)
    expected = bytearray(content)
    assert before == int.from_bytes(content[offset : offset + size], "little")
    expected[offset : offset + size] = (before + addend & mask).to_bytes(size, "little")
    after = bare.bus.bytes[0x8000:0x9000] + bare.bus.bytes[0x3000:0x4000]
    assert after == expected[:0x2000]
    crosses = offset % 64 + size > 64
    assert (bare.memory.notes.lock is not None) == crosses


def test_cmpxchg16b_sized_updates_are_atomic_too() -> None:
    bare = user()
    word = 0x0011223344556677_8899AABBCCDDEEFF
    bare.memory.write(PAGE, 16, word)
    assert bare.memory.update(PAGE, 16, lambda old: old ^ 1 << 127) == word
    assert bare.memory.read(PAGE, 16) == word ^ 1 << 127
    assert bare.memory.notes.lock is None


def test_a_split_update_is_noted_with_what_it_touched() -> None:
    bare = user()
    bare.state.rip = 0x1234
    bare.memory.update(PAGE + 0x3E, 4, lambda old: old)
    assert bare.memory.notes.lock == (0x1234, PAGE + 0x3E, 0x803E, 4, 3, Cause.SPLIT)


def test_an_unlocked_update_takes_no_bus_lock() -> None:
    bare = user()
    bare.memory.update(PAGE + 0x3E, 4, lambda old: old + 1, locked=False)
    assert bare.memory.notes.lock is None
    assert bare.word(0x803E, 4) == 1


@pytest.mark.parametrize("linear", [SECOND, LAST])
def test_memory_that_is_not_write_back_needs_the_bus(linear: int) -> None:
    bare = user(FLAT | PTE_PCD)
    bare.memory.update(linear, 4, lambda old: old)
    assert bare.memory.notes.lock is not None
    assert bare.memory.notes.lock.cause is Cause.UNCACHED


def test_a_split_update_stops_the_other_processors() -> None:
    bare = user()
    order: list[str] = []

    class Stop:
        def __enter__(self) -> None:
            order.append("stop")

        def __exit__(self, *_: object) -> None:
            order.append("go")

    def change(old: int) -> int:
        order.append("change")
        return old

    bare.memory.exclusive = Stop
    bare.memory.update(PAGE + 0x3E, 4, change)
    assert order == ["stop", "change", "go"]
    bare.memory.update(PAGE, 4, change)
    assert order[3:] == ["change"]


@pytest.mark.parametrize("cpl", [0, 3])
def test_split_lock_ac_comes_before_the_access(cpl: int) -> None:
    bare = user()
    bare.set_cpl(cpl)
    bare.observer = Watching()
    bare.msrs.write(0x33, 1 << 29)
    with pytest.raises(Fault) as caught:
        bare.memory.update(PAGE + 0x3E, 4, lambda old: old + 1)
    assert (caught.value.vector, caught.value.error_code) == (17, 0)
    assert bare.word(0x803E, 4) == 0
    assert bare.memory.notes.lock is None
    [(lock, outcome)] = bare.observer.seen
    assert (lock.cause, outcome) == (Cause.SPLIT, Outcome.AC)
    bare.memory.update(PAGE + 0x3C, 4, lambda old: old + 1)  # on one line


def test_page_faults_come_before_split_lock_ac() -> None:
    bare = user(None)
    bare.msrs.write(0x33, 1 << 29)
    with pytest.raises(Fault) as caught:
        bare.memory.update(LAST, 4, lambda old: old)
    assert caught.value.vector == 14


@pytest.mark.parametrize("model, refusal", [("max", (17, 4))])
def test_uc_lock_disable_refuses_by_model(model: str, refusal: tuple[int, int]) -> None:
    bare = Bare(model)
    tables = Tables(bare)
    tables.map(PAGE, 0x8000, FLAT | PTE_PCD)
    bare.enter_long_mode(tables.root, cpl=3)
    bare.msrs.write(0x33, 1 << 28)
    with pytest.raises(Fault) as caught:
        bare.memory.update(PAGE, 4, lambda old: old)
    assert (caught.value.vector, caught.value.error_code) == refusal


def test_fetch_gives_what_is_at_hand_and_never_touches_more() -> None:
    bare = user()
    bare.bus.load(0x8FFE, b"\x0f\xa2")
    bare.bus.load(0x3000, b"\x90\xc3")
    assert bare.memory.fetch(PAGE + 0xFFE, 15) == b"\x0f\xa2"
    assert bare.memory.fetch(SECOND, 2) == b"\x90\xc3"
    assert bare.memory.fetch(PAGE + 0xFFE, 4) == b"\x0f\xa2\x90\xc3"
    bare = user(None)
    assert len(bare.memory.fetch(PAGE + 0xFFE, 15)) == 2
    with pytest.raises(Fault):
        bare.memory.fetch(SECOND, 1)


@pytest.mark.parametrize(
    ("dr7", "linear", "size", "kind", "hits"),
    [
        (0x0D0001, PAGE + 0x100, 4, WRITE, True),
        (0x0D0001, PAGE + 0x100, 4, READ, False),
        (0x0F0001, PAGE + 0x100, 4, READ, True),
        (0x0F0001, PAGE + 0x104, 4, READ, False),
        (0x0F0001, PAGE + 0x0FD, 8, READ, True),
        (0x0F0002, PAGE + 0x103, 1, WRITE, True),
        (0x0F0000, PAGE + 0x100, 4, WRITE, False),
    ],
)
def test_data_breakpoints_are_noted(
    dr7: int, linear: int, size: int, kind: int, hits: bool
) -> None:
    bare = user()
    bare.memory.write(PAGE + 0x100, 8, 0)  # cached before the breakpoint is set
    bare.state.dr0, bare.state.dr7 = PAGE + 0x100, dr7
    bare.memory.breakpoints_changed()
    if kind == WRITE:
        bare.memory.write(linear, size, 0)
    else:
        bare.memory.read(linear, size)
    assert bare.memory.notes.breakpoints == (0x1001 if hits else 0)


def test_updates_meet_write_breakpoints() -> None:
    bare = user()
    bare.state.dr2, bare.state.dr7 = PAGE, 0x0D000000 | 1 << 4
    bare.memory.breakpoints_changed()
    bare.memory.update(PAGE, 4, lambda old: old)
    assert bare.memory.notes.breakpoints == 0x1004


def test_alignment_checking_is_for_cpl_3_with_am_and_ac() -> None:
    bare = user()
    bare.memory.read(PAGE + 1, 4)
    bare.state.cr0 |= CR0_AM
    bare.state.system_flags |= RFLAGS_AC
    bare.memory.privilege_changed()
    for attempt in (
        lambda: bare.memory.read(PAGE + 1, 4),
        lambda: bare.memory.write(PAGE + 4, 8, 0),
        lambda: bare.memory.update(PAGE + 2, 4, lambda old: old),
    ):
        with pytest.raises(Fault) as caught:
            attempt()
        assert (caught.value.vector, caught.value.error_code) == (17, 0)
    assert bare.memory.read(PAGE + 8, 8) == 0
    bare.state.system_flags &= ~RFLAGS_AC
    bare.memory.privilege_changed()
    assert bare.memory.read(PAGE + 1, 4) == 0


def test_devices_are_asked_by_offset() -> None:
    bare = user()
    log: list[tuple[int, int, int]] = []

    class Register:
        def read(self, offset: int, size: int) -> int:
            return offset + 0x50

        def write(self, offset: int, size: int, word: int) -> None:
            log.append((offset, size, word))

    bare.bus.attach(0x8000, 0x1000, Register())
    assert bare.memory.read(PAGE + 4, 4) == 0x54
    bare.memory.write(PAGE + 8, 2, 0xBEEF)
    assert bare.memory.update(PAGE + 1, 1, lambda old: old + 1) == 0x51
    assert log == [(8, 2, 0xBEEF), (1, 1, 0x52)]


def test_writing_translated_code_is_told() -> None:
    bare = user()
    host_page = bare.bus.start + 0x8000
    bare.memory.write(PAGE, 4, 1)
    bare.memory.tlb.deny_write(host_page)
    bare.memory.write(PAGE, 4, 2)
    bare.memory.update(PAGE, 4, lambda old: old + 1)
    assert bare.flushed == [host_page, host_page]
    assert bare.word(0x8000, 4) == 3
    bare.memory.tlb.allow_write(host_page)
    bare.memory.write(PAGE, 4, 2)
    assert len(bare.flushed) == 2


def test_invlpg_drops_a_page_of_any_size() -> None:
    bare = user()
    tables = Tables(bare, start=0x200000)
    leaf = tables.map(0, 0, level=2)
    bare.enter_long_mode(tables.root, cpl=3)
    bare.memory.read(0x1000, 1)
    bare.set_word(leaf, 0)
    bare.memory.read(0x1000, 1)
    bare.memory.flush_page(0x9000)  # another address of the same large page
    with pytest.raises(Fault):
        bare.memory.read(0x1000, 1)


def test_a_base_and_an_offset_may_go_around() -> None:
    """As those of a TSS at the top of the address space do."""
    bare = user()
    bare.memory.write((1 << 64) + PAGE + 8, 8, 0x1234)
    assert bare.memory.read(PAGE + 8, 8) == 0x1234
    assert bare.memory.read((1 << 64) + PAGE + 8, 8) == 0x1234
    assert bare.memory.read((1 << 64) + LAST, 8) == bare.memory.read(LAST, 8)
