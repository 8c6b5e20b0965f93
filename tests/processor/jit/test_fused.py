"""Compare-and-branch as one handler: every producer with every condition, jit against interp."""

from __future__ import annotations

import random
import struct

import pytest
from tests.processor.jit.flat import DATA, UD2, flat_core, load_code, run_to_fault

from trapline.processor.core import Core
from trapline.processor.memory import Ram

# Producers that may be fused: name, bytes.  RAX and RCX (or XMM0, XMM1, [DATA]) are operands.
PRODUCERS = {
    "cmp8": "38c8", "cmp16": "6639c8", "cmp32": "39c8", "cmp64": "4839c8", "cmp high": "38cc",
    "cmp imm": "83f801", "cmp memory": "3b0425" + struct.pack("<I", DATA).hex(),
    "cmp to memory": "390425" + struct.pack("<I", DATA).hex(),
    "test8": "84c8", "test32": "85c8", "test64": "4885c8", "sub32": "29c8", "sub64": "4829c8",
    "add8": "00c8", "add16": "6601c8", "add64": "4801c8", "and32": "21c8", "or64": "4809c8",
    "xor16": "6631c8", "neg32": "f7d8", "adc32": "11c8", "sbb64": "4819c8", "imul32": "0fafc1",
    "inc32": "ffc0", "dec64": "48ffc8", "dec8": "fec8",
    "ucomisd": "660f2ec1", "comiss": "0f2fc1",
    "ucomisd memory": "660f2e0425" + struct.pack("<I", DATA).hex(),
    "ptest": "660f3817c1",
}  # fmt: skip
WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 2**63, 2**64 - 1)
FLOATS = tuple(
    int.from_bytes(struct.pack("<d", number), "little")
    for number in (0.0, -0.0, 1.0, 2.0, float("inf"), float("nan"), -1.5)
)


def _prepare(core: Core, left: int, right: int, flags: int) -> None:
    state = core.state
    state.rax, state.rcx = left, right
    state.set_xmm(0, left)
    state.set_xmm(1, right)
    state.rflags = flags
    assert isinstance(core.bus, Ram)
    core.bus.load(DATA, right.to_bytes(8, "little"))


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_fused_pair_branches_and_leaves_flags_as_the_reference_does(name: str) -> None:
    source = random.Random(name)
    producer = bytes.fromhex(PRODUCERS[name])
    jit, interp = flat_core("jit"), flat_core("interp")
    for condition in range(16):
        code = producer + bytes([0x70 + condition, 2]) + UD2 + UD2
        for core in (jit, interp):
            load_code(core, code)
        for _ in range(40):
            words = FLOATS if "comis" in name else WORDS
            left, right = source.choice(words), source.choice(words)
            flags = source.choice((0x2, 0x8D7, 0x3, 0x42, 0x882))
            seen = []
            for core in (jit, interp):
                _prepare(core, left, right, flags)
                run_to_fault(core)
                state = core.state
                seen.append((state.rip, state.rflags, state.rax, state.rcx))
            assert seen[0] == seen[1], f"{left:#x}, {right:#x}, flags {flags:#x}, j{condition:x}"


def test_pairs_are_really_fused() -> None:
    core = flat_core()
    load_code(core, bytes.fromhex("4839c87402") + UD2 + UD2)
    run_to_fault(core)
    assert core.engine is not None
    requests = core.engine.code.book._known
    assert any(r.then is not None and r.shape.form.name == "cmp" for r in requests)
