"""Each check on the guest state but its segments, violated alone: exit 33 with its qualification.

SDM 3C, "Checking and Loading Guest State".  Beside each bad value stands a good one that differs
from it as little as can be.
"""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, ENTRY, Machine
from tests.processor.vmx.modes import CR0, MODES, PML4
from tests.processor.vmx.violations import Row, accept, event, machine_of, refuse, row
from trapline.arch import registers, vmx
from trapline.arch.vmx import ExitReason

TOP = 1 << 52
LONG = registers.EFER_LMA | registers.EFER_LME
CR4 = registers.CR4_PAE | registers.CR4_VMXE
IF, VM = registers.RFLAGS_IF, registers.RFLAGS_VM


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
ROWS = {
    f"{group}: {one[0]}": one
    for group, rows in (
        ("control", CONTROL_REGISTERS),
        ("debug and MSRs", DEBUG_AND_MSRS),
        ("RIP and RFLAGS", RIP_AND_FLAGS),
    )
    for one in rows
}


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


def test_controls_that_load_nothing_ask_for_nothing() -> None:
    for control, changes in (
        (vmx.ENTRY_LOAD_DEBUG_CONTROLS, {"guest_dr7": 1 << 40, "guest_ia32_debugctl": 1 << 20}),
        (vmx.ENTRY_LOAD_PAT, {"guest_ia32_pat": 2}),
        (vmx.ENTRY_LOAD_EFER, {"guest_ia32_efer": 2}),
    ):
        refuse(Machine(), changes, 0)
        accept(Machine(), {"vm_entry_controls": ENTRY & ~control, **changes})


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
