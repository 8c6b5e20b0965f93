"""The VMCS keeps its fields, wherever they are: in itself, or in the registers while current."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.processor.vmx.machine import Machine
from trapline.arch.vmcs import MASKS, Field, Type, type_of
from trapline.processor import Core, Ram, Vmcs, VmExit

# Not plain storage: what is written to them is filtered, or belongs to the last exit or the walk.
_FILTERED = {Field.GUEST_RFLAGS, Field.GUEST_ACTIVITY_STATE}
_STORED = [
    field
    for field in Field
    if type_of(field) in (Type.CONTROL, Type.HOST, Type.GUEST) and field not in _FILTERED
]

_CORE = Core("max", Ram(1 << 20), engine="interp")


@given(st.lists(st.integers(0, 2**64 - 1), min_size=len(_STORED), max_size=len(_STORED)))
def test_every_field_survives_becoming_current_and_ceasing_to_be(words: list[int]) -> None:
    vmcs = Vmcs()
    for field, word in zip(_STORED, words, strict=True):
        vmcs.write(field, word & MASKS[field])
    vmcs.load(_CORE)
    while_current = {field: vmcs.read(field) for field in _STORED}
    vmcs.clear()
    afterwards = {field: vmcs.read(field) for field in _STORED}
    expected = {f: w & MASKS[f] for f, w in zip(_STORED, words, strict=True)}
    assert while_current == expected
    assert afterwards == expected


def test_guest_fields_are_the_registers_while_current() -> None:
    machine = Machine()
    machine.enter()
    machine.write(guest_rip=0x1234, guest_gs_base=0x5678, guest_interruptibility_info=0x9)
    state = machine.state
    assert (state.rip, state.gs_base) == (0x1234, 0x5678)
    assert (state.interrupt_shadow, state.nmi_blocked) == (1, 1)
    state.sysenter_eip = 0x9999
    assert machine.read("guest_sysenter_eip") == 0x9999


def test_two_vmcss_on_one_core_do_not_share_state() -> None:
    machine = Machine(b"\xf4\xf4")
    machine.enter()
    other = Machine(b"\xf4\xf4")
    second = other.vmcs
    second.write(Field.GUEST_FS_BASE, 0x7000)
    machine.vmcs.clear()
    second.load(machine.core)
    assert machine.state.fs_base == 0x7000
    assert machine.read("guest_fs_base") == 0
    assert machine.read("guest_rip") == other.read("guest_rip")
    second.clear()
    machine.vmcs.load(machine.core)
    assert machine.state.fs_base == 0
    assert second.read(Field.GUEST_FS_BASE) == 0x7000


def test_exit_information_is_that_of_the_last_exit() -> None:
    vmcs = Vmcs()
    vmcs.exit = VmExit(
        48,
        0x83,
        3,
        0x80000301,
        4,
        vectoring_info=0x80000202,
        vectoring_error_code=5,
        guest_physical=0x1000,
        guest_linear=0x2000,
        instruction_information=7,
    )
    names = (
        *("VM_EXIT_REASON", "EXIT_QUALIFICATION", "VM_EXIT_INSTRUCTION_LEN"),
        *("VM_EXIT_INTR_INFO", "VM_EXIT_INTR_ERROR_CODE", "IDT_VECTORING_INFO_FIELD"),
        *("IDT_VECTORING_ERROR_CODE", "GUEST_PHYSICAL_ADDRESS", "GUEST_LINEAR_ADDRESS"),
        "VMX_INSTRUCTION_INFO",
    )
    words = [vmcs.read(Field[name]) for name in names]
    assert words == [48, 0x83, 3, 0x80000301, 4, 0x80000202, 5, 0x1000, 0x2000, 7]
