"""CR0.EM, CR0.TS, CR4.OSFXSR, CR4.OSXSAVE: who must not run, and what is raised (SDM 2A,
tables "Exception Conditions"; FXSAVE; XSAVE)."""

from __future__ import annotations

import pytest

from tests.processor.sse.program import ENGINES, Program, at

UD, NM, MF = 6, 7, 16
EM, TS = 4, 8
OSFXSR, OSXSAVE = 1 << 9, 1 << 18
ON = OSFXSR | OSXSAVE | 1 << 10 | 1 << 5

SSE = {
    "movaps": bytes.fromhex("0f28c1"),
    "movd": bytes.fromhex("660f6ec0"),
    "movsd": bytes.fromhex("f20f10c1"),
    "cmpsd": bytes.fromhex("f20fc2c101"),
    "pextrw": bytes.fromhex("660fc5c001"),
    "ldmxcsr": at("0fae/2", 0),
    "stmxcsr": at("0fae/3", 0),
    "cvtpi2ps": bytes.fromhex("0f2ac1"),
    "movq2dq": bytes.fromhex("f30fd6c1"),
}
MMX = {
    "paddb": bytes.fromhex("0ffcc1"),
    "movd mm": bytes.fromhex("0f6ec0"),
    "pshufw": bytes.fromhex("0f70c11b"),
    "maskmovq": bytes.fromhex("0ff7c1"),
    "movntq": at("0fe7/0", 0),
    "emms": bytes.fromhex("0f77"),
}
FXSAVE = {"fxsave": at("0fae/0", 0), "fxrstor": at("0fae/1", 0)}
XSAVE = {"xsave": at("0fae/4", 0), "xrstor": at("0fae/5", 0)}
FREE = {
    "movnti": at("0fc3/0", 0),
    "crc32": bytes.fromhex("f20f38f1c1"),
    "popcnt": bytes.fromhex("f30fb8c1"),
    "lfence": bytes.fromhex("0faee8"),
    "movsd string": bytes.fromhex("a5"),
}


def expected(group: str, cr0: int, cr4: int) -> int | None:
    emulated, switched = bool(cr0 & EM), bool(cr0 & TS)
    match group:
        case "sse":
            first = UD if emulated or not cr4 & OSFXSR else None
        case "mmx":
            first = UD if emulated else None
        case "fxsave":
            first = NM if emulated else None
        case "xsave":
            first = None if cr4 & OSXSAVE else UD
        case _:
            return None
    return first or (NM if switched else None)


CASES = [
    pytest.param(group, code, id=name)
    for group, table in (
        ("sse", SSE), ("mmx", MMX), ("fxsave", FXSAVE), ("xsave", XSAVE), ("free", FREE),
    )
    for name, code in table.items()
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("group, code", CASES)
def test_what_is_switched_off_is_refused(group: str, code: bytes, engine: str) -> None:
    for cr0 in (0, EM, TS, EM | TS):
        for cr4 in (ON, ON & ~OSFXSR, ON & ~OSXSAVE, 0x20):
            program = Program(engine)
            state = program.state
            state.cr0 |= cr0
            state.cr4, state.xcr0 = cr4, 3
            state.rsi = state.rdi = 0x20000
            program.put(0, b"\x80\x1f\0\0" + bytes(20) + b"\x80\x1f\0\0")
            program.run(code)
            wanted = expected(group, cr0, cr4)
            assert program.vector == wanted, (hex(cr0), hex(cr4))
            if wanted is not None:
                assert program.done == 0
                assert program.word(0, 4) == 0x1F80


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MMX)
def test_mmx_raises_what_x87_left_pending(name: str, engine: str) -> None:
    program = Program(engine)
    program.state.fcw, program.state.fsw = 0x37E, 0x8081 | 3 << 11
    program.state.rdi = 0x20000
    program.run(MMX[name])
    assert (program.vector, program.done) == (MF, 0)
    assert program.state.fsw == 0x8081 | 3 << 11


@pytest.mark.parametrize("engine", ENGINES)
def test_sse_does_not_look_at_x87(engine: str) -> None:
    program = Program(engine)
    program.state.fcw, program.state.fsw = 0x37E, 0x8081
    assert program.run(SSE["movaps"]).fault is None
    assert program.run(bytes.fromhex("f20f58c1")).fault is None
