"""The walk against the manual's rules written out plainly, on tables with random flags."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as some

from tests.processor.bare import Bare, Tables
from trapline.arch.paging import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.arch.registers import (
    CR0_WP,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    RFLAGS_AC,
)
from trapline.processor.fault import Fault
from trapline.processor.memory import FETCH, READ, WRITE

LINEAR = 0x0000_1234_5678_9ABC
PHYSICAL = 0x9000
FLAGS = (PTE_P, PTE_W, PTE_U, PTE_A, PTE_D, PTE_NX)


@dataclass(frozen=True)
class Case:
    entries: tuple[int, ...]  # flags by level, the last level first
    kind: int
    cpl: int
    wp: bool
    smep: bool
    smap: bool
    ac: bool
    nxe: bool
    pkru: int | None


def _flags(draw: some.DrawFn) -> int:
    """Mostly present, often everything allowed."""
    word = PTE_P | PTE_W | PTE_U
    for flag in draw(some.lists(some.sampled_from(FLAGS), max_size=2)):
        word ^= flag
    return word


@some.composite
def cases(draw: some.DrawFn) -> Case:
    flag = some.booleans()
    return Case(
        tuple(_flags(draw) for _ in range(4)),
        draw(some.sampled_from([READ, WRITE, FETCH])),
        draw(some.sampled_from([0, 3])),
        *(draw(flag) for _ in range(5)),
        draw(some.none() | some.integers(0, 3)),
    )


def expected(case: Case) -> int | None:
    """The page fault's error code, None where the access is allowed (SDM 3A, chapter 4)."""
    writes, fetches = case.kind == WRITE, case.kind == FETCH
    code = (2 if writes else 0) | (4 if case.cpl == 3 else 0)
    if fetches and (case.nxe or case.smep):
        code |= 16
    for entry in reversed(case.entries):
        if not entry & PTE_P:
            return code
        if entry & PTE_NX and not case.nxe:
            return code | 1 | 8
    user = all(entry & PTE_U for entry in case.entries)
    writable = all(entry & PTE_W for entry in case.entries)
    executable = not any(entry & PTE_NX for entry in case.entries)
    key_refuses = False
    if case.pkru is not None and user and not fetches:
        key_refuses = bool(case.pkru & 1)
        if writes and case.pkru & 2 and (case.cpl == 3 or case.wp):
            key_refuses = True
    if case.cpl == 3:
        allowed = user and (writable or not writes)
    elif fetches:
        allowed = not (user and case.smep)
    else:
        allowed = not (user and case.smap and not case.ac)
        allowed = allowed and (writable or not writes or not case.wp)
    if fetches:
        allowed = allowed and executable
    if allowed and not key_refuses:
        return None
    return code | 1 | (32 if key_refuses else 0)


@settings(max_examples=400)
@given(case=cases())
def test_rights_and_error_codes(case: Case) -> None:
    bare = Bare("max", size=2 << 20)
    tables = Tables(bare)
    tables.map(LINEAR & ~0xFFF, PHYSICAL)
    for level, flags in enumerate(case.entries, 1):
        at = tables.entry(LINEAR, level)
        bare.set_word(at, bare.word(at) & 0xFFFFFFFFFF000 | flags)
    before = [bare.word(tables.entry(LINEAR, 4))]
    state = bare.state
    state.cr4 = (CR4_SMEP if case.smep else 0) | (CR4_SMAP if case.smap else 0)
    state.cr4 |= 0 if case.pkru is None else CR4_PKE
    state.system_flags |= RFLAGS_AC if case.ac else 0
    bare.memory.walker.pkru = case.pkru or 0
    bare.enter_long_mode(tables.root, case.cpl)
    state.cr0 = state.cr0 if case.wp else state.cr0 & ~CR0_WP
    state.efer = state.efer if case.nxe else state.efer & ~EFER_NXE
    bare.memory.mode_changed()
    try:
        found = bare.memory.translate(LINEAR, case.kind)
    except Fault as fault:
        assert fault.vector == 14
        assert fault.error_code == expected(case)
        assert [bare.word(tables.entry(LINEAR, 4))] == before
    else:
        assert expected(case) is None
        assert found.physical == PHYSICAL + (LINEAR & 0xFFF)
        entries = [bare.word(tables.entry(LINEAR, level)) for level in (1, 2, 3, 4)]
        assert all(entry & PTE_A for entry in entries)
        assert not entries[1] & PTE_PS
        assert bool(entries[0] & PTE_D) == (case.kind == WRITE or bool(case.entries[0] & PTE_D))
