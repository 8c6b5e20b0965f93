"""Each check on the guest state but its segments, violated alone: exit 33 with its qualification.

SDM 3C, "Checking and Loading Guest State".  Beside each bad value stands a good one that differs
from it as little as can be.
"""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, ENTRY, PIN, Machine
from tests.processor.vmx.modes import CR0, MODES, PML4, Fields, fields
from trapline.arch import registers, vmx
from trapline.arch.vmx import Activity, EntryFailure, ExitReason

INVALID_STATE = ExitReason.INVALID_GUEST_STATE | 1 << 31
TOP = 1 << 52
LONG = registers.EFER_LMA | registers.EFER_LME
CR4 = registers.CR4_PAE | registers.CR4_VMXE
TF, IF, VM = registers.RFLAGS_TF, registers.RFLAGS_IF, registers.RFLAGS_VM
STI, MOV_SS, SMI, NMI, ENCLAVE = 1, 2, 4, 8, 16
BS, RTM, ENABLED = 1 << 14, 1 << 16, 1 << 12
LEGACY = ENTRY & ~vmx.ENTRY_IA32E_GUEST
RTM_CPU = "max,+rtm"

Row = tuple[str, str, Fields, Fields, int]
"""Name, mode (or mode and model), what is wrong, what is right, exit qualification."""


def row(name: str, bad: Fields, good: Fields, mode: str = "long_mode", why: int = 0) -> Row:
    return name, mode, bad, good, why


def event(kind: int, vector: int, **more: int) -> Fields:
    return {"vm_entry_intr_info_field": 1 << 31 | kind << 8 | vector, **more}


def blocked(bits: int, **more: int) -> Fields:
    return {"guest_interruptibility_info": bits, **more}


def pending(bits: int, **more: int) -> Fields:
    return {"guest_pending_dbg_exceptions": bits, **more}


def canonical(name: str) -> list[Row]:
    """On a processor with 57 bits of linear addresses."""
    return [
        row(f"{name} from below", {name: 1 << 56}, {name: (1 << 56) - 1}),
        row(f"{name} from above", {name: (0xFF << 56) - 1}, {name: 0xFF << 56}),
    ]


CONTROL_REGISTERS = [
    *(
        row(f"CR0 without {bit:#x}", {"guest_cr0": CR0 & ~bit}, {"guest_cr0": CR0})
        for bit in (registers.CR0_PE, registers.CR0_NE, registers.CR0_PG)
    ),
    row("CR0 above 32 bits", {"guest_cr0": CR0 | 1 << 32}, {"guest_cr0": CR0 | 1 << 31}),
    row(
        "CR0.NE though unrestricted",
        {"guest_cr0": registers.CR0_ET},
        {"guest_cr0": registers.CR0_ET | registers.CR0_NE},
        "real_mode",
    ),
    row(
        "CR0.PG without PE",
        {"guest_cr0": registers.CR0_NE | registers.CR0_PG},
        {"guest_cr0": registers.CR0_NE},
        "real_mode",
    ),
    row(
        "CR0.NW and CD are not looked at",
        {"guest_cr0": (CR0 | registers.CR0_NW) & ~registers.CR0_NE},
        {"guest_cr0": CR0 | registers.CR0_NW},
    ),
    row("CR4.VMXE", {"guest_cr4": registers.CR4_PAE}, {"guest_cr4": CR4}),
    row("CR4 reserved", {"guest_cr4": CR4 | 1 << 15}, {"guest_cr4": CR4 | 1 << 16}),
    row("CR4 above 32 bits", {"guest_cr4": CR4 | 1 << 32}, {"guest_cr4": CR4}),
    row(
        "IA-32e without PAE",
        {"guest_cr4": registers.CR4_VMXE},
        {"guest_cr4": CR4},
    ),
    row(
        "IA-32e without PG",
        {"guest_cr0": CR0 & ~registers.CR0_PG, "guest_ia32_efer": LONG},
        {"guest_cr0": CR0, "guest_ia32_efer": LONG},
        "with_ept",
    ),
    row(
        "PCIDE outside IA-32e",
        {"guest_cr4": registers.CR4_VMXE | registers.CR4_PSE | registers.CR4_PCIDE},
        {"guest_cr4": registers.CR4_VMXE | registers.CR4_PSE},
        "protected_mode",
    ),
    row("PCIDE in IA-32e", {"guest_cr4": CR4 | 1 << 19}, {"guest_cr4": CR4 | 1 << 17}),
    row("CR3", {"guest_cr3": TOP | PML4}, {"guest_cr3": PML4}),
]
DEBUG_AND_MSRS = [
    *(
        row(
            f"DEBUGCTL bit {bit}",
            {"guest_ia32_debugctl": 1 << bit},
            {"guest_ia32_debugctl": 1 << 2},
        )
        for bit in (3, 5, 6, 11, 12, 15, 16, 32, 63)
    ),
    row("DR7 above 32 bits", {"guest_dr7": 1 << 32}, {"guest_dr7": 1 << 31}),
    *canonical("guest_sysenter_esp"),
    *canonical("guest_sysenter_eip"),
    *(
        row(f"PAT {kind:#x}", {"guest_ia32_pat": kind << 16}, {"guest_ia32_pat": 7 << 16})
        for kind in (2, 3, 8, 0x80)
    ),
    row("EFER reserved", {"guest_ia32_efer": LONG | 2}, {"guest_ia32_efer": LONG | 1}),
    row("EFER.SVME", {"guest_ia32_efer": LONG | 1 << 12}, {"guest_ia32_efer": LONG | 1 << 11}),
    row("EFER.LMA by control", {"guest_ia32_efer": 0}, {"guest_ia32_efer": LONG}),
    row(
        "EFER.LME with PG",
        {"guest_ia32_efer": registers.EFER_LMA},
        {"guest_ia32_efer": LONG},
    ),
    row(
        "EFER.LME is free without PG",
        {"guest_ia32_efer": LONG},
        {"guest_ia32_efer": registers.EFER_LME},
        "real_mode",
    ),
    row(
        "EFER.LMA without IA-32e",
        {"guest_ia32_efer": LONG},
        {"guest_ia32_efer": 0},
        "protected_mode",
    ),
]
RIP_AND_FLAGS = [
    row("RIP of 64-bit code", {"guest_rip": 1 << 57}, {"guest_rip": 1 << 56}),
    row("RIP from above", {"guest_rip": (0x7F << 57) - 1}, {"guest_rip": 0x7F << 57}),
    row("RIP of 32-bit code", {"guest_rip": 1 << 32}, {"guest_rip": CODE}, "protected_mode"),
    row(
        "RIP of compatibility mode",
        {"guest_rip": 1 << 32, "guest_cs_ar_bytes": 0xC09B},
        {"guest_rip": CODE, "guest_cs_ar_bytes": 0xC09B},
    ),
    row("RFLAGS bit 1", {"guest_rflags": 0}, {"guest_rflags": 2}),
    *(
        row(f"RFLAGS bit {bit}", {"guest_rflags": 2 | 1 << bit}, {"guest_rflags": 2 | 1 << 21})
        for bit in (3, 5, 15, 22, 31, 32, 63)
    ),
    row("VM in IA-32e mode", {"guest_rflags": 2 | VM}, {"guest_rflags": 2}),
    row("VM in real mode", {"guest_rflags": 2 | VM}, {"guest_rflags": 2}, "real_mode"),
    row("IF of an injected interrupt", event(0, 0x20), event(0, 0x20, guest_rflags=2 | IF)),
]
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
REGION, REVISION = 0x71000, 0x54524150
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
        ("control", CONTROL_REGISTERS),
        ("debug and MSRs", DEBUG_AND_MSRS),
        ("RIP and RFLAGS", RIP_AND_FLAGS),
        ("activity", ACTIVITY),
        ("interruptibility", INTERRUPTIBILITY),
        ("pending", PENDING),
        ("link pointer", LINK),
        ("PDPTEs", PDPTES),
    )
    for one in rows
}


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


@pytest.mark.parametrize("name", ROWS)
def test_bad_guest_state_is_exit_33_and_its_neighbour_is_not(name: str) -> None:
    _, mode, bad, good, qualification = ROWS[name]
    refuse(machine_of(mode), bad, qualification)
    accept(machine_of(mode), good)


@pytest.mark.parametrize("mode", MODES)
def test_what_the_tables_start_from_is_accepted(mode: str) -> None:
    machine = MODES[mode]()
    machine.core.kick()
    assert machine.enter().reason == ExitReason.EXTERNAL_INTERRUPT
    assert machine.vmcs.complaint == ""


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


def test_controls_that_load_nothing_ask_for_nothing() -> None:
    for control, changes in (
        (vmx.ENTRY_LOAD_DEBUG_CONTROLS, {"guest_dr7": 1 << 40, "guest_ia32_debugctl": 1 << 20}),
        (vmx.ENTRY_LOAD_PAT, {"guest_ia32_pat": 2}),
        (vmx.ENTRY_LOAD_EFER, {"guest_ia32_efer": 2}),
    ):
        refuse(Machine(), changes, 0)
        accept(Machine(), {"vm_entry_controls": ENTRY & ~control, **changes})


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


def test_what_the_guest_did_to_its_flags_is_what_a_later_entry_checks() -> None:
    """A guest that left virtual-8086 mode is not held to what it was entered with."""
    machine = MODES["virtual_8086"]()
    assert machine.enter().reason >> 31 == 0
    state = machine.state
    state.rflags = 2  # as an interrupt through a gate leaves it
    machine.write(guest_cs_ar_bytes=0xC09B, guest_cs_base=0, guest_cs_limit=0xFFFFFFFF)
    machine.write(guest_cs_selector=8, guest_ss_selector=0x10, guest_ss_ar_bytes=0xC093)
    machine.write(guest_ss_base=0, guest_ss_limit=0xFFFFFFFF)
    for name in ("es", "ds", "fs", "gs"):
        machine.write(**{f"guest_{name}_ar_bytes": 1 << 16})
    machine.write(guest_rip=CODE)
    assert machine.enter().reason == ExitReason.HLT
