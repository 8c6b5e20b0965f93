"""Hardware task switches and task gates, on the bare processor and under the hypervisor.

On VMX every task switch leaves the guest, so the hypervisor does them; SVM leaves them alone.
"""

from __future__ import annotations

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.laboratory import LOG, OTHER, SURFACES, Laboratory
from tests.kvm.matrix.model import Event
from trapline.arch.descriptor import AR_CODE32, AR_DATA32, AR_P, FLAT_LIMIT, SystemType, with_dpl

TASK_B, GATE_B, CODE3, DATA3, GATE_CODE = 0x40, 0x48, 0x53, 0x5B, 0x60
TSS_B, STACK_B, STACK_B0 = 0x6200, 0x26000, 0x27000
BUSY, NT, TS = 2, 1 << 14, 1 << 3
HLT, IRET = "f4", "cf"
JMP_B, CALL_B = f"ea 00000000 {TASK_B:02x}00", f"9a 00000000 {TASK_B:02x}00"
CALL_GATE_B = f"9a 00000000 {GATE_B:02x}00"
READ_CR0 = "0f20c0"  # mov eax, cr0


@pytest.fixture(params=SURFACES)
def lab(request: pytest.FixtureRequest) -> Laboratory:
    lab = Laboratory(request.param, "protected 32")
    lab.segment(TASK_B, TSS_B, 0x67, AR_P | SystemType.TSS_AVAILABLE)
    lab.gate(GATE_B, TASK_B, 0, SystemType.TASK_GATE, 3)
    lab.segment(CODE3, 0, FLAT_LIMIT, with_dpl(AR_CODE32, 3))
    lab.segment(DATA3, 0, FLAT_LIMIT, with_dpl(AR_DATA32, 3))
    task_b(lab)
    return lab


def task_b(lab: Laboratory, **fields: int) -> None:
    """A task at CPL 0 at OTHER, its registers told apart by their words."""
    ring0 = dict.fromkeys(("es", "ss", "ds", "fs", "gs"), modes.HANDLER_SS)
    values = {
        "cs": modes.HANDLER_CS, "eip": OTHER, "eflags": 2, "esp": STACK_B,
        "esp0": STACK_B0, "ss0": modes.HANDLER_SS, "eax": 0xA, "ecx": 0xC, "esi": 0x51,
        **ring0,
    }  # fmt: skip
    lab.task(TSS_B, **(values | fields))


def rights(lab: Laboratory, selector: int) -> int:
    return lab.word(modes.GDT + selector + 5, 1)


@pytest.mark.parametrize("code", [JMP_B, f"ea 00000000 {GATE_B:02x}00"])
def test_a_jump_leaves_the_old_task_available(lab: Laboratory, code: str) -> None:
    lab.put(OTHER, f"89 0d {LOG.to_bytes(4, 'little').hex()} {READ_CR0} {HLT}")  # mov [LOG], ecx
    assert lab.run(code, rsi=0x1111) is None
    assert lab.get("rip") == OTHER + 10
    assert (lab.word(LOG), lab.get("rsi"), lab.get("rsp")) == (0xC, 0x51, STACK_B)
    assert lab.get("rax") & TS
    assert not rights(lab, modes.TR) & BUSY
    assert rights(lab, TASK_B) & BUSY
    assert lab.word(modes.TASK + 0x20) == lab.at + 7  # EIP behind the JMP
    assert lab.word(modes.TASK + 0x40) == 0x1111  # ESI
    assert lab.word(TSS_B, 2) == 0  # no link
    assert not lab.get("rflags") & NT


@pytest.mark.parametrize("code", [CALL_B, CALL_GATE_B])
def test_a_call_links_back_and_iret_returns(lab: Laboratory, code: str) -> None:
    lab.put(OTHER, f"9c 58 90 {IRET} {HLT}")  # pushf; pop eax; nop; iret; hlt
    assert lab.run(f"{code} {HLT}", rbp=0x77) is None
    assert lab.get("rip") == lab.at + 8
    assert lab.get("rbp") == 0x77
    assert lab.word(TSS_B, 2) == modes.TR
    assert lab.word(TSS_B + 0x28) & NT  # EAX as it was saved: FLAGS of the nested task
    assert not lab.word(TSS_B + 0x24) & NT  # EFLAGS: IRET takes it away
    assert rights(lab, modes.TR) & BUSY
    assert not rights(lab, TASK_B) & BUSY
    assert lab.word(TSS_B + 0x20) == OTHER + 4
    assert not lab.get("rflags") & NT


def test_a_task_that_is_busy_faults_in_the_old_task(lab: Laboratory) -> None:
    lab.segment(TASK_B, TSS_B, 0x67, AR_P | SystemType.TSS_BUSY)
    assert lab.run(JMP_B) == Event(13, 0, error_code=TASK_B)


def test_a_tss_too_short_is_invalid(lab: Laboratory) -> None:
    lab.segment(TASK_B, TSS_B, 0x66, AR_P | SystemType.TSS_AVAILABLE)
    assert lab.run(JMP_B) == Event(10, 0, error_code=TASK_B)


def test_a_bad_segment_faults_in_the_new_task(lab: Laboratory) -> None:
    """The frame is on the new task's stack, EIP its first instruction."""
    task_b(lab, ds=0xF8)
    event = lab.run(JMP_B)
    assert event == Event(10, OTHER - lab.at, error_code=0xF8)
    assert STACK_B - 0x20 < lab.get("rsp") < STACK_B
    assert rights(lab, TASK_B) & BUSY


def test_an_outer_task_runs_at_its_privilege(lab: Laboratory) -> None:
    """CPL 3, and back through an interrupt on the new task's own ring 0 stack."""
    outer = dict.fromkeys(("es", "ss", "ds", "fs", "gs"), DATA3)
    task_b(lab, cs=CODE3, **outer)
    lab.put(OTHER, f"{HLT}")  # privileged: #GP
    assert lab.run(JMP_B) == Event(13, OTHER - lab.at, error_code=0)
    assert lab.get("rsp") == STACK_B0 - 24
    assert lab.word(lab.get("rsp") + 8) == CODE3


def test_the_trap_flag_of_a_tss_is_bt(lab: Laboratory) -> None:
    """A.4: bit 15; RIP is the new task's first instruction."""
    task_b(lab, trap=1)
    lab.put(OTHER, f"90 {HLT}")
    assert lab.run(JMP_B) == Event(1, OTHER - lab.at, 0xFFFF8FF0)


def test_local_breakpoints_end_with_the_task(lab: Laboratory) -> None:
    """A.5: a task switch clears L0-L3; G0-G3 stay."""
    lab.put(OTHER, f"0f21fb {HLT}")  # mov ebx, dr7
    assert lab.run(JMP_B, dr7=0x400 | 0xFF) is None
    assert lab.get("rbx") == 0x400 | 0xAA


@pytest.mark.parametrize(
    ("vector", "code", "length"), [(6, "0f0b", 0), (0x10, "cd10", 2), (3, "cc", 1)]
)
def test_a_task_gate_in_the_idt(lab: Laboratory, vector: int, code: str, length: int) -> None:
    lab.interrupt(vector, TASK_B, 0, SystemType.TASK_GATE, 3)
    lab.put(OTHER, f"{HLT} {IRET}")
    assert lab.run(f"{code} {HLT}", rdx=0x44) is None
    assert lab.get("rip") == OTHER + 1
    assert lab.word(modes.TASK + 0x20) == lab.at + length
    assert lab.word(TSS_B, 2) == modes.TR
    assert lab.get("rflags") & NT
    lab.put(lab.at, f"{HLT}{HLT}{HLT}")  # the instruction would come again
    assert lab.go() is None
    assert lab.get("rip") == lab.at + length + 1
    assert lab.get("rdx") == 0x44


def test_an_error_code_is_pushed_on_the_new_tasks_stack(lab: Laboratory) -> None:
    lab.interrupt(13, TASK_B, 0, SystemType.TASK_GATE)
    lab.put(OTHER, f"58 {HLT}")  # pop eax
    assert lab.run("8e d8", rax=0xF0) is None  # mov ds, ax: no such descriptor
    assert lab.get("rax") == 0xF0
    assert lab.word(modes.TASK + 0x20) == lab.at


def test_a_task_gate_to_a_busy_task_makes_a_double_fault(lab: Laboratory) -> None:
    """#GP on the way of #GP is contributory on contributory."""
    lab.interrupt(13, modes.TR, 0, SystemType.TASK_GATE)
    event = lab.run("8e d8", rax=0xF0)
    assert event == Event(8, 0, error_code=0)


def test_no_task_can_be_switched_to_in_long_mode() -> None:
    for name in SURFACES:
        lab = Laboratory(name, "compatibility")
        lab.segment(TASK_B, TSS_B, 0x67, AR_P | SystemType.TSS_AVAILABLE)
        assert lab.run(JMP_B) == Event(13, 0, error_code=TASK_B), name


def test_a_task_has_page_tables_of_its_own() -> None:
    """CR3 comes from the TSS, in 32-bit and in PAE paging, and goes back with IRET."""
    for name in SURFACES:
        for mode, size in (("paged 32", 4), ("PAE", 8)):
            lab = Laboratory(name, mode)
            lab.segment(TASK_B, TSS_B, 0x67, AR_P | SystemType.TSS_AVAILABLE)
            tables, levels = 0x60000, 2 if size == 4 else 3
            for level in range(levels):
                table = lab.memory.read(modes.TABLES + 0x1000 * level, 0x1000)
                lab.memory.write(tables + 0x1000 * level, table)
            flags = (1, 7)  # of a PDPTE, and of a table
            for level in range(levels - 1):
                entry = tables + 0x1000 * (level + 1) | flags[size == 4 or level]
                lab.memory.write(tables + 0x1000 * level, entry.to_bytes(size, "little"))
            leaf = tables + 0x1000 * (levels - 1) + size * (LOG >> 12)
            lab.memory.write(leaf, (LOG + 0x1000 | 7).to_bytes(size, "little"))
            task_b(lab, cr3=tables)
            store = f"89 0d {LOG.to_bytes(4, 'little').hex()}"  # mov [LOG], ecx
            lab.put(OTHER, f"{store} {IRET}")
            lab.memory.write(modes.TASK + 0x1C, modes.TABLES.to_bytes(4, "little"))
            assert lab.run(f"{CALL_B} {store} {HLT}", rcx=0x99) is None, (name, mode)
            assert (lab.word(LOG), lab.word(LOG + 0x1000)) == (0x99, 0xC), (name, mode)


def test_a_task_in_virtual_8086_mode(lab: Laboratory) -> None:
    """EFLAGS.VM in the TSS; an interrupt comes back to ring 0 of the same task."""
    real = dict.fromkeys(("es", "ds", "fs", "gs"), modes.DATA >> 4)
    task_b(lab, cs=OTHER >> 4, eip=0, ss=STACK_B >> 4, esp=0x800, eflags=1 << 17 | 2, **real)
    lab.put(OTHER, HLT)
    assert lab.run(JMP_B) == Event(13, -lab.at, error_code=0)
    assert lab.get("rsp") == STACK_B0 - 40  # ten words, the four data segments among them


def test_a_16_bit_task(lab: Laboratory) -> None:
    """A TSS of the 80286: words, no CR3, and FS and GS null."""
    lab.segment(TASK_B, TSS_B, 0x2B, AR_P | SystemType.TSS16_AVAILABLE)
    words = [0] * 7 + [OTHER & 0xFFFF, 2, 0xA, 0xC, 0xD, 0xB, STACK_B & 0xFFFF, 0, 0x51, 0xD1]
    words += [modes.HANDLER_SS, GATE_CODE, modes.HANDLER_SS, modes.HANDLER_SS, 0]
    lab.segment(GATE_CODE, OTHER & ~0xFFFF, FLAT_LIMIT, AR_CODE32)
    lab.memory.write(TSS_B, b"".join(word.to_bytes(2, "little") for word in words))
    lab.put(OTHER, f"8c e2 {HLT}")  # mov edx, fs
    assert lab.run(JMP_B, rdx=0xFFFFFFFF) is None
    assert (lab.get("rsi") & 0xFFFF, lab.get("rdx")) == (0x51, 0)
    assert lab.get("rip") == (OTHER & 0xFFFF) + 3
