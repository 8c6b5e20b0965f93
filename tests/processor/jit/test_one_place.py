"""Pages that have the same place in native code's table, and instructions that need several."""

from __future__ import annotations

import threading

import pytest
from tests.processor.long_mode import LongMode

from trapline.arch.paging import PTE_P, PTE_W

APART = 1 << 28  # 65,536 pages: as many as the table has places
FIRST = 0x4_0000_0000
SOURCE, TARGET = 0x60000, 0x62000  # physical
PATIENCE = 60  # seconds

# With RSI at one page and RDI at another; what RDI's page must have in the end, from its start.
FORMS = {
    "movsq": ("48a5", b"\1\2\3\4\5\6\7\x08"),
    "rep movsb": ("b910000000 f3a4", bytes(range(1, 17))),
    "push [rsi]": ("488d6708 ff36", b"\1\2\3\4\5\6\7\x08"),  # lea rsp, [rdi+8]
    "cmpsq": ("48a7 0f9207", b"\xaa" * 8 + b"\1"),  # setb [rdi]
    "movsq across pages": ("4881c6fc0f0000 4881c7fc0f0000 48a5", b""),
    "many times": ("b900100000 48a5 4883ee08 4883ef08 ffc9 75f2", b"\1\2\3\4\5\6\7\x08"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_an_instruction_that_needs_two_of_them_is_done(engine: str, name: str) -> None:
    code, wanted = FORMS[name]
    machine = LongMode(engine=engine).kernel(
        bytes.fromhex(code + "f4"), rsi=FIRST, rdi=FIRST + APART
    )
    for i in range(4):
        linear = FIRST + (i >> 1) * APART + (i & 1) * 0x1000
        machine.tables.map(linear, SOURCE + i * 0x1000, PTE_P | PTE_W)
    machine.bus.bytes[SOURCE:TARGET] = bytes(i + 1 & 0xFF for i in range(0x2000))
    machine.bus.bytes[TARGET : TARGET + 0x2000] = b"\xaa" * 0x2000
    thread = threading.Thread(target=machine.core.run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        machine.core.kick()
        pytest.fail("it goes from one page to the other for ever")
    assert machine.bus.bytes[TARGET : TARGET + len(wanted)] == wanted
    if name == "movsq across pages":
        end = slice(TARGET + 0xFFC, TARGET + 0x1004)
        assert machine.bus.bytes[end] == machine.bus.bytes[SOURCE + 0xFFC : SOURCE + 0x1004]
