"""VMRUN's consistency checks, each violated alone: VMEXIT_INVALID, and nothing has run."""

from __future__ import annotations

import pytest

from tests.processor.svm.machine import CODE, Machine
from trapline.arch import registers, svm
from trapline.arch.svm import EventType, ExitCode, Intercept

EFER = registers.EFER_LMA | registers.EFER_LME | registers.EFER_SCE
CR0 = registers.CR0_PE | registers.CR0_NE | registers.CR0_PG | registers.CR0_ET
BAD = {
    "dr6": 1 << 32,
    "dr7": 1 << 40 | 0x400,
    "asid": 0,
    "cr0": CR0 | registers.CR0_NW,
    "cr3": 1 << 52,
    "cr4": registers.CR4_PAE | registers.CR4_VMXE,
    "efer": EFER,  # SVME is clear
    "cs_attributes": 0xE9B,  # L and D
}


def refused(machine: Machine) -> bool:
    exit = machine.enter()
    assert machine.read("rip") == CODE
    return exit.code == svm.EXIT_INVALID


def test_what_the_tests_start_from_is_accepted(engine: str) -> None:
    assert Machine(engine=engine).enter().code == ExitCode.HLT


@pytest.mark.parametrize("field", BAD)
def test_a_bad_field_is_refused(field: str) -> None:
    machine = Machine()
    machine.write(**{field: BAD[field]})
    assert refused(machine)
    assert machine.vmcb.complaint


@pytest.mark.parametrize(
    ("cr0", "cr4"),
    [
        (CR0 | 1 << 32, registers.CR4_PAE),
        (CR0, 0),
        (CR0 & ~registers.CR0_PE, registers.CR4_PAE),
    ],
)
def test_control_registers_that_do_not_go_together(cr0: int, cr4: int) -> None:
    machine = Machine()
    machine.write(cr0=cr0, cr4=cr4)
    assert refused(machine)


def test_efer_has_only_the_defined_bits() -> None:
    machine = Machine()
    machine.write(efer=EFER | registers.EFER_SVME | 1 << 40)
    assert refused(machine)


def test_vmrun_must_be_intercepted() -> None:
    machine = Machine()
    machine.vmcb.intercept(Intercept.VMRUN, False)
    assert refused(machine)


@pytest.mark.parametrize(
    ("field", "number"), [("iopm_base_pa", Intercept.IOIO), ("msrpm_base_pa", Intercept.MSR)]
)
def test_a_map_lies_in_physical_memory(field: str, number: int) -> None:
    machine = Machine()
    machine.write(**{field: 1 << 52})
    assert machine.enter().code == ExitCode.HLT  # not looked at
    machine = Machine()
    machine.write(**{field: 1 << 52})
    machine.intercept(number)
    assert refused(machine)


@pytest.mark.parametrize(("field", "word"), [("nested_cr3", 1 << 52), ("g_pat", 2)])
def test_nested_paging_has_checks_of_its_own(field: str, word: int) -> None:
    machine = Machine()
    machine.write(**{"nested_ctl": svm.NESTED_CTL_NP, field: word})
    assert refused(machine)


@pytest.mark.parametrize(
    "event",
    [
        svm.EVENT_VALID | 1 << 8 | 3,  # reserved types
        svm.EVENT_VALID | 5 << 8 | 3,
        svm.EVENT_VALID | EventType.EXCEPTION << 8 | 2,
        svm.EVENT_VALID | EventType.EXCEPTION << 8 | 32,
    ],
)
def test_an_event_that_cannot_be(event: int) -> None:
    machine = Machine()
    machine.vmcb.event_inj = event
    assert refused(machine)
    machine.vmcb.event_inj = event & ~svm.EVENT_VALID
    assert machine.enter().code == ExitCode.HLT


def test_after_a_refusal_a_good_vmcb_runs() -> None:
    machine = Machine()
    machine.write(asid=0)
    assert refused(machine)
    machine.write(asid=1)
    assert machine.enter().code == ExitCode.HLT
