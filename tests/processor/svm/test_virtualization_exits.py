"""SVM instructions, hints, task switches: what EXITINFO, EXITINTINFO and nRIP tell of them."""

from __future__ import annotations

import struct

import pytest

from tests.processor.svm.machine import CODE, DATA, GDT, HLT, IDT, TSS, Machine
from trapline.arch import registers, svm
from trapline.arch.svm import EventType, ExitCode, Intercept

UD, GP, TS = 0x46, 0x4D, 0x4A
INSTRUCTIONS = {
    "VMRUN": "0f01d8",
    "VMMCALL": "0f01d9",
    "VMLOAD": "0f01da",
    "VMSAVE": "0f01db",
    "STGI": "0f01dc",
    "CLGI": "0f01dd",
    "SKINIT": "0f01de",
    "INVLPGA": "0f01df",
    "MONITOR": "0f01c8",
    "MWAIT": "0f01c9",
    "PAUSE": "f390",
    "WBINVD": "0f09",
    "INVD": "0f08",
    "RDPMC": "0f33",
    "XSETBV": "0f01d1",
    "RDTSCP": "0f01f9",
}
AT_ANY_CPL = ("VMMCALL", "PAUSE", "RDTSCP")


def machine_of(code: str, cpl: int = 0, engine: str = "interp", cpu: str = "zen5") -> Machine:
    machine = Machine(bytes.fromhex(code) + HLT, cpl, engine, cpu)
    machine.write(intercept_2=1 << 6 | 1 << 13, cr4=registers.CR4_PAE | registers.CR4_OSXSAVE)
    machine.write(rax=DATA)
    machine.state.rcx = 0
    return machine


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_an_intercepted_instruction_tells_where_it_ends(engine: str, name: str) -> None:
    code = INSTRUCTIONS[name]
    machine = machine_of(code, engine=engine)
    machine.intercept(Intercept[name])
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2, exit.int_info) == (ExitCode[name], 0, 0, 0)
    assert exit.next_rip == CODE + len(code) // 2
    assert machine.read("rip") == CODE


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_privilege_comes_before_the_intercept(engine: str, name: str) -> None:
    machine = machine_of(INSTRUCTIONS[name], 3, engine)
    machine.intercept(Intercept[name])
    exit = machine.enter()
    if name in AT_ANY_CPL:
        assert exit.code == ExitCode[name]
    else:
        assert exit.code == (UD if name in ("MONITOR", "MWAIT") else GP)


@pytest.mark.parametrize("name", ["VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT"])
def test_what_is_not_intercepted_is_undefined(engine: str, name: str) -> None:
    """VMMCALL by the manual; the others would work on the host's state."""
    assert machine_of(INSTRUCTIONS[name], engine=engine).enter().code == UD


@pytest.mark.parametrize("name", ["MONITOR", "MWAIT", "PAUSE", "WBINVD", "INVD"])
def test_hints_that_are_not_intercepted_pass(engine: str, name: str) -> None:
    assert machine_of(INSTRUCTIONS[name], engine=engine).enter().code == ExitCode.HLT


@pytest.mark.parametrize("code", ["0f01c1", "0f01c2", "0fc737", "0f7807", "660f388007", "0f37"])
def test_vmx_instructions_are_undefined(engine: str, code: str) -> None:
    assert machine_of(code, engine=engine).enter().code == UD


@pytest.mark.parametrize("cr0", [registers.CR0_ET, registers.CR0_ET | registers.CR0_CD])
def test_in_real_mode_they_are_undefined_but_for_vmmcall(cr0: int) -> None:
    for name in ("VMRUN", "CLGI", "INVLPGA", "VMMCALL"):
        machine = machine_of(INSTRUCTIONS[name])
        for register in ("cs", "ss", "ds", "es"):
            machine.segment(register, 0, 0, 0xFFFF, 0x9B if register == "cs" else 0x93)
        machine.ram.load(0x800, bytes.fromhex(INSTRUCTIONS[name]))
        machine.write(cr0=cr0, efer=registers.EFER_SVME, cr4=0, rip=0x800)
        machine.intercept(Intercept[name])
        exit = machine.enter()
        assert exit.code == (ExitCode.VMMCALL if name == "VMMCALL" else UD)


def test_invpcid_is_asked_about() -> None:
    machine = machine_of("660f38820f", cpu="zen5,+invpcid")
    machine.intercept(Intercept.INVPCID)
    exit = machine.enter()
    assert (exit.code, exit.next_rip) == (ExitCode.INVPCID, CODE + 5)


# -- task switches ---------------------------------------------------------------------------------

TASK_GDT, GATE = 0x38, 0x85
IRET, JUMP, ERROR_CODE, RF = 1 << 36, 1 << 38, 1 << 44, 1 << 48


def legacy(code: str) -> Machine:
    """32-bit code without paging; another task's TSS at selector 0x38."""
    machine = machine_of(code)
    machine.write(
        efer=registers.EFER_SVME,
        cr0=registers.CR0_PE | registers.CR0_NE | registers.CR0_ET,
        cr4=0,
        cs_attributes=0xC9B,
        intercept_2=0,
    )
    descriptor = 0x67 | (0x7000 & 0xFFFF) << 16 | 0x89 << 40
    machine.ram.load(GDT + TASK_GDT, struct.pack("<Q", descriptor))
    machine.intercept(Intercept.TASK_SWITCH)
    return machine


@pytest.mark.parametrize(("code", "flags"), [("9a000000003800", 0), ("ea000000003800", JUMP)])
def test_a_task_switch_tells_selector_and_reason(code: str, flags: int) -> None:
    """APM 2, "Task Switch Intercept"."""
    exit = legacy(code).enter()
    assert (exit.code, exit.info_1, exit.info_2) == (ExitCode.TASK_SWITCH, TASK_GDT, flags)
    assert exit.int_info == 0


def test_a_return_to_a_task_says_so() -> None:
    machine = legacy("cf")
    machine.write(rflags=0x4002)
    machine.ram.load(TSS, struct.pack("<H", TASK_GDT))
    busy = 0x67 | (0x7000 & 0xFFFF) << 16 | 0x8B << 40
    machine.ram.load(GDT + TASK_GDT, struct.pack("<Q", busy))
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2) == (ExitCode.TASK_SWITCH, TASK_GDT, IRET)


@pytest.mark.parametrize("has_code", [True, False])
def test_an_event_through_a_task_gate_brings_its_error_code(has_code: bool) -> None:
    machine = legacy("f4")
    vector = 13 if has_code else 6
    machine.ram.load(IDT + 8 * vector, struct.pack("<HHHH", 0, TASK_GDT, GATE << 8, 0))
    event = svm.event(vector, EventType.EXCEPTION, 0x58 if has_code else None)
    machine.vmcb.event_inj = event
    machine.write(rflags=2 | registers.RFLAGS_RF)
    exit = machine.enter()
    assert (exit.code, exit.info_1) == (ExitCode.TASK_SWITCH, TASK_GDT)
    assert exit.info_2 == RF | (ERROR_CODE | 0x58 if has_code else 0)
    assert exit.int_info == event
    assert machine.read("event_inj") >> 31 == 0


# -- events under way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (svm.event(0x40, EventType.INTERRUPT), 0x80000040),
        (svm.event(2, EventType.NMI), 0x80000202),
        (svm.event(6, EventType.EXCEPTION), 0x80000306),
        (svm.event(13, EventType.EXCEPTION, 8), 8 << 32 | 0x80000B0D),
        (svm.event(0x80, EventType.SOFTWARE_INTERRUPT), 0x80000480),
        (svm.event(3, EventType.EXCEPTION), 0x80000303),
    ],
)
def test_what_was_being_injected_is_told_by_an_exit_on_the_way(event: int, told: int) -> None:
    """The IDT is where no memory is mapped: #PF is intercepted in the middle."""
    machine = machine_of("90")
    machine.write(intercept_2=1 << 14, idtr_base=0x800000)
    machine.vmcb.event_inj = event
    machine.vmcb.exit.next_rip = CODE + 1
    exit = machine.enter()
    assert exit.code == 0x4E
    assert exit.info_2 == 0x800000 + 16 * (event & 0xFF)
    assert exit.int_info == told
