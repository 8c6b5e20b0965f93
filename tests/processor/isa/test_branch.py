"""Near branches: where they go, what they push, and where they may not go."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run
from tests.processor.isa.machine import ENTRY, STACK, Machine, prepare
from tests.processor.long_mode import FLAT, USER, USER_PHYSICAL, LongMode
from trapline.processor.decode import Decoded, decode
from trapline.processor.fault import Fault
from trapline.processor.interp import execute
from trapline.processor.isa.conditions import CONDITIONS
from trapline.processor.language import Raise, record
from trapline.processor.language.check import check
from trapline.processor.state import INDEX

GP = 13
NON_CANONICAL = 0x0000_8000_0000_0000


@pytest.mark.parametrize("code, name", list(enumerate(CONDITIONS)))
def test_conditional_jumps_go_where_setcc_would_set(run: Run, code: int, name: str) -> None:
    for flags in ("", "cf", "zf", "sf", "of", "pf", "sf of", "cf zf"):
        holds = run(f"set{name} al", f"0f {0x90 + code:02x} c0", flags=flags).rax
        short = run(f"j{name} short 0x0000000000004042", f"{0x70 + code:x} 40", flags=flags)
        assert short.moved == (0x42 if holds else 2)
        near = run(f"j{name} 0x0000000000003806", f"0f {0x80 + code:x} 00 f8 ff ff", flags=flags)
        assert near.moved == (-0x7FA if holds else 6)


def test_jumps_through_registers_and_memory(run: Run) -> None:
    assert run("jmp rax", "ff e0", rax=0x1_2345_6789).rip == 0x1_2345_6789
    after = run("jmp qword ptr [rdi]", "ff 27", rdi=0x8000, memory={0x8000: b"\x34\x12"})
    assert after.rip == 0x1234
    assert run("jmp short 0x0000000000004000", "eb fe").rip == ENTRY


def test_a_jump_with_words_cuts_the_target(run: Run) -> None:
    assert run("jmp ax", "66 ff e0", 32, rax=0x55_1234).rip == 0x1234
    assert run("data16 jmp 0x4014", "66 e9 10 00", 32).rip == 0x4014


def test_call_pushes_the_next_address(run: Run) -> None:
    after = run("call 0x0000000000004015", "e8 10 00 00 00")
    assert (after.rip, after.rsp, after.word(STACK - 8)) == (0x4015, STACK - 8, ENTRY + 5)
    after = run("call rax", "ff d0", rax=0x9000)
    assert (after.rip, after.word(STACK - 8)) == (0x9000, ENTRY + 2)
    after = run("call 0x4013", "e8 10 00", 16)
    assert (after.rip, after.rsp, after.word(STACK - 2, 2)) == (0x4013, STACK - 2, ENTRY + 3)


def test_call_through_rsp_uses_it_before_it_moves(run: Run) -> None:
    after = run("call qword ptr [rsp]", "ff 14 24", memory={STACK: b"\x00\x90"})
    assert (after.rip, after.word(STACK - 8)) == (0x9000, ENTRY + 3)


def test_ret_pops_and_releases(run: Run) -> None:
    after = run("ret", "c3", memory={STACK: b"\x00\x90"})
    assert (after.rip, after.rsp) == (0x9000, STACK + 8)
    after = run("ret 0xFFF0", "c2 f0 ff", memory={STACK: b"\x00\x90"})
    assert (after.rip, after.rsp) == (0x9000, STACK + 8 + 0xFFF0)
    after = run("data16 ret", "66 c3", 32, memory={STACK: b"\x00\x90\x11\x22"})
    assert (after.rip, after.rsp) == (0x9000, STACK + 2)


@pytest.mark.parametrize("text, code", [("jmp rax", "ff e0"), ("call rax", "ff d0"), ("ret", "c3")])
@pytest.mark.parametrize("la57, target, faults", [
    (0, NON_CANONICAL, True), (0, NON_CANONICAL - 1, False), (0, -NON_CANONICAL, False),
    (0, -NON_CANONICAL - 1, True), (1, NON_CANONICAL, False), (1, 1 << 56, True),
])  # fmt: skip
def test_a_target_must_be_canonical(
    run: Run, text: str, code: str, la57: int, target: int, faults: bool
) -> None:
    target &= (1 << 64) - 1
    stored = target.to_bytes(8, "little")
    after = run(text, code, rax=target, cr4=la57 << 12, memory={STACK: stored})
    if faults:
        assert (after.fault, after.error_code) == (GP, 0)
        assert (after.rip, after.rsp) == (ENTRY, STACK)
    else:
        assert (after.fault, after.rip) == (None, target)


EDGE = NON_CANONICAL - 0x1000  # the last page of the lower half


def beyond(opcode: str, at: int, target: int = NON_CANONICAL + 0x2000) -> bytes:
    """A direct branch out of the lower half."""
    code = bytes.fromhex(opcode)
    return code + (target - at - len(code) - 4).to_bytes(4, "little")


def outward(opcode: str, at: int = EDGE) -> Decoded:
    decoded = decode(beyond(opcode, at), at)
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("opcode", ["e9", "e8", "0f 84"])
def test_a_direct_branch_to_a_target_that_is_not_canonical_faults_itself(
    engine: str, opcode: str
) -> None:
    """As on silicon, for JMP, CALL and a Jcc that is taken: RIP is the branch, nothing pushed."""
    machine = LongMode(engine=engine)
    memory = machine.bus.bytes
    code = b"\x39\xc0" + beyond(opcode, EDGE + 2)  # CMP EAX, EAX
    memory[USER_PHYSICAL + 0x3000 : USER_PHYSICAL + 0x4000] = b"\xcc" * 0x1000
    machine.user(code).core.run()
    assert machine.vector == 3  # the same bytes where they lead to code
    machine.tables.map(EDGE, USER_PHYSICAL + 0x1000, FLAT)
    memory[USER_PHYSICAL + 0x1000 : USER_PHYSICAL + 0x1000 + len(code)] = code
    machine.user(code, rip=EDGE, activity=0).core.run()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (GP, 0, EDGE + 2)
    assert frame.rsp == USER + 0x5000


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_a_conditional_branch_that_is_not_taken_may_name_any_target(engine: str) -> None:
    machine = LongMode(engine=engine)
    machine.tables.map(EDGE, USER_PHYSICAL, FLAT)
    code = b"\x39\xc0" + beyond("0f 85", EDGE + 2) + b"\xcc"
    machine.user(code, rip=EDGE).core.run()
    assert (machine.vector, machine.frame().rip) == (3, EDGE + len(code))


@pytest.mark.parametrize("opcode", ["e9", "e8", "0f 84"])
def test_direct_targets_are_canonical_by_cr4_la57(opcode: str) -> None:
    decoded = outward(opcode)
    for la57 in (0, 1):
        machine = Machine(64)
        prepare(machine.state, machine.memory.bytes, {"flags": "zf", "cr4": la57 << 12})
        machine.state.rip = EDGE
        if la57:
            assert execute(machine, decoded)  # type: ignore[arg-type]
            assert machine.state.rip == NON_CANONICAL + 0x2000
        else:
            with pytest.raises(Fault) as raised:
                execute(machine, decoded)  # type: ignore[arg-type]
            assert (raised.value.vector, raised.value.error_code) == (GP, 0)
            assert (machine.state.rip, machine.state.rsp) == (EDGE, STACK)
            assert not machine.memory.accesses


@pytest.mark.parametrize("opcode", ["e9", "e8", "0f 84"])
@pytest.mark.parametrize(
    "at, target, is_checked",
    [
        (EDGE, NON_CANONICAL + 0x2000, True),
        (EDGE, NON_CANONICAL, True),
        (EDGE, NON_CANONICAL - 1, False),
        (-NON_CANONICAL, -NON_CANONICAL, False),
        (-NON_CANONICAL, -NON_CANONICAL - 1, True),
        (0, -0x1000, False),
    ],
)
def test_direct_branches_carry_a_check_only_where_it_can_fail(
    opcode: str, at: int, target: int, is_checked: bool
) -> None:
    code = bytes.fromhex(opcode)
    offset = target - at - len(code) - 4 & 0xFFFF_FFFF
    decoded = decode(code + offset.to_bytes(4, "little"), at & (1 << 64) - 1)
    assert decoded is not None
    effects = record(decoded.form)
    check(decoded.form, effects, INDEX)
    assert any(isinstance(effect, Raise) for effect in effects) == is_checked


@pytest.mark.parametrize(
    "text, code",
    [
        ("jmp eax", "ff e0"),
        ("call eax", "ff d0"),
        ("ret", "c3"),
        ("jmp 0x00009005", "e9 00 50 00 00"),
    ],
)
def test_a_target_lies_within_the_code_segment(run: Run, text: str, code: str) -> None:
    given = {"rax": 0x9005, "memory": {STACK: b"\x05\x90"}}
    after = run(text, code, 32, cs_limit=0x9004, **given)
    assert (after.fault, after.error_code, after.rip, after.rsp) == (GP, 0, ENTRY, STACK)
    assert run(text, code, 32, cs_limit=0x9005, **given).rip == 0x9005


def test_a_conditional_jump_beyond_the_segment_faults_only_if_taken(run: Run) -> None:
    code = "0f 84 00 50 00 00"
    assert run("je 0x00009006", code, 32, cs_limit=0x8000, flags="zf").fault == GP
    assert run("je 0x00009006", code, 32, cs_limit=0x8000).moved == 6


@pytest.mark.parametrize(
    "name, code, flags, count, taken",
    [
        ("loop", "e2", "", 2, True),
        ("loop", "e2", "", 1, False),
        ("loop", "e2", "", 0, True),
        ("loope", "e1", "zf", 2, True),
        ("loope", "e1", "", 2, False),
        ("loope", "e1", "zf", 1, False),
        ("loopne", "e0", "", 2, True),
        ("loopne", "e0", "zf", 2, False),
    ],
)
def test_loops_count_down(
    run: Run, name: str, code: str, flags: str, count: int, taken: bool
) -> None:
    after = run(f"{name} 0x0000000000004012", f"{code} 10", rcx=count, flags=flags)
    assert after.rcx == count - 1 & (1 << 64) - 1
    assert after.moved == (0x12 if taken else 2)
    assert after.flags == set(flags.split())


def test_the_address_size_chooses_the_counter(run: Run) -> None:
    after = run("addr32 loop 0x0000000000004013", "67 e2 10", rcx=0xF_0000_0001)
    assert (after.rcx, after.moved) == (0, 3)
    after = run("addr16 loop 0x00004013", "67 e2 10", 32, rcx=0xF_0001)
    assert (after.rcx, after.moved) == (0xF_0000, 3)
    assert run("jrcxz 0x0000000000004012", "e3 10", rcx=1 << 32).moved == 2
    assert run("jecxz 0x0000000000004013", "67 e3 10", rcx=1 << 32).moved == 0x13
    assert run("jcxz 0x00004013", "67 e3 10", 32, rcx=0x1_0000).moved == 0x13


@pytest.mark.parametrize(
    "text, code, bits, name",
    [
        ("jmp far fword ptr [rdi]", "ff 2f", 64, "jmp_far"),
        ("call far fword ptr [rdi]", "ff 1f", 64, "call_far"),
        ("call far dword ptr [rdi]", "66 ff 1f", 64, "call_far"),
        ("call far tbyte ptr [rdi]", "48 ff 1f", 64, "call_far"),
        ("jmp far 0x00001234, 0x0010", "ea 34 12 00 00 10 00", 32, "jmp_far"),
        ("call far dword ptr [bx]", "ff 1f", 16, "call_far"),
    ],
)
def test_far_transfers_are_microcode(run: Run, text: str, code: str, bits: int, name: str) -> None:
    assert run(text, code, bits).microcode == [(name, ())]
