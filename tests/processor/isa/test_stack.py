"""The stack: PUSH and POP of everything, flags on the stack, ENTER and LEAVE."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run
from tests.processor.isa.machine import STACK

WORD = 0x1122_3344_5566_7788
UNMAPPED = 0x5000_0000
GP = 13
TF, IF, DF, IOPL, NT, RF, VM, AC, ID = (
    1 << 8, 1 << 9, 1 << 10, 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 21,
)  # fmt: skip


def quad(word: int) -> bytes:
    return word.to_bytes(8, "little")


def test_push_and_pop_of_a_register(run: Run) -> None:
    after = run("push rax", "50", rax=WORD)
    assert (after.rsp, after.word(STACK - 8)) == (STACK - 8, WORD)
    after = run("pop rbx", "5b", memory={STACK: quad(WORD)})
    assert (after.rsp, after.rbx) == (STACK + 8, WORD)


def test_words_move_the_stack_by_two(run: Run) -> None:
    after = run("push ax", "66 50", rax=WORD)
    assert (after.rsp, after.word(STACK - 2, 2)) == (STACK - 2, 0x7788)
    after = run("pop bx", "66 5b", rbx=WORD, memory={STACK: b"\x01\x02"})
    assert (after.rsp, after.rbx) == (STACK + 2, WORD & ~0xFFFF | 0x0201)


def test_push_rsp_pushes_what_it_was(run: Run) -> None:
    assert run("push rsp", "54").word(STACK - 8) == STACK


def test_pop_rsp_leaves_what_was_popped(run: Run) -> None:
    assert run("pop rsp", "5c", memory={STACK: quad(WORD)}).rsp == WORD


@pytest.mark.parametrize(
    "text, code, size, pushed",
    [
        ("push 0xFFFFFFFFFFFFFFFF", "6a ff", 8, (1 << 64) - 1),
        ("push 0xFFFFFFFF80000000", "68 00 00 00 80", 8, 0xFFFF_FFFF_8000_0000),
        ("data16 push 0xFFFE", "66 6a fe", 2, 0xFFFE),
    ],
)
def test_immediates_are_sign_extended(
    run: Run, text: str, code: str, size: int, pushed: int
) -> None:
    after = run(text, code)
    assert (after.rsp, after.word(STACK - size, size)) == (STACK - size, pushed)


def test_push_from_memory_reads_before_it_writes(run: Run) -> None:
    after = run("push qword ptr [rsp]", "ff 34 24", memory={STACK: quad(WORD)})
    assert after.word(STACK - 8) == WORD
    assert after.accesses == [("read", STACK, 8), ("write", STACK - 8, 8)]


def test_pop_to_memory_through_rsp_addresses_with_rsp_already_moved(run: Run) -> None:
    after = run("pop qword ptr [rsp+8]", "8f 44 24 08", memory={STACK: quad(WORD)})
    assert (after.rsp, after.word(STACK + 16)) == (STACK + 8, WORD)


def test_pop_that_cannot_store_leaves_rsp(run: Run) -> None:
    after = run("pop qword ptr [rdi]", "8f 07", rdi=UNMAPPED)
    assert (after.fault, after.rsp) == (14, STACK)


def test_selectors_are_pushed_zero_extended_and_popped_by_microcode(run: Run) -> None:
    assert run("push fs", "0f a0", fs_selector=0x53).word(STACK - 8) == 0x53
    assert run("push ds", "1e", 32, ds_selector=0x2B).word(STACK - 4, 4) == 0x2B
    assert run("pop fs", "0f a1").microcode == [("pop_segment", ())]


def test_the_stack_size_wraps_the_pointer(run: Run) -> None:
    after = run("push eax", "50", 32, 16, rsp=0x5555_0000, rax=WORD)
    assert (after.rsp, after.accesses) == (0x5555_FFFC, [("write", 0xFFFC, 4)])
    after = run("pop eax", "58", 32, 16, rsp=0x5555_FFFE, memory={0xFFFE: b"\x07"})
    assert (after.rsp, after.rax) == (0x5555_0002, 7)


def test_pusha_pushes_sp_as_it_was(run: Run) -> None:
    given = {"rax": 1, "rcx": 2, "rdx": 3, "rbx": 4, "rbp": 6, "rsi": 7, "rdi": 8}
    after = run("pushad", "60", 32, **given)
    assert [after.word(STACK - 4 * n, 4) for n in range(1, 9)] == [1, 2, 3, 4, STACK, 6, 7, 8]
    assert after.rsp == STACK - 32
    after = run("pusha", "60", 16, **given)
    assert [after.word(STACK - 2 * n, 2) for n in range(1, 9)] == [1, 2, 3, 4, STACK, 6, 7, 8]


def test_popa_skips_sp(run: Run) -> None:
    stored = b"".join(n.to_bytes(4, "little") for n in range(8, 0, -1))
    after = run("popad", "61", 32, memory={STACK: stored})
    names = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi")
    assert [getattr(after, name) for name in names] == [1, 2, 3, 4, 6, 7, 8]
    assert after.rsp == STACK + 32


def test_pushf_hides_vm_and_rf(run: Run) -> None:
    after = run("pushfq", "9c", flags="cf zf of", system=RF | AC | ID | DF | NT)
    assert after.word(STACK - 8) == 0x841 | 2 | AC | ID | DF | NT
    assert run("pushf", "66 9c", flags="sf", system=AC).word(STACK - 2, 2) == 0x82


@pytest.mark.parametrize(
    "cpl, iopl, changes",
    [
        (0, 0, TF | IF | DF | IOPL | NT | AC | ID),
        (3, 0, TF | DF | NT | AC | ID),
        (3, 3, TF | IF | DF | NT | AC | ID),
        (1, 1, TF | IF | DF | NT | AC | ID),
        (1, 0, TF | DF | NT | AC | ID),
    ],
)
def test_popf_changes_what_the_privilege_allows(
    run: Run, cpl: int, iopl: int, changes: int
) -> None:
    before = iopl << 12 | RF
    everything = (1 << 64) - 1
    after = run("popfq", "9d", cpl=cpl, system=before, memory={STACK: quad(everything)})
    assert after.system_flags == before & ~RF | changes | 2
    assert after.flags == {"cf", "pf", "af", "zf", "sf", "of"}
    assert after.rsp == STACK + 8


def test_popf_of_a_word_leaves_the_upper_flags(run: Run) -> None:
    after = run("popf", "66 9d", cpl=0, system=RF | AC | IF, memory={STACK: b"\x45\x04"})
    assert after.system_flags == RF | AC | DF | 2
    assert after.flags == {"cf", "pf", "zf"}


@pytest.mark.parametrize(
    "image, called", [(0, False), (DF | ID | NT, False), (TF, True), (AC, True), (IF, True)]
)
def test_popf_tells_the_core_when_traps_interrupts_or_alignment_checks_change(
    run: Run, image: int, called: bool
) -> None:
    after = run("popfq", "9d", cpl=0, memory={STACK: quad(image)})
    assert after.microcode == ([("system_flags_changed", (2,))] if called else [])


@pytest.mark.parametrize("text, code", [("pushf", "9c"), ("popf", "9d")])
def test_virtual_8086_needs_iopl_3(run: Run, text: str, code: str) -> None:
    after = run(text, code, 16, system=VM)
    assert (after.fault, after.error_code, after.rsp) == (GP, 0, STACK)
    assert run(text, code, 16, system=VM | IOPL).fault is None


def test_enter_makes_a_frame(run: Run) -> None:
    after = run("enter 0x20, 0", "c8 20 00 00", rbp=WORD)
    assert (after.rbp, after.rsp) == (STACK - 8, STACK - 8 - 0x20)
    assert after.word(STACK - 8) == WORD


@pytest.mark.parametrize("level", [1, 2, 3, 31])
@pytest.mark.parametrize("asked", [0, 32])  # the level counts modulo 32
def test_enter_copies_the_frames_around_it(run: Run, level: int, asked: int) -> None:
    outer = 0x9000
    links = {outer - 8 * n: quad(0xF000 + n) for n in range(1, 32)}
    number = level + asked
    text = f"enter 0x10, {number if number < 10 else f'0x{number:X}'}"
    after = run(text, f"c8 10 00 {number:02x}", rbp=outer, memory=links)
    frame = STACK - 8
    copied = [after.word(frame - 8 * n) for n in range(1, level)]
    assert copied == [0xF000 + n for n in range(1, level)]
    assert after.word(frame - 8 * level) == frame
    assert after.word(frame) == outer
    assert (after.rbp, after.rsp) == (frame, frame - 8 * level - 0x10)


@pytest.mark.parametrize(
    "text, code, bits, stack, rsp, frame",
    [
        # On silicon: the operand's size says how much of RBP is replaced, whatever the stack's.
        ("data16 enter 0x20, 1", "66 c8 20 00 01", 64, 64, STACK, WORD & ~0xFFFF | STACK - 2),
        ("data16 enter 0x20, 1", "66 c8 20 00 01", 32, 32, STACK, WORD & ~0xFFFF | STACK - 2),
        ("enter 0x20, 1", "c8 20 00 01", 16, 16, STACK, WORD & ~0xFFFF | STACK - 2),
        ("enter 0x20, 1", "c8 20 00 01", 32, 16, 0xABCD_7000, 0xABCD_6FFC),
        ("enter 0x20, 1", "c8 20 00 01", 32, 32, STACK, STACK - 4),
    ],
)
def test_enter_replaces_as_much_of_rbp_as_the_operand_has(
    run: Run, text: str, code: str, bits: int, stack: int, rsp: int, frame: int
) -> None:
    after = run(text, code, bits, stack, rbp=WORD, rsp=rsp)
    size = 4 if bits == 32 and not text.startswith("data16") else 2
    assert after.rbp == frame
    assert after.rsp == rsp - 2 * size - 0x20
    top = STACK - size
    assert after.word(top, size) == WORD & (1 << 8 * size) - 1
    assert after.word(top - size, size) == frame & (1 << 8 * size) - 1


def test_leave_undoes_enter(run: Run) -> None:
    after = run("leave", "c9", rbp=0x9000, memory={0x9000: quad(WORD)})
    assert (after.rsp, after.rbp) == (0x9008, WORD)


def test_pop_sp_replaces_the_low_word_of_the_moved_pointer(run: Run) -> None:
    after = run("pop sp", "66 5c", rsp=0x1_FFFE, memory={0x1_FFFE: b"\x34\x12"})
    assert after.rsp == 0x2_1234
