"""Instructions, ports, MSRs, control and debug registers, interrupts: what exits, and how."""

from __future__ import annotations

import pytest

from tests.processor.svm.machine import (
    CODE,
    HLT,
    IDT,
    IOPM,
    MSRPM,
    SPIN,
    Machine,
)
from trapline.arch import msr, registers, svm
from trapline.arch.svm import EventType, ExitCode, Intercept


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"\x0f\xa2", "CPUID"),
        (b"\xf4", "HLT"),
        (b"\x0f\x31", "RDTSC"),
        (b"\x0f\x01\xf9", "RDTSCP"),
        (b"\x0f\x33", "RDPMC"),
        (b"\x0f\x08", "INVD"),
        (b"\x0f\x09", "WBINVD"),
    ],
)
def test_an_intercepted_instruction_exits_before_it_is_done(
    engine: str, code: bytes, name: str
) -> None:
    machine = Machine(code + HLT, engine=engine)
    machine.intercept(Intercept[name])
    exit = machine.enter()
    assert (exit.code, exit.next_rip) == (ExitCode[name], CODE + len(code))
    assert machine.read("rip") == CODE


def test_an_instruction_that_is_not_intercepted_runs(engine: str) -> None:
    machine = Machine(b"\x0f\xa2" + HLT, engine=engine)
    machine.write(rax=0)
    assert machine.enter().code == ExitCode.HLT
    assert machine.state.rbx == int.from_bytes(b"Auth", "little")


def test_invlpg_says_which_page(engine: str) -> None:
    machine = Machine(b"\x0f\x01\x3f", engine=engine)  # invlpg [rdi]
    machine.intercept(Intercept.INVLPG)
    machine.state.rdi = 0x123456
    assert machine.enter().info_1 == 0x123456


# -- ports and MSRs --------------------------------------------------------------------------------


def test_the_port_map_decides_port_by_port(engine: str) -> None:
    machine = Machine(b"\xe6\x10\xe7\x11" + HLT, engine=engine)  # out 0x10, al; out 0x11, eax
    machine.intercept(Intercept.IOIO)
    machine.ram.load(IOPM + 2, b"\x10")  # port 0x14
    exit = machine.enter()
    assert exit.code == ExitCode.IOIO
    assert exit.info_1 == 0x11 << 16 | 1 << 6  # four bytes, the last of which is port 0x14
    assert exit.info_2 == exit.next_rip == CODE + 4
    assert machine.read("rip") == CODE + 2


def test_ports_beyond_the_last_have_bits_too(engine: str) -> None:
    machine = Machine(b"\xef", engine=engine)  # out dx, eax
    machine.intercept(Intercept.IOIO)
    machine.state.rdx = 0xFFFF
    machine.ram.load(IOPM + 0x2000, b"\x04")
    assert machine.enter().info_1 == 0xFFFF << 16 | 1 << 6


def test_string_io_says_its_size_address_size_and_segment(engine: str) -> None:
    machine = Machine(b"\xf3\x64\x67\x66\x6f", engine=engine)  # rep outsw, fs:[esi]
    machine.intercept(Intercept.IOIO)
    machine.ram.load(IOPM, b"\xff" * 0x1000)
    machine.state.rcx, machine.state.rdx, machine.state.rsi = 2, 0x60, 0x50000
    exit = machine.enter()
    assert exit.info_1 == 0x60 << 16 | 4 << 10 | 1 << 8 | 1 << 5 | 1 << 3 | 1 << 2
    machine = Machine(b"\x6c", engine=engine)  # insb
    machine.intercept(Intercept.IOIO)
    machine.ram.load(IOPM, b"\xff" * 0x1000)
    machine.state.rdx, machine.state.rdi = 0x60, 0x50000
    assert machine.enter().info_1 == 0x60 << 16 | 1 << 9 | 1 << 4 | 1 << 2 | 1


@pytest.mark.parametrize("code", [b"\x0f\x32", b"\x0f\x30"])
def test_the_msr_map_has_a_bit_for_each_way(engine: str, code: bytes) -> None:
    is_write = code == b"\x0f\x30"
    for index, base in (
        (msr.IA32_SYSENTER_CS, 0),
        (msr.IA32_STAR, 0x800),
        (msr.AMD_SYSCFG, 0x1000),
    ):
        position = 2 * (index & 0x1FFF) + is_write
        machine = Machine(code + HLT, engine=engine)
        machine.intercept(Intercept.MSR)
        machine.state.rcx = index
        assert machine.enter().code == ExitCode.HLT
        machine = Machine(code + HLT, engine=engine)
        machine.intercept(Intercept.MSR)
        machine.state.rcx = index
        machine.ram.load(MSRPM + base + (position >> 3), bytes([1 << (position & 7)]))
        exit = machine.enter()
        assert (exit.code, exit.info_1) == (ExitCode.MSR, is_write)


def test_an_msr_outside_the_map_always_exits(engine: str) -> None:
    machine = Machine(b"\x0f\x32", engine=engine)
    machine.intercept(Intercept.MSR)
    machine.state.rcx = 0x40000000
    assert machine.enter().code == ExitCode.MSR


# -- control and debug registers -------------------------------------------------------------------

MOV = 1 << 63


@pytest.mark.parametrize(
    ("code", "number", "assist"),
    [
        (b"\x0f\x20\xc3", svm.INTERCEPT_READ_CR, MOV | 3),  # mov rbx, cr0
        (b"\x0f\x20\xde", svm.INTERCEPT_READ_CR + 3, MOV | 6),
        (b"\x0f\x22\xe0", svm.INTERCEPT_WRITE_CR + 4, MOV),
        (b"\x44\x0f\x22\xc1", svm.INTERCEPT_WRITE_CR + 8, MOV | 1),
        (b"\x0f\x01\xe1", svm.INTERCEPT_READ_CR, 0),  # smsw ecx
        (b"\x0f\x06", svm.INTERCEPT_WRITE_CR, 0),  # clts
    ],
)
def test_control_registers_by_number(engine: str, code: bytes, number: int, assist: int) -> None:
    machine = Machine(code + HLT, engine=engine)
    machine.intercept(number)
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (number, assist)


def test_the_selective_intercept_lets_ts_and_mp_pass(engine: str) -> None:
    machine = Machine(b"\x0f\x22\xc0\x0f\x22\xc3", engine=engine)  # mov cr0, rax; mov cr0, rbx
    machine.intercept(Intercept.CR0_SELECTIVE)
    cr0 = machine.read("cr0")
    machine.write(rax=cr0 | registers.CR0_TS | registers.CR0_MP)
    machine.state.rbx = cr0 | registers.CR0_WP
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (ExitCode.CR0_SEL_WRITE, MOV | 3)
    assert machine.read("rip") == CODE + 3
    assert machine.read("cr0") == cr0 | registers.CR0_TS | registers.CR0_MP


@pytest.mark.parametrize(
    ("code", "number", "exit_code", "gpr"),
    [
        (b"\x0f\x21\xf1", svm.INTERCEPT_READ_DR + 6, ExitCode.READ_DR6, 1),
        (b"\x0f\x23\xfa", svm.INTERCEPT_WRITE_DR + 7, ExitCode.WRITE_DR7, 2),
    ],
)
def test_debug_registers_by_number(
    engine: str, code: bytes, number: int, exit_code: int, gpr: int
) -> None:
    machine = Machine(code + HLT, engine=engine)
    assert machine.enter().code == ExitCode.HLT
    machine = Machine(code + HLT, engine=engine)
    machine.intercept(number)
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (exit_code, gpr)


# -- exceptions, interrupts, shutdown --------------------------------------------------------------


def test_a_page_fault_exit_has_code_and_address_and_leaves_cr2(engine: str) -> None:
    machine = Machine(b"\x8b\x07", cpl=3, engine=engine)  # mov eax, [rdi]
    machine.intercept(svm.INTERCEPT_EXCEPTION + 14)
    machine.state.rdi = 0x40000000
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2) == (ExitCode.EXCP_BASE + 14, 4, 0x40000000)
    assert machine.read("cr2") == 0


def test_int3_exits_at_the_instruction_with_the_next_rip(engine: str) -> None:
    machine = Machine(b"\xcc", engine=engine)
    machine.intercept(svm.INTERCEPT_EXCEPTION + 3)
    exit = machine.enter()
    assert (exit.code, exit.next_rip) == (ExitCode.EXCP_BASE + 3, CODE + 1)
    assert machine.read("rip") == CODE


def test_an_exit_during_delivery_tells_the_event(engine: str) -> None:
    machine = Machine(b"\x0f\x0b", engine=engine)
    machine.intercept(svm.INTERCEPT_EXCEPTION + 11)  # #NP: the gate of #UD is not present
    machine.ram.load(IDT + 16 * 6, (0x0E << 40 | 8 << 16).to_bytes(8, "little"))
    exit = machine.enter()
    assert exit.code == ExitCode.EXCP_BASE + 11
    assert exit.info_1 == 6 << 3 | 2 | 1
    assert exit.int_info == svm.event(6, EventType.EXCEPTION)


def test_a_triple_fault_is_a_shutdown(engine: str) -> None:
    machine = Machine(b"\x0f\x0b", engine=engine)
    machine.write(idtr_limit=0)
    assert machine.enter().code == ExitCode.SHUTDOWN


@pytest.mark.parametrize("has_if", [False, True])
def test_a_kick_is_an_interrupt_of_the_hosts(engine: str, has_if: bool) -> None:
    machine = Machine(SPIN, engine=engine)
    machine.write(int_ctl=svm.INT_CTL_V_INTR_MASKING, rflags=0x202 if has_if else 2)
    machine.core.kick()
    assert machine.enter().code == ExitCode.INTR


def test_a_virtual_interrupt_is_taken_when_the_guest_allows_it(engine: str) -> None:
    machine = Machine(b"\x90\xfb\x90" + SPIN, engine=engine)  # nop; sti; nop
    at = machine.handle(0x41, HLT)
    machine.write(int_ctl=svm.INT_CTL_V_IRQ | 4 << 16, int_vector=0x41)
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("rip") == at
    assert machine.quad(machine.read("rsp")) == CODE + 3  # after the shadow of STI
    assert not machine.read("int_ctl") & svm.INT_CTL_V_IRQ


def test_a_virtual_interrupt_waits_below_the_task_priority(engine: str) -> None:
    machine = Machine(b"\x90" + HLT, engine=engine)
    machine.write(int_ctl=svm.INT_CTL_V_IRQ | 4 << 16 | 4, int_vector=0x41, rflags=0x202)
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("int_ctl") & svm.INT_CTL_V_IRQ


def test_the_virtual_interrupt_intercept_is_a_window(engine: str) -> None:
    machine = Machine(b"\x90\xfb\x90" + SPIN, engine=engine)
    machine.intercept(Intercept.VINTR)
    machine.write(int_ctl=svm.INT_CTL_V_IRQ | 0xF << 16)
    assert machine.enter().code == ExitCode.VINTR
    assert machine.read("rip") == CODE + 3


def test_a_virtual_nmi_waits_while_nmis_are_blocked(engine: str) -> None:
    enabled = svm.INT_CTL_V_NMI_ENABLE | svm.INT_CTL_V_NMI
    machine = Machine(b"\x90" + HLT, engine=engine)
    machine.handle(2, HLT)
    machine.intercept(Intercept.NMI)  # a condition of VMRUN's
    machine.write(int_ctl=enabled | svm.INT_CTL_V_NMI_BLOCKING)
    machine.enter()
    assert machine.read("rip") == CODE + 1
    machine.write(rip=CODE, int_ctl=enabled)
    machine.enter()
    assert machine.quad(machine.read("rsp")) == CODE
    flags = machine.read("int_ctl")
    assert flags & svm.INT_CTL_V_NMI_BLOCKING
    assert not flags & svm.INT_CTL_V_NMI


@pytest.mark.parametrize(
    ("event", "saved"),
    [
        (svm.event(0x80, EventType.SOFTWARE_INTERRUPT), CODE + 2),
        (svm.event(3, EventType.EXCEPTION), CODE + 2),
        (svm.event(13, EventType.EXCEPTION, 0x18), 0x18),
        (svm.event(0x30, EventType.INTERRUPT), CODE),
    ],
)
def test_injected_events_push_what_their_kind_pushes(engine: str, event: int, saved: int) -> None:
    machine = Machine(SPIN, engine=engine)
    at = machine.handle(event & 0xFF, HLT)
    machine.vmcb.event_inj = event
    machine.write(next_rip=CODE + 2)
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("rip") == at
    assert machine.quad(machine.read("rsp")) == saved
