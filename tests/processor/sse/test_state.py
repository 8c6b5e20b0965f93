"""FXSAVE, FXRSTOR, XSAVE, XRSTOR: where things go, what comes back, what is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.against.state import FloatState
from tests.processor.sse.program import ENGINES, Program, at

GP, UD = 13, 6
AREA = 0x400
FILL = 0xAA
SAVE, RESTORE = {"": "0fae/0", "64": "480fae/0"}, {"": "0fae/1", "64": "480fae/1"}
XSAVE, XRSTOR = "480fae/4", "480fae/5"
X87, SSE = 1, 2


def filled(engine: str, **given: Any) -> Program:
    """A state with something of its own in every place."""
    made = Program(engine)
    made.put(AREA, bytes([FILL]) * 640)
    state: Any = made.state
    # ES is set: some processors leave the pointers out of the area without it.
    words = {
        "fcw": 0x37E, "fsw": 0xB881 | 1 << 14, "ftw": 0xA5, "fop": 0x5BC, "mxcsr": 0xBFA2,
        "fip": 0x123456789ABC, "fdp": 0x7FEDCBA98765, "xcr0": 3, "rdx": 0,
    }  # fmt: skip
    for name, word in (words | given).items():
        setattr(state, name, word)
    state.cr4 |= 1 << 18
    for number in range(8):
        state.set_x87(number, 0x4000_0000_0000_0000_0000 | 0x1111 << 48 | number)
    for number in range(16):
        state.set_xmm(number, 0x0123456789ABCDEF << 64 | number)
    return made


def area(program: Program, offset: int = AREA) -> FloatState:
    return FloatState.unpack(program.word(offset, 512).to_bytes(512, "little"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("suffix", SAVE)
def test_fxsave_puts_things_where_the_manual_says(suffix: str, engine: str) -> None:
    """SDM 1, tables "Non-64-Bit-Mode Layout" and "Layout of the 64-Bit Mode FXSAVE64 Map"."""
    ran = filled(engine).run(at(SAVE[suffix], AREA))
    saved = area(ran)
    mask = (1 << 64) - 1 if suffix else 0xFFFF_FFFF
    assert (saved.fcw, saved.fsw, saved.ftw, saved.fop) == (0x37E, 0xF881, 0xA5, 0x5BC)
    assert (saved.fip, saved.fdp) == (0x123456789ABC & mask, 0x7FEDCBA98765 & mask)
    assert (saved.mxcsr, ran.word(AREA + 28)) == (0xBFA2, 0xFFFF)
    # TOP is 7: ST(0) is R7, ST(1) is R0.
    assert [value[0] for value in saved.st] == [7, 0, 1, 2, 3, 4, 5, 6]
    assert [ran.word(AREA + 42 + 16 * n, 6) for n in range(8)] == [0] * 8
    assert [value[0] for value in saved.xmm] == list(range(16))
    assert ran.word(AREA + 416, 96) == int.from_bytes(bytes([FILL]) * 96, "little")


@pytest.mark.parametrize("engine", ENGINES)
def test_fxrstor_brings_back_what_fxsave_saved(engine: str) -> None:
    code = at(SAVE["64"], AREA)
    cleared = bytes.fromhex("dbe3 0f57c0 0f57c9 450f57ff 0f77")
    ran = filled(engine, fcw=0x37F, fsw=0x3800).run(
        code + cleared + at(RESTORE["64"], AREA) + at(SAVE["64"], AREA + 0x200)
    )
    assert ran.fault is None
    assert area(ran) == area(ran, AREA + 0x200)
    assert [ran.state.x87(n) & 0xFF for n in range(8)] == list(range(8))
    assert ran.state.mxcsr == 0xBFA2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_summary_in_the_status_word_follows_flags_and_masks(engine: str) -> None:
    for fcw, fsw, wanted in ((0x37F, 0x8081, 0x0001), (0x37E, 0x0001, 0x8081), (0, 0, 0)):
        made = filled(engine)
        made.put(AREA, FloatState(fcw=fcw, fsw=fsw).pack())
        ran = made.run(at(RESTORE["64"], AREA))
        assert (ran.state.fsw, ran.state.fcw) == (wanted, fcw | 0x40)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opcode", [*SAVE.values(), *RESTORE.values(), XSAVE, XRSTOR])
def test_the_area_is_aligned(opcode: str, engine: str) -> None:
    size = 64 if opcode[-1] in "45" else 16
    for offset in (1, 8, size // 2, size - 1):
        made = filled(engine, rax=3)
        before = made.word(AREA, 640)
        ran = made.run(at(opcode, AREA + offset))
        assert (ran.vector, ran.fault and ran.fault.error_code, ran.done) == (GP, 0, 0)
        assert ran.word(AREA, 640) == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opcode", [RESTORE["64"], XRSTOR])
def test_reserved_bits_of_mxcsr_are_refused(opcode: str, engine: str) -> None:
    made = filled(engine, rax=3)
    made.put(AREA, FloatState(mxcsr=0x11F80).pack() + bytes(64))
    ran = made.run(at(opcode, AREA))
    assert (ran.vector, ran.state.mxcsr, ran.state.fcw) == (GP, 0xBFA2, 0x37E)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("asked", range(4))
def test_xsave_writes_what_is_asked_for(asked: int, engine: str) -> None:
    ran = filled(engine, rax=asked | 1 << 5).run(at(XSAVE, AREA))
    untouched = int.from_bytes(bytes([FILL]) * 8, "little")
    assert (ran.word(AREA) != untouched & 0xFFFF_FFFF) == bool(asked & X87)
    assert (ran.word(AREA + 32, 8) != untouched) == bool(asked & X87)
    assert (ran.word(AREA + 24, 8) != untouched) == bool(asked & SSE)
    assert (ran.word(AREA + 160, 8) != untouched) == bool(asked & SSE)
    # Bits that were not asked for stay as they were.
    assert ran.word(AREA + 512, 8) == untouched & ~3 | untouched & 3 & ~asked | asked
    assert ran.word(AREA + 520, 8) == untouched


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("asked", range(4))
@pytest.mark.parametrize("present", range(4))
def test_xrstor_loads_or_resets_what_is_asked_for(asked: int, present: int, engine: str) -> None:
    made = filled(engine, rax=asked)
    image = FloatState(
        fcw=0x27F, fsw=0x1800, ftw=0x0F, mxcsr=0x5F80,
        st=[bytes([0x50 + n]) + bytes(9) for n in range(8)], xmm=[b"\x77" * 16] * 16,
    )  # fmt: skip
    made.put(AREA, image.pack() + struct.pack("<Q", present) + bytes(56))
    state = made.run(at(XRSTOR, AREA)).state
    if not asked & X87:
        assert (state.fcw, state.fsw, state.x87(7) & 0xFF) == (0x37E, 0xF881, 7)
    elif present & X87:
        assert (state.fcw, state.fsw, state.ftw) == (0x27F, 0x1800, 0x0F)
        assert [state.x87(3 + n & 7) for n in range(8)] == [0x50 + n for n in range(8)]
    else:
        assert (state.fcw, state.fsw, state.ftw, state.fip) == (0x37F, 0, 0, 0)
        assert [state.x87(n) for n in range(8)] == [0] * 8
    loaded = int.from_bytes(b"\x77" * 16, "little") if present & SSE else 0
    wanted = loaded if asked & SSE else 0x0123456789ABCDEF << 64 | 15
    assert state.xmm(15) == wanted
    # SDM 1, "Operation of XRSTOR": MXCSR is in the area even when XSTATE_BV says SSE is not.
    assert state.mxcsr == (0x5F80 if asked & SSE else 0xBFA2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset, word", [(0, 4), (0, 1 << 63), (8, 1), (8, 1 << 63), (16, 1)])
def test_xrstor_refuses_a_header_it_does_not_know(offset: int, word: int, engine: str) -> None:
    made = filled(engine, rax=0)
    header = bytearray(64)
    header[offset : offset + 8] = word.to_bytes(8, "little")
    made.put(AREA, FloatState().pack() + header)
    assert made.run(at(XRSTOR, AREA)).vector == GP


@pytest.mark.parametrize("engine", ENGINES)
def test_xsave_needs_osxsave(engine: str) -> None:
    made = filled(engine, rax=3)
    made.state.cr4 &= ~(1 << 18)
    assert made.run(at(XSAVE, AREA)).vector == UD
