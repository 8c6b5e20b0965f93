"""Each check on the guest's non-register state, violated alone: exit 33 with its qualification.

SDM 3C, "Checks on Guest Non-Register State" and "Checks on Guest Page-Directory-Pointer-Table
Entries".
"""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, PIN, Machine
from tests.processor.vmx.modes import MODES, PML4, Fields
from tests.processor.vmx.violations import (
    INVALID_STATE,
    REGION,
    accept,
    event,
    machine_of,
    refuse,
    row,
)
from trapline.arch import registers, vmx
from trapline.arch.vmx import Activity, EntryFailure, ExitReason

TOP = 1 << 52
TF, IF = registers.RFLAGS_TF, registers.RFLAGS_IF
STI, MOV_SS, SMI, NMI, ENCLAVE = 1, 2, 4, 8, 16
BS, RTM, ENABLED = 1 << 14, 1 << 16, 1 << 12
RTM_CPU = "max,+rtm"


def blocked(bits: int, **more: int) -> Fields:
    return {"guest_interruptibility_info": bits, **more}


def pending(bits: int, **more: int) -> Fields:
    return {"guest_pending_dbg_exceptions": bits, **more}


_ACTIVE_ONLY = (STI, MOV_SS)
ACTIVITY = [
    row("states end at 3", {"guest_activity_state": 4}, {"guest_activity_state": 3}),
    row("a large one", {"guest_activity_state": 1 << 31}, {"guest_activity_state": 2}),
    row(
        "HLT is for CPL 0",
        {"guest_activity_state": 1},
        {"guest_activity_state": 2},
        "cpl_3",
    ),
    *(
        row(
            f"state {state} with blocking {bits}",
            blocked(bits, guest_activity_state=state, guest_rflags=2 | IF),
            blocked(NMI, guest_activity_state=state, guest_rflags=2 | IF),
        )
        for state in (1, 2, 3)
        for bits in _ACTIVE_ONLY
    ),
    *(
        row(
            f"type {kind} vector {vector} in HLT",
            event(kind, vector, guest_activity_state=Activity.HLT),
            event(kind, vector),
        )
        for kind, vector in ((3, 6), (4, 0x80), (5, 1), (6, 3))
    ),
    row(
        "#DB in HLT",
        event(3, 6, guest_activity_state=Activity.HLT),
        event(3, 1, guest_activity_state=Activity.HLT),
    ),
    row(
        "#MC in HLT",
        event(3, 17, guest_activity_state=Activity.HLT, vm_entry_intr_info_field=0x80000B11),
        event(3, 18, guest_activity_state=Activity.HLT),
    ),
    row(
        "MTF in HLT, not in shutdown",
        event(7, 0, guest_activity_state=Activity.SHUTDOWN),
        event(7, 0, guest_activity_state=Activity.HLT),
    ),
    row(
        "an interrupt in shutdown",
        event(0, 0x20, guest_rflags=2 | IF, guest_activity_state=Activity.SHUTDOWN),
        event(0, 0x20, guest_rflags=2 | IF, guest_activity_state=Activity.HLT),
    ),
    row(
        "shutdown takes NMI and #MC",
        event(3, 1, guest_activity_state=Activity.SHUTDOWN),
        event(3, 18, guest_activity_state=Activity.SHUTDOWN),
    ),
    *(
        row(
            f"type {kind} while waiting for SIPI",
            event(kind, vector, guest_activity_state=Activity.WAIT_FOR_SIPI),
            event(2, 2, guest_activity_state=Activity.SHUTDOWN),
        )
        for kind, vector in ((2, 2), (3, 18), (7, 0))
    ),
]
INTERRUPTIBILITY = [
    *(row(f"bit {bit}", blocked(1 << bit), blocked(NMI)) for bit in (5, 6, 16, 31)),
    row("STI and MOV SS", blocked(3, guest_rflags=2 | IF), blocked(1, guest_rflags=2 | IF)),
    row("STI without IF", blocked(STI), blocked(MOV_SS)),
    row("SMI outside of SMM", blocked(SMI), blocked(0)),
    row("enclaves are not there", blocked(ENCLAVE), blocked(NMI)),
    *(
        row(
            f"an interrupt while {bits} blocks",
            event(0, 0x20, **blocked(bits, guest_rflags=2 | IF)),
            event(0, 0x20, **blocked(NMI, guest_rflags=2 | IF)),
        )
        for bits in (STI, MOV_SS)
    ),
    row("an NMI after MOV SS", event(2, 2, **blocked(MOV_SS)), event(4, 2, **blocked(MOV_SS))),
    row(
        "an NMI after STI",
        event(2, 2, **blocked(STI, guest_rflags=2 | IF)),
        event(3, 6, **blocked(STI, guest_rflags=2 | IF)),
        why=EntryFailure.NMI_INJECTION,
    ),
    row(
        "a virtual NMI while blocked",
        event(2, 2, **blocked(NMI)),
        event(2, 2, **blocked(NMI, pin_based_vm_exec_control=PIN & ~vmx.PIN_VIRTUAL_NMIS)),
    ),
]
PENDING = [
    *(
        row(f"bit {bit}", pending(1 << bit), pending(1 << bit - 1 if bit == 4 else 0))
        for bit in (4, 5, 10, 13, 15, 17, 32, 63)
    ),
    row("bit 11 without the feature", pending(1 << 11), pending(1 << 3), "icelake"),
    row("bit 11 with it", pending(1 << 11 | 1 << 10), pending(1 << 11)),
    *(
        row(
            f"BS with TF, blocking {bits}",
            blocked(bits, guest_rflags=2 | IF | TF),
            blocked(bits, guest_rflags=2 | IF | TF, **pending(BS)),
        )
        for bits in (STI, MOV_SS)
    ),
    *(
        row(
            f"no BS without TF, blocking {bits}",
            blocked(bits, guest_rflags=2 | IF, **pending(BS)),
            blocked(bits, guest_rflags=2 | IF),
        )
        for bits in (STI, MOV_SS)
    ),
    row(
        "no BS with BTF",
        blocked(MOV_SS, guest_rflags=2 | TF, guest_ia32_debugctl=2, **pending(BS)),
        blocked(MOV_SS, guest_rflags=2 | TF, guest_ia32_debugctl=2),
    ),
    row(
        "BS in HLT",
        {"guest_activity_state": 1, "guest_rflags": 2 | TF},
        {"guest_activity_state": 1, "guest_rflags": 2 | TF, **pending(BS)},
    ),
    row("BS is free otherwise", pending(BS | 1 << 13), pending(BS)),
    row("RTM without the feature", pending(RTM | ENABLED), pending(ENABLED)),
    row("RTM needs bit 12", pending(RTM), pending(RTM | ENABLED), RTM_CPU),
    *(
        row(f"RTM and {more:#x}", pending(RTM | ENABLED | more), pending(RTM | ENABLED), RTM_CPU)
        for more in (1, 8, 1 << 11, BS)
    ),
    row(
        "RTM while MOV SS blocks",
        blocked(MOV_SS, **pending(RTM | ENABLED)),
        blocked(0, **pending(RTM | ENABLED)),
        RTM_CPU,
    ),
]
LINK = [
    row(
        f"link {what}",
        {"vmcs_link_pointer": bad},
        {"vmcs_link_pointer": good},
        "with_region",
        EntryFailure.LINK_POINTER,
    )
    for what, bad, good in (
        ("aligned", REGION + 8, REGION),
        ("in range", TOP | REGION, REGION),
        ("revision", REGION + 0x1000, REGION),
        ("to nothing", 1 << 40, (1 << 64) - 1),
        ("low half only", 0xFFFFFFFF, (1 << 64) - 1),
    )
]
PDPTES = [
    *(
        row(
            f"PDPTE{i} bit {bit}",
            {f"guest_pdptr{i}": 1 | 1 << bit},
            {f"guest_pdptr{i}": 1 << bit},
            "pae_with_ept",
            EntryFailure.PDPTE,
        )
        for i, bit in ((0, 1), (1, 2), (2, 5), (3, 8), (0, 52), (3, 63))
    ),
    row(
        "PDPTEs are not looked at in long mode",
        {"guest_pdptr0": 3, "guest_cr3": TOP},
        {"guest_pdptr0": 3},
        "with_ept",
    ),
]
ROWS = {
    f"{group}: {one[0]}": one
    for group, rows in (
        ("activity", ACTIVITY),
        ("interruptibility", INTERRUPTIBILITY),
        ("pending", PENDING),
        ("link pointer", LINK),
        ("PDPTEs", PDPTES),
    )
    for one in rows
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_guest_state_is_exit_33_and_its_neighbour_is_not(name: str) -> None:
    _, mode, bad, good, qualification = ROWS[name]
    refuse(machine_of(mode), bad, qualification)
    accept(machine_of(mode), good)


def test_without_ept_the_pdptes_are_read_where_cr3_points() -> None:
    machine = MODES["pae"]()
    machine.write(guest_pdptr0=0x1E7)  # not looked at
    accept(machine, {})
    machine = MODES["pae"]()
    machine.ram.load(PML4 + 24, (1 | 1 << 5).to_bytes(8, "little"))
    refuse(machine, {}, EntryFailure.PDPTE)
    machine.ram.load(PML4 + 24, (1 << 5).to_bytes(8, "little"))
    accept(machine, {})


def test_a_pae_guest_runs_by_the_pdptes_that_the_entry_loaded() -> None:
    for mode in ("pae", "pae_with_ept"):
        machine = MODES[mode]()
        assert machine.enter().reason == ExitReason.HLT
        assert machine.read("guest_rip") == CODE


def test_flags_are_looked_at_again_while_something_blocks() -> None:
    """The checks of STI and BS ask for IF and TF, whenever these were written."""
    machine = Machine(b"\xfb\xf4")  # sti; hlt
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_HLT)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_interruptibility_info") == STI
    for rflags in (2, 2 | IF | TF):
        machine.write(guest_rflags=rflags)
        assert machine.enter().reason == INVALID_STATE
    machine.write(guest_rflags=2 | IF)
    assert machine.enter().reason == ExitReason.HLT
