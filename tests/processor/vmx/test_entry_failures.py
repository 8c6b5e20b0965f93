"""What a failed entry leaves behind, the MSR-load area's failures, and entries of random words.

SDM 3C, "Loading MSRs" and "VM-Entry Failures During or After Loading Guest State".
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processor.vmx.machine import CODE, ENTRY, EXIT, HLT, Machine
from tests.processor.vmx.modes import MODES, Fields, fields
from trapline.arch import vmx
from trapline.arch.vmcs import MASKS, Field, Type, type_of
from trapline.arch.vmx import ExitReason
from trapline.processor import VmExit, VmFail

MSR_FAILURE = ExitReason.MSR_LOAD_FAILURE | 1 << 31
INVALID_STATE = ExitReason.INVALID_GUEST_STATE | 1 << 31
LOAD, STORE, BACK = 0x70000, 0x74000, 0x78000
LSTAR, STAR, KERNEL_GS_BASE, FS_BASE, GS_BASE = (
    0xC0000082, 0xC0000081, 0xC0000102, 0xC0000100, 0xC0000101,
)  # fmt: skip
PAT, EFER, SYSENTER_EIP, MTRR_CAP = 0x277, 0xC0000080, 0x176, 0xFE
GOOD = (LSTAR, 0x1111)


def areas(rows: list[tuple[int, int]], count: int = 0) -> Machine:
    machine = Machine()
    for at, area in ((LOAD, rows), (STORE, [(STAR, 0)]), (BACK, [(STAR, 0x5555)])):
        for i, (index, word) in enumerate(area):
            machine.ram.load(at + 16 * i, struct.pack("<2Q", index, word))
    machine.write(
        vm_entry_msr_load_addr=LOAD, vm_entry_msr_load_count=count or len(rows),
        vm_exit_msr_store_addr=STORE, vm_exit_msr_store_count=1,
        vm_exit_msr_load_addr=BACK, vm_exit_msr_load_count=1,
    )  # fmt: skip
    return machine


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ((FS_BASE, 0), (KERNEL_GS_BASE, 0)),
        ((GS_BASE, 0), (KERNEL_GS_BASE, 0)),
        ((0x802, 0), (LSTAR, 0)),  # an x2APIC register
        ((0x8FF, 0), (LSTAR, 0)),
        ((LSTAR | 1 << 32, 0), (LSTAR, 0)),  # reserved bits of the entry
        ((LSTAR | 1 << 63, 0), (LSTAR, 0)),
        ((0x12345, 0), (STAR, 0)),  # there is no such register
        ((MTRR_CAP, 0), (STAR, 0)),  # read-only
        ((LSTAR, 1 << 60), (LSTAR, 1 << 55)),  # not canonical
        ((PAT, 2), (PAT, 4)),
        ((EFER, 0), (EFER, 0x500)),  # LME under paging
    ],
)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_msr_that_cannot_be_loaded_is_exit_34_with_its_number(
    row: tuple[int, int], right: tuple[int, int], before: int
) -> None:
    others = [(SYSENTER_EIP, 0x4321), (PAT, 0), GOOD][:before]
    machine = areas([*others, row, (STAR, 0x7777)])
    machine.write(vm_entry_intr_info_field=0x80000306)
    machine.vmcs.exit.vectoring_info = 0x80000B0E  # of an exit before
    held = fields(machine)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (MSR_FAILURE, before + 1)
    assert machine.vmcs.complaint
    assert fields(machine) == held  # though SYSENTER_EIP and PAT had been loaded
    assert machine.read("idt_vectoring_info_field") == 0x80000B0E
    assert machine.quad(STORE + 8) == 0  # nothing is stored
    assert machine.core.msrs.read(STAR) == 0x5555  # but the host's are loaded
    machine.ram.load(LOAD + 16 * before, struct.pack("<2Q", *right))
    machine.write(vm_entry_intr_info_field=0)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.quad(STORE + 8) == 0x7777


def test_an_area_longer_than_a_processor_takes_fails_at_its_limit() -> None:
    """VMX_MISC, bits 27:25: 512 entries are safe."""
    machine = areas([(LSTAR, 8 * i) for i in range(600)])
    assert machine.enter().qualification == 513
    machine.write(vm_entry_msr_load_count=512)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.core.msrs.read(LSTAR) == 8 * 511


def test_an_area_that_no_memory_holds_ends_at_once() -> None:
    machine = Machine()
    machine.write(
        vm_exit_msr_store_addr=1 << 40, vm_exit_msr_store_count=0xFFFFFFFF,
        vm_exit_msr_load_addr=1 << 40, vm_exit_msr_load_count=0xFFFFFFFF,
    )  # fmt: skip
    assert machine.enter().reason == ExitReason.HLT
    machine.write(vm_entry_msr_load_addr=1 << 40, vm_entry_msr_load_count=0xFFFFFFFF)
    assert (machine.enter().qualification, machine.vmcs.exit.reason) == (1, MSR_FAILURE)


def test_what_is_not_loaded_is_not_forgotten_when_the_msrs_fail() -> None:
    for exit_controls in (EXIT, EXIT & ~vmx.EXIT_SAVE_DEBUG_CONTROLS):
        machine = areas([GOOD])
        machine.clear_bits("vm_entry_controls", vmx.ENTRY_LOAD_DEBUG_CONTROLS)
        machine.write(vm_exit_controls=exit_controls, guest_dr7=0x403)
        assert machine.enter().reason == ExitReason.HLT
        machine.write(guest_rip=CODE)
        machine.ram.load(LOAD, struct.pack("<2Q", FS_BASE, 0))
        held = fields(machine)
        assert machine.enter().reason == MSR_FAILURE
        assert fields(machine) == held


def test_after_invalid_guest_state_the_hosts_msrs_are_loaded_too() -> None:
    machine = areas([GOOD])
    machine.write(guest_dr7=1 << 40)
    assert machine.enter().reason == INVALID_STATE
    assert machine.core.msrs.read(STAR) == 0x5555
    assert machine.core.msrs.read(LSTAR) == 0  # the entry did not come that far


def test_a_refused_entry_can_be_repaired() -> None:
    machine = Machine()
    machine.handle(6, HLT)
    machine.write(guest_dr7=1 << 33, vm_entry_intr_info_field=0x80000306)
    assert machine.enter().reason == INVALID_STATE
    machine.write(guest_dr7=0x400)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.quad(machine.state.rsp) == CODE  # the event was still to be injected


def test_a_pending_monitor_trap_is_injected_once() -> None:
    """SDM 3C, "Injection of Pending MTF VM Exits": whatever the control says."""
    machine = Machine(b"\x90\x90" + HLT)
    machine.write(
        vm_entry_intr_info_field=0x80000700, guest_rflags=0x202, guest_interruptibility_info=1
    )
    assert machine.enter().reason == ExitReason.MONITOR_TRAP_FLAG
    assert machine.read("guest_rip") == CODE
    assert machine.read("guest_interruptibility_info") == 1
    assert machine.enter().reason == ExitReason.HLT  # and no second one


def test_an_entry_that_injects_ends_all_blocking() -> None:
    """SDM 3C, "Interruptibility State": also where the delivery itself leaves the guest."""
    machine = Machine()
    machine.write(
        vm_entry_intr_info_field=0x80000306,
        guest_interruptibility_info=1,
        guest_rflags=0x202,
        guest_idtr_base=0x800000,
        exception_bitmap=1 << 14,
    )
    assert machine.enter().vectoring_info == 0x80000306
    assert machine.read("guest_interruptibility_info") == 0


def test_the_entry_control_follows_a_guest_that_changes_its_mode() -> None:
    """VMX_MISC, bit 5; with CR0.PG the guest's own, as "unrestricted guest" allows it."""
    leave = b"\x0f\x22\xc0" + HLT  # mov cr0, rax; hlt
    machine = MODES["with_ept"]()
    machine.ram.load(CODE, leave)
    machine.write(guest_cs_ar_bytes=0xC09B)  # compatibility mode
    machine.state.rax = machine.read("guest_cr0") & ~0x80000000
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("vm_entry_controls") == ENTRY & ~vmx.ENTRY_IA32E_GUEST
    assert machine.read("guest_ia32_efer") & 1 << 10 == 0
    machine.write(guest_rip=CODE, guest_cr3=0x1000)
    machine.state.rax |= 0x80000000
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("vm_entry_controls") == ENTRY


def test_fields_that_are_not_loaded_do_not_arm_breakpoints() -> None:
    """DR7 keeps the value of VMX root operation, in which no breakpoint is enabled."""
    for control, reason in ((0, ExitReason.HLT), (vmx.ENTRY_LOAD_DEBUG_CONTROLS, 0)):
        machine = Machine(b"\x8a\x07" + HLT)  # mov al, [rdi]; hlt
        machine.state.rdi = machine.state.dr0 = 0x50000
        machine.write(
            guest_dr7=0xD0402 | 3 << 16,
            exception_bitmap=2,
            vm_entry_controls=ENTRY & ~vmx.ENTRY_LOAD_DEBUG_CONTROLS | control,
        )
        assert machine.enter().reason == reason


def test_unloaded_dr7_keeps_even_the_bits_that_no_register_has() -> None:
    machine = Machine()
    machine.clear_bits("vm_entry_controls", vmx.ENTRY_LOAD_DEBUG_CONTROLS)
    machine.clear_bits("vm_exit_controls", vmx.EXIT_SAVE_DEBUG_CONTROLS)
    machine.write(guest_dr7=0xD000)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_dr7") == 0xD000


# -- random words ----------------------------------------------------------------------------------

_WRITABLE = [field for field in Field if type_of(field) in (Type.CONTROL, Type.HOST, Type.GUEST)]


@st.composite
def changes(draw: st.DrawFn) -> Fields:
    """A few fields: random words, single bits turned round, and the words next to limits."""
    chosen = draw(st.lists(st.sampled_from(_WRITABLE), min_size=1, max_size=6, unique=True))
    found = {}
    for field in chosen:
        width = MASKS[field].bit_length()
        word = draw(
            st.one_of(
                st.integers(0, MASKS[field]),
                st.integers(0, width - 1).map(lambda bit: 1 << bit),
                st.integers(0, min(width, 12)).map(lambda bit: (1 << bit) - 1),
            )
        )
        found[field.name.lower()] = (word, draw(st.booleans()))
    return {name: word | flip << 64 for name, (word, flip) in found.items()}


@settings(max_examples=300)
@given(mode=st.sampled_from(sorted(MODES)), words=changes(), seed=st.integers(0, 1 << 32))
def test_random_fields_end_in_a_run_or_in_a_defined_failure(
    mode: str, words: Fields, seed: int
) -> None:
    """No host exception, no hang; and what was refused is as it was written."""
    machine = MODES[mode]()
    machine.ram.load(CODE, random.Random(seed).randbytes(64))
    for name, word in words.items():
        old = machine.read(name) if word >> 64 else 0
        machine.write(**{name: (word ^ old) & MASKS[Field[name.upper()]]})
    # Without it nobody could get the processor back; and in this RAM are all maps.
    machine.set_bits("pin_based_vm_exec_control", vmx.PIN_EXTERNAL_INTERRUPT)
    before = fields(machine)
    machine.core.kick()
    try:
        exit = machine.enter()
    except VmFail as failure:
        assert failure.error in (7, 8)
        assert machine.read("vm_instruction_error") == failure.error
        assert fields(machine) == before
        return
    assert isinstance(exit, VmExit)
    if exit.reason >> 31:
        assert exit.reason in (INVALID_STATE, MSR_FAILURE)
        assert exit.qualification in (0, 2, 3, 4) or exit.reason == MSR_FAILURE
        assert fields(machine) == before
        assert machine.vmcs.complaint
        return
    assert exit.reason & 0xFFFF in set(ExitReason)
    _run_on(machine)


def _run_on(machine: Machine) -> None:
    """Some more entries: what an exit left must be something that can be entered again, unless
    it is an event that does not fit."""
    for _ in range(3):
        machine.core.kick()
        exit = machine.enter()
        assert not exit.reason >> 31, machine.vmcs.complaint


@settings(max_examples=100)
@given(words=st.lists(st.integers(0, (1 << 64) - 1), min_size=len(_WRITABLE)), mask=st.integers(0))
def test_a_vmcs_of_nothing_but_random_words_is_refused(words: list[int], mask: int) -> None:
    machine = Machine()
    for field, word in zip(_WRITABLE, words, strict=False):
        machine.vmcs.write(field, word & MASKS[field])
    before = fields(machine)
    with pytest.raises(VmFail):
        machine.enter()
    assert fields(machine) == before
