"""One wrong field, one right: how the tables of VM-entry checks are written and tried."""

from __future__ import annotations

from tests.processor.vmx.machine import Machine
from tests.processor.vmx.modes import MODES, Fields, fields
from trapline.arch.vmx import ExitReason

INVALID_STATE = ExitReason.INVALID_GUEST_STATE | 1 << 31
REGION, REVISION = 0x71000, 0x54524150

Row = tuple[str, str, Fields, Fields, int]
"""Name, mode (or mode and model), what is wrong, what is right, exit qualification."""


def row(name: str, bad: Fields, good: Fields, mode: str = "long_mode", why: int = 0) -> Row:
    return name, mode, bad, good, why


def event(kind: int, vector: int, **more: int) -> Fields:
    return {"vm_entry_intr_info_field": 1 << 31 | kind << 8 | vector, **more}


def machine_of(mode: str) -> Machine:
    if mode in MODES:
        return MODES[mode]()
    if mode == "cpl_3":
        return Machine(cpl=3)
    if mode == "with_region":
        machine = Machine()
        machine.ram.load(REGION, REVISION.to_bytes(4, "little"))
        machine.ram.load(REGION + 0x1000, (REVISION | 1 << 31).to_bytes(4, "little"))
        return machine
    return Machine(cpu=mode)


def refuse(machine: Machine, changes: Fields, qualification: int) -> None:
    machine.vmcs.exit.interruption_info = 0x80000B0E  # of an exit before
    machine.write(vm_exit_instruction_len=3, **changes)
    before = fields(machine)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (INVALID_STATE, qualification)
    assert machine.vmcs.complaint
    assert fields(machine) == before  # the event to inject included
    assert machine.read("vm_exit_reason") == INVALID_STATE
    assert machine.read("exit_qualification") == qualification
    # SDM 3C, "VM-Entry Failures During or After Loading Guest State": nothing else is recorded.
    assert machine.read("vm_exit_intr_info") == 0x80000B0E
    assert machine.read("vm_exit_instruction_len") == 3
    assert machine.enter().reason == INVALID_STATE  # nor does it pass by being tried again


def accept(machine: Machine, changes: Fields) -> None:
    machine.write(**changes)
    machine.core.kick()
    exit = machine.enter()
    assert not exit.reason >> 31, machine.vmcs.complaint
