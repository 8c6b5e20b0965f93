"""16-bit code: sizes of operands and addresses, default segments, wrapping, the 16-bit stack.

The expectations are worked out by hand from SDM 2A, 2.1.5, table 2-1, and SDM 3A, 3.4 and 20.1; the
host cannot be asked.  Real mode: code at CS = 0x1000, and every segment somewhere else.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from trapline.processor import Core, Fault, Ram, boundary, disassemble
from trapline.processor.state import GPR_NAMES

SEGMENTS = {"cs": 0x1000, "ds": 0x2000, "es": 0x3000, "ss": 0x4000, "fs": 0x5000, "gs": 0x6000}
CODE, DATA, EXTRA, STACK, F, G = (selector << 4 for selector in SEGMENTS.values())
IP = 0x100
MARK = 0x1122_3344_5566_7788  # what unnamed registers hold
GP, SS = 13, 12


class Real:
    """A processor in real mode."""

    def __init__(self, engine: str) -> None:
        self.core = Core("max", Ram(2 << 20), engine=engine)
        self.core.msrs.write(0x2FF, 0x806)
        state: Any = self.core.state
        self.state = state
        for name, selector in SEGMENTS.items():
            setattr(state, f"{name}_selector", selector)
            setattr(state, f"{name}_base", selector << 4)
            setattr(state, f"{name}_limit", 0xFFFF)
            setattr(state, f"{name}_attributes", 0x9B if name == "cs" else 0x93)
        state.idtr_limit, state.cr0, state.cr4 = 0x3FF, 0x10, 0x200
        state.mxcsr, state.fcw, state.pat = 0x1F80, 0x37F, 0x0007_0406_0007_0406
        state.rflags = 2
        for name in GPR_NAMES[:8]:
            setattr(state, name, MARK)
        state.rsp, state.rip = 0x8000, IP
        self.core.memory.mode_changed()

    def put(self, linear: int, content: bytes) -> None:
        self.core.bus.bytes[linear : linear + len(content)] = content  # type: ignore[attr-defined]

    def word(self, linear: int, size: int = 2) -> int:
        ram = self.core.bus.bytes  # type: ignore[attr-defined]
        return int.from_bytes(ram[linear : linear + size], "little")

    def step(self) -> None:
        if self.core.engine is not None:
            self.core.step_natively()
        else:
            boundary.before(self.core)
            self.core.interpret()
            boundary.after(self.core)


def run(engine: str, text: str, code: str, given: dict[str, Any]) -> Real:
    """One instruction; `given` names registers, or linear addresses with bytes."""
    real = Real(engine)
    raw = bytes.fromhex(code)
    shown = disassemble(raw, IP, 16)
    assert shown == text, shown
    real.put(CODE + IP, raw)
    for name, value in given.items():
        if name == "memory":
            for linear, content in value.items():
                real.put(linear, bytes.fromhex(content))
        else:
            setattr(real.state, name, value)
    real.step()
    return real


def m(**places: Any) -> dict[str, Any]:
    return places


# text, bytes, before, after: registers, `moved` by how far IP moved, `at` linear: (size, value)
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # Sixteen-bit addressing: every base and index, with and without displacement.
    ("mov ax, [bx+si]", "8b 00", m(rbx=0x100, rsi=0x20, memory={DATA + 0x120: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD, moved=2)),
    ("mov ax, [bx+di]", "8b 01", m(rbx=0xFFFF, rdi=0x21, memory={DATA + 0x20: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [bp+si]", "8b 02", m(rbp=0x100, rsi=0x20, memory={STACK + 0x120: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [bp+di]", "8b 03", m(rbp=0x100, rdi=0x30, memory={STACK + 0x130: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [si]", "8b 04", m(rsi=0xFFFF_0040, memory={DATA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [di]", "8b 05", m(rdi=0x40, memory={DATA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [0x1234]", "8b 06 34 12", m(memory={DATA + 0x1234: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD, moved=4)),
    ("mov ax, [bx]", "8b 07", m(rbx=0x40, memory={DATA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [bp]", "8b 46 00", m(rbp=0x40, memory={STACK + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [bp-2]", "8b 46 fe", m(rbp=1, memory={STACK + 0xFFFF: "cd", STACK: "ab"}),
     m(fault=SS)),
    ("mov al, [bx+si-1]", "8a 40 ff", m(rbx=0, rsi=0, memory={DATA + 0xFFFF: "cd"}),
     m(rax=0x1122_3344_5566_77CD)),
    ("mov ax, [bx+si-0x8000]", "8b 80 00 80",
     m(rbx=0x8000, rsi=0x10, memory={DATA + 0x10: "cdab"}), m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [bx]", "8b 07", m(rbx=0xFFFF), m(fault=GP)),
    # Segment prefixes.
    ("mov ax, es:[bx]", "26 8b 07", m(rbx=0x40, memory={EXTRA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD, moved=3)),
    ("mov ax, ds:[bp]", "3e 8b 46 00", m(rbp=0x40, memory={DATA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, fs:[bx]", "64 8b 07", m(rbx=0x40, memory={F + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov gs:[bx], ax", "65 89 07", m(rbx=0x40, rax=0xABCD), m(at={G + 0x40: (2, 0xABCD)})),
    ("mov cs:[bx], ax", "2e 89 07", m(rbx=0x40, rax=0xABCD), m(at={CODE + 0x40: (2, 0xABCD)})),
    # Sizes of operands and addresses.
    ("mov eax, [bx]", "66 8b 07", m(rbx=0x40, memory={DATA + 0x40: "89abcdef"}),
     m(rax=0xEFCD_AB89, moved=3)),
    ("mov ax, [ebx]", "67 8b 03", m(rbx=0xFF00_0000_0000_0040, memory={DATA + 0x40: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("mov ax, [ebx]", "67 8b 03", m(rbx=0x1_0000), m(fault=GP)),
    ("mov eax, [ebp+esi*4+8]", "66 67 8b 44 b5 08",
     m(rbp=0x10, rsi=0x20, memory={STACK + 0x98: "89abcdef"}), m(rax=0xEFCD_AB89, moved=6)),
    ("mov ax, [esp]", "67 8b 04 24", m(rsp=0x50, memory={STACK + 0x50: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD)),
    ("add ax, 0x1234", "05 34 12", m(rax=0xF000), m(rax=0x0234, cf=1, moved=3)),
    ("add eax, 0x12345678", "66 05 78 56 34 12", m(rax=0xF000_0000), m(rax=0x0234_5678, cf=1)),
    ("add ax, 0xFFFF", "83 c0 ff", m(rax=5), m(rax=4, cf=1)),
    ("lea ax, [bp+si+3]", "8d 42 03", m(rbp=0xFFFF, rsi=1, rax=0), m(rax=3)),
    ("lea eax, [bx+si]", "66 8d 00", m(rbx=0xFFFF, rsi=2), m(rax=1)),
    ("lea ax, [eax+eax*8]", "67 8d 04 c0", m(rax=0x1_2345), m(rax=0x1_3D6D & 0xFFFF | 0x1_0000)),
    ("movzx eax, byte ptr [bx]", "66 0f b6 07", m(rbx=1, memory={DATA + 1: "f0"}), m(rax=0xF0)),
    ("movsx ax, bl", "0f be c3", m(rbx=0x80, rax=0), m(rax=0xFF80)),
    ("cwd", "99", m(rax=0x8000, rdx=0), m(rdx=0xFFFF)),
    ("cdq", "66 99", m(rax=0x8000_0000, rdx=0), m(rdx=0xFFFF_FFFF)),
    ("mul bx", "f7 e3", m(rax=0x1234, rbx=0x100, rdx=0), m(rax=0x3400, rdx=0x12)),
    ("div ecx", "66 f7 f1", m(rax=7, rdx=1, rcx=0x10), m(rax=0x1000_0000, rdx=7)),
    ("shl ax, 0x11", "c1 e0 11", m(rax=0xFFFF), m(rax=0)),
    ("bt [bx], ax", "0f a3 07", m(rbx=0x100, rax=0xFFF0, memory={DATA + 0xFE: "0100"}), m(cf=1)),
    # The stack: SP, and the size of what is pushed.
    ("push ax", "50", m(rax=0xABCD), m(rsp=0x7FFE, at={STACK + 0x7FFE: (2, 0xABCD)})),
    ("push eax", "66 50", m(rax=0x89AB_CDEF), m(rsp=0x7FFC, at={STACK + 0x7FFC: (4, 0x89AB_CDEF)})),
    ("push ax", "50", m(rax=0xABCD, rsp=0), m(rsp=0xFFFE, at={STACK + 0xFFFE: (2, 0xABCD)})),
    ("push ax", "50", m(rsp=1), m(fault=SS)),
    ("push 0xFFFF", "6a ff", m(), m(rsp=0x7FFE, at={STACK + 0x7FFE: (2, 0xFFFF)})),
    ("data32 push 0xFFFFFFFF", "66 6a ff", m(),
     m(rsp=0x7FFC, at={STACK + 0x7FFC: (4, 0xFFFF_FFFF)})),
    ("push es", "06", m(), m(rsp=0x7FFE, at={STACK + 0x7FFE: (2, 0x3000)})),
    ("pop ds", "1f", m(memory={STACK + 0x8000: "3412"}),
     m(ds_selector=0x1234, ds_base=0x1_2340, rsp=0x8002)),
    ("pop word ptr [bx]", "8f 07", m(rbx=0x40, memory={STACK + 0x8000: "cdab"}),
     m(rsp=0x8002, at={DATA + 0x40: (2, 0xABCD)})),
    ("pop sp", "5c", m(memory={STACK + 0x8000: "cdab"}), m(rsp=0xABCD)),
    ("pusha", "60", m(rax=1, rdi=8), m(rsp=0x7FF0, at={
     STACK + 0x7FFE: (2, 1), STACK + 0x7FF0: (2, 8), STACK + 0x7FF6: (2, 0x8000)})),
    ("popad", "66 61",
     m(rsp=0x7000, memory={STACK + 0x7000: "01000000", STACK + 0x701C: "02000000"}),
     m(rdi=1, rax=2, rsp=0x7020)),
    ("pushf", "9c", m(rflags=0x8D7), m(rsp=0x7FFE, at={STACK + 0x7FFE: (2, 0x8D7)})),
    ("enter 0x10, 0", "c8 10 00 00", m(rbp=0xBEEF),
     m(rsp=0x7FEE, rbp=0x7FFE, at={STACK + 0x7FFE: (2, 0xBEEF)})),
    ("leave", "c9", m(rbp=0x7000, memory={STACK + 0x7000: "efbe"}), m(rsp=0x7002, rbp=0xBEEF)),
    # Branches: IP is 16 bits.
    ("jmp short 0x0104", "eb 02", m(), m(rip=0x104)),
    ("jmp 0xF103", "e9 00 f0", m(), m(rip=0xF103)),
    ("call 0xF103", "e8 00 f0", m(), m(rip=0xF103, rsp=0x7FFE, at={STACK + 0x7FFE: (2, 0x103)})),
    ("call dword ptr [bx]", "66 ff 17", m(rbx=0x40, memory={DATA + 0x40: "34120000"}),
     m(rip=0x1234, rsp=0x7FFC, at={STACK + 0x7FFC: (4, 0x103)})),
    ("jmp bx", "ff e3", m(rbx=0xABCD_1234), m(rip=0x1234)),
    ("ret", "c3", m(memory={STACK + 0x8000: "3412"}), m(rip=0x1234, rsp=0x8002)),
    ("ret 4", "c2 04 00", m(memory={STACK + 0x8000: "3412"}), m(rip=0x1234, rsp=0x8006)),
    ("loop 0x0100", "e2 fe", m(rcx=0x1_0001), m(rcx=0x1_0000, rip=0x102)),
    ("addr32 loop 0x0100", "67 e2 fd", m(rcx=0x1_0000), m(rcx=0xFFFF, rip=0x100)),
    ("jcxz 0x0142", "e3 40", m(rcx=0x1_0000), m(rip=0x142)),
    ("jecxz 0x0143", "67 e3 40", m(rcx=0x1_0000), m(rip=0x103)),
    ("jb 0x1104", "0f 82 00 10", m(rflags=3), m(rip=0x1104)),
    # Strings: SI, DI and CX, which wrap alone.
    ("movsb [di], [si]", "a4", m(rsi=0xFFFF, rdi=0x1_FFFF, memory={DATA + 0xFFFF: "ab"}),
     m(rsi=0, rdi=0x1_0000, at={EXTRA + 0xFFFF: (1, 0xAB)})),
    ("rep stosw [di]", "f3 ab", m(rax=0xABCD, rdi=0x10, rcx=3),
     m(rdi=0x16, rcx=0, at={EXTRA + 0x10: (6, 0xABCD_ABCD_ABCD)})),
    ("stosd [di]", "66 ab", m(rax=0x89AB_CDEF, rdi=0), m(rdi=4, at={EXTRA: (4, 0x89AB_CDEF)})),
    ("lodsb [esi]", "67 ac", m(rsi=0x1_0000), m(fault=GP)),
    ("lodsw ss:[si]", "36 ad", m(rsi=2, rflags=0x402, memory={STACK + 2: "cdab"}),
     m(rax=0x1122_3344_5566_ABCD, rsi=0)),
    ("xlat [bx]", "d7", m(rbx=0xFFFF, rax=2, memory={DATA + 1: "55"}), m(rax=0x55)),
    # Far pointers and segments.
    ("les bx, [si]", "c4 1c", m(rsi=0x40, memory={DATA + 0x40: "efbe3412"}),
     m(rbx=0x1122_3344_5566_BEEF, es_selector=0x1234, es_base=0x1_2340)),
    ("mov ss, ax", "8e d0", m(rax=0x7000), m(ss_selector=0x7000, ss_base=0x7_0000)),
    ("mov ax, ds", "8c d8", m(rax=0xFFFF_FFFF), m(rax=0xFFFF_2000)),
    ("jmp far 0x5678, 0x1234", "ea 78 56 34 12", m(),
     m(rip=0x5678, cs_selector=0x1234, cs_base=0x1_2340)),
    ("call far 0x5678, 0x1234", "9a 78 56 34 12", m(), m(rip=0x5678, cs_base=0x1_2340, rsp=0x7FFC,
     at={STACK + 0x7FFC: (4, 0x1000_0105)})),
    ("ret far", "cb", m(memory={STACK + 0x8000: "78563412"}),
     m(rip=0x5678, cs_base=0x1_2340, rsp=0x8004)),
    ("int 0x21", "cd 21", m(rflags=0x202, memory={0x84: "78563412"}),
     m(rip=0x5678, cs_base=0x1_2340, rsp=0x7FFA, rflags=2,
       at={STACK + 0x7FFA: (6, 0x0202_1000_0102)})),
    ("iret", "cf", m(memory={STACK + 0x8000: "785634120302"}),
     m(rip=0x5678, cs_base=0x1_2340, rsp=0x8006, rflags=0x203)),
    # Locked, across a line: the operand is 16 bits wide.
    ("lock xadd [bx], ax", "f0 0f c1 07", m(rbx=0x3F, rax=1, memory={DATA + 0x3F: "ff00"}),
     m(rax=0xFF, at={DATA + 0x3F: (2, 0x100)})),
]  # fmt: skip


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize(
    "text, code, before, after",
    CASES,
    ids=[f"{case[0]} {number}" for number, case in enumerate(CASES)],
)
def test_real_mode(
    engine: str, text: str, code: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    wanted = dict(after)
    fault = wanted.pop("fault", None)
    try:
        real = run(engine, text, code, dict(before))
    except Fault as raised:
        assert raised.vector == fault
        return
    assert fault is None
    if "moved" in wanted:
        assert real.state.rip == IP + wanted.pop("moved")
    if "cf" in wanted:
        assert real.state.rflags & 1 == wanted.pop("cf")
    for linear, (size, value) in wanted.pop("at", {}).items():
        assert real.word(linear, size) == value
    for name, value in wanted.items():
        got = getattr(real.state, name)
        assert got == value, f"{name} {got:#x}, not {value:#x}"


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_nothing_is_executed_after_a_shutdown(engine: str) -> None:
    """The single-step trap finds no room on the stack, nor do #SS and #DF (SDM 3A, 6.15, #DF)."""
    real = Real(engine)
    real.put(CODE + IP, bytes.fromhex("90 90 90 f4"))
    real.state.rsp, real.state.rflags = 1, 0x102
    real.core.run()
    assert (real.state.activity, real.state.rip) == (2, IP + 1)


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_one_offset_in_two_segments_is_two_places(engine: str) -> None:
    real = Real(engine)
    real.put(CODE + IP, bytes.fromhex("b8 01 00  ea 00 01 00 70"))  # mov ax, 1; jmp 0x7000:0x100
    real.put(0x7_0000 + IP, bytes.fromhex("b8 02 00  f4"))  # mov ax, 2; hlt
    stop = threading.Timer(5, real.core.kick)
    stop.start()
    real.core.run()
    stop.cancel()
    assert (real.state.rax & 0xFFFF, real.state.cs_selector) == (2, 0x7000)
