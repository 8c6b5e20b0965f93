"""VMRUN's consistency checks, each violated alone: VMEXIT_INVALID, and nothing has run.

APM 2, "Canonicalization and Consistency Checks".  Beside each bad value stands a good one that
differs from it as little as can be.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processor.svm.machine import CODE, DIRECTORY, PML4, Machine
from trapline.arch import registers, svm
from trapline.arch.svm import EventType, ExitCode, Intercept
from trapline.processor.svm.vmcb import FIELDS

LONG = registers.EFER_LMA | registers.EFER_LME
SVME = registers.EFER_SVME
CR0 = registers.CR0_PE | registers.CR0_NE | registers.CR0_PG | registers.CR0_ET
PAE, PG, PE = registers.CR4_PAE, registers.CR0_PG, registers.CR0_PE
CD, NW = registers.CR0_CD, registers.CR0_NW
TOP = 1 << 52
NP = {"nested_ctl": svm.NESTED_CTL_NP}
CS_L_D, CS_L, CS_D = 0xE9B, 0xA9B, 0xC9B
INTERCEPTED = 1 << Intercept.IOIO % 32 | 1 << Intercept.MSR % 32
EVENT = svm.EVENT_VALID

Fields = dict[str, int]


def mapped(field: str, number: int, word: int) -> Fields:
    """A permission map that is looked at."""
    return {field: word, f"intercept_{number // 32}+": 1 << number % 32}


ROWS: dict[str, tuple[Fields, Fields]] = {
    "EFER.SVME": ({"efer": LONG}, {"efer": LONG | SVME}),
    "CR0.NW without CD": ({"cr0": CR0 | NW}, {"cr0": CR0 | NW | CD}),
    "CR0 above 32 bits": ({"cr0": CR0 | 1 << 32}, {"cr0": CR0 | 1 << 31}),
    "CR3": ({"cr3": TOP | PML4}, {"cr3": PML4}),
    **{
        f"CR4 bit {bit}": ({"cr4": PAE | 1 << bit}, {"cr4": PAE | 1 << 9})
        for bit in (12, 13, 14, 15, 17, 19, 23, 32, 63)
    },
    "DR6": ({"dr6": 1 << 32}, {"dr6": 1 << 31}),
    "DR7": ({"dr7": 1 << 63}, {"dr7": 1 << 31}),
    **{
        f"EFER bit {bit}": ({"efer": LONG | SVME | 1 << bit}, {"efer": LONG | SVME | 1 << 11})
        for bit in (1, 7, 9, 13, 16, 32, 63)
    },
    "long mode without PAE": ({"cr4": 0}, {"cr4": PAE}),
    "long mode without PE": ({"cr0": CR0 & ~PE}, {"cr0": CR0}),
    "PAE is for LME with PG": (
        {"cr4": 0, "efer": LONG | SVME},
        {"cr4": 0, "efer": LONG | SVME, "cr0": CR0 & ~PG},
    ),
    "CS with L and D": ({"cs_attributes": CS_L_D}, {"cs_attributes": CS_L}),
    "CS with D alone": ({"cs_attributes": CS_L_D}, {"cs_attributes": CS_D}),
    "CS outside long mode": (
        {"cs_attributes": CS_L_D},
        {"cs_attributes": CS_L_D, "efer": SVME, "cr0": CR0 & ~PG},
    ),
    "VMRUN is intercepted": (
        {"intercept_4-": 1 << Intercept.VMRUN % 32},
        {"intercept_4-": 1 << Intercept.VMMCALL % 32},
    ),
    "ASID": ({"asid": 0}, {"asid": 2}),
    "the port map": (
        mapped("iopm_base_pa", Intercept.IOIO, TOP - 0x2000),
        mapped("iopm_base_pa", Intercept.IOIO, TOP - 0x3000),
    ),
    "the port map if intercepted": (
        mapped("iopm_base_pa", Intercept.IOIO, TOP),
        {"iopm_base_pa": TOP},
    ),
    "the MSR map": (
        mapped("msrpm_base_pa", Intercept.MSR, TOP - 0x1000),
        mapped("msrpm_base_pa", Intercept.MSR, TOP - 0x2000),
    ),
    "the MSR map if intercepted": (
        mapped("msrpm_base_pa", Intercept.MSR, TOP),
        {"msrpm_base_pa": TOP},
    ),
    "nCR3": ({**NP, "nested_cr3": TOP}, {"nested_cr3": TOP}),
    "nCR3 in range": ({**NP, "nested_cr3": TOP}, {**NP, "nested_cr3": PML4}),
    **{
        f"G_PAT {kind:#x}": ({**NP, "g_pat": kind << 8}, {"g_pat": kind << 8})
        for kind in (2, 3, 8, 0x80)
    },
    "virtual NMIs": (
        {"int_ctl": svm.INT_CTL_V_NMI_ENABLE},
        {"int_ctl": svm.INT_CTL_V_NMI_ENABLE, "intercept_3+": 1 << Intercept.NMI % 32},
    ),
    **{
        f"event type {kind}": ({"event_inj": EVENT | kind << 8 | 3}, {"event_inj": kind << 8 | 3})
        for kind in (1, 5, 6, 7)
    },
    "an exception is no NMI": (
        {"event_inj": EVENT | EventType.EXCEPTION << 8 | 2},
        {"event_inj": EVENT | EventType.NMI << 8 | 2},
    ),
    "exceptions end at 31": (
        {"event_inj": EVENT | EventType.EXCEPTION << 8 | 32},
        {"event_inj": EVENT | EventType.INTERRUPT << 8 | 32},
    ),
}


def change(machine: Machine, changes: Fields) -> None:
    """Write fields; a + or - behind a name sets or clears bits."""
    for name, word in changes.items():
        if name[-1] in "+-":
            name, sign = name[:-1], name[-1]
            old = machine.read(name)
            word = old | word if sign == "+" else old & ~word
        machine.write(**{name: word})


def fields(machine: Machine) -> Fields:
    """All of the VMCB but what #VMEXIT tells."""
    told = ("exit_", "next_rip")
    found = {name: machine.read(name) for name in FIELDS if not name.startswith(told)}
    # No check is for these bits, and no register holds them.
    found["rflags"] = found["rflags"] & registers.RFLAGS_DEFINED | registers.RFLAGS_FIXED_1
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_field_is_refused_and_its_neighbour_is_not(name: str) -> None:
    bad, good = ROWS[name]
    machine = Machine()
    change(machine, bad)
    before = fields(machine)
    for _ in range(2):  # nor does it pass by being tried again
        exit = machine.enter()
        assert (exit.code, exit.info_1, exit.info_2, exit.int_info) == (svm.EXIT_INVALID, 0, 0, 0)
        assert machine.vmcb.complaint
        assert fields(machine) == before
    assert machine.read("exit_code") == 0xFFFFFFFF
    assert machine.read("exit_code_hi") == 0xFFFFFFFF
    machine = Machine()
    change(machine, good)
    machine.core.kick()
    change(machine, {"int_ctl+": svm.INT_CTL_V_INTR_MASKING})
    assert machine.enter().code != svm.EXIT_INVALID, machine.vmcb.complaint


def test_what_the_tests_start_from_is_accepted(engine: str) -> None:
    assert Machine(engine=engine).enter().code == ExitCode.HLT


@pytest.mark.parametrize("cr3", [TOP | PML4, PML4])
def test_outside_long_mode_cr3_has_32_bits(cr3: int) -> None:
    machine = legacy_pae()
    machine.write(cr3=cr3)
    assert machine.enter().code == ExitCode.HLT


def legacy_pae() -> Machine:
    """32-bit code under PAE paging, the PDPTEs in the PML4's place."""
    machine = Machine()
    machine.ram.load(PML4, (DIRECTORY | 1).to_bytes(8, "little"))
    machine.write(efer=SVME, cs_attributes=CS_D)
    return machine


def test_malformed_pdptes_are_refused() -> None:
    machine = legacy_pae()
    machine.ram.load(PML4 + 8, (1 | 1 << 5).to_bytes(8, "little"))
    before = fields(machine)
    assert machine.enter().code == svm.EXIT_INVALID
    assert fields(machine) == before
    machine.ram.load(PML4 + 8, (1 << 5).to_bytes(8, "little"))
    assert machine.enter().code == ExitCode.HLT


def test_efer_bits_are_those_of_the_model() -> None:
    for cpu, accepted in (("zen5", True), ("zen5,-nx", False)):
        machine = Machine(cpu=cpu)
        machine.write(efer=LONG | SVME | registers.EFER_NXE)
        assert (machine.enter().code == ExitCode.HLT) is accepted


def test_reserved_bits_of_debugctl_are_ignored() -> None:
    """Not refused, as VMX would."""
    machine = Machine(b"\xb9\xd9\x01\x00\x00\x0f\x32\xf4")  # mov ecx, 0x1d9; rdmsr; hlt
    machine.write(virt_ext=svm.VIRT_EXT_LBR, dbgctl=1 << 40 | 1 << 9 | 4)
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("rax") == 4


@pytest.mark.parametrize("lma", [0, registers.EFER_LMA])
def test_long_mode_goes_by_lme_and_paging_whatever_lma_says(lma: int) -> None:
    machine = Machine(b"\x48\xb8" + b"\x11" * 8 + b"\xf4")  # mov rax, imm64; hlt
    machine.write(efer=registers.EFER_LME | SVME | lma)
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("rax") == 0x1111111111111111
    assert machine.read("efer") == LONG | SVME


def test_after_a_refusal_a_good_vmcb_runs() -> None:
    machine = Machine()
    machine.write(asid=0)
    assert machine.enter().code == svm.EXIT_INVALID
    assert machine.read("rip") == CODE
    machine.write(asid=1)
    assert machine.enter().code == ExitCode.HLT


# -- random words ----------------------------------------------------------------------------------

_WRITABLE = sorted(name for name in FIELDS if not name.startswith(("exit_", "reserved")))


@st.composite
def changes(draw: st.DrawFn) -> Fields:
    """A few fields: random words, single bits set, and the words next to limits."""
    found = {}
    for name in draw(st.lists(st.sampled_from(_WRITABLE), min_size=1, max_size=6, unique=True)):
        width = 8 * FIELDS[name].size
        word = draw(
            st.one_of(
                st.integers(0, (1 << width) - 1),
                st.integers(0, width - 1).map(lambda bit: 1 << bit),
                st.integers(0, min(width, 12)).map(lambda bit: (1 << bit) - 1),
            )
        )
        found[name + draw(st.sampled_from(["", "+", "-"]))] = word
    return found


@settings(max_examples=300)
@given(words=changes(), seed=st.integers(0, 1 << 32))
def test_random_fields_end_in_a_run_or_in_a_refusal(words: Fields, seed: int) -> None:
    """No host exception, no hang; and what was refused is as it was written."""
    machine = Machine(random.Random(seed).randbytes(64))
    change(machine, words)
    # Without these nobody could get the processor back.
    machine.intercept(Intercept.INTR, Intercept.SHUTDOWN)
    change(machine, {"int_ctl+": svm.INT_CTL_V_INTR_MASKING})
    before = fields(machine)
    machine.core.kick()
    exit = machine.enter()
    if exit.code == svm.EXIT_INVALID:
        assert machine.vmcb.complaint
        if machine.vmcb.complaint != "malformed PDPTEs":  # which are read with the rest loaded
            assert fields(machine) == before
        return
    assert exit.code in set(ExitCode) or 0x40 <= exit.code < 0x60
    for _ in range(3):  # what an exit left can be entered again
        machine.core.kick()
        assert machine.enter().code != svm.EXIT_INVALID
