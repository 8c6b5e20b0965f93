"""Each check on the controls and the host state, violated alone: error 7 or 8.

SDM 3C, "Checks on VMX Controls and Host-State Area".  Beside each bad value stands a good one
that differs from it as little as can be.
"""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import ENTRY, EXIT, PIN, PRIMARY, Machine
from tests.processor.vmx.modes import EPT_POINTER, Fields, fields, secondary, with_ept
from trapline.arch import registers, vmx
from trapline.arch.vmx import InstructionError
from trapline.processor import Core, Fault, Ram, VmFail, model
from trapline.processor.vmx import capability

TOP = 1 << 52  # the first address beyond physical memory
EPT, UNRESTRICTED = vmx.PROC2_EPT, vmx.PROC2_UNRESTRICTED_GUEST
EVENT, WITH_CODE = 1 << 31, 1 << 11


def event(kind: int, vector: int, more: int = 0, error_code: int = 0, length: int = 0) -> Fields:
    return {
        "vm_entry_intr_info_field": EVENT | kind << 8 | vector | more,
        "vm_entry_exception_error_code": error_code,
        "vm_entry_instruction_len": length,
    }


def page(name: str, control: int, word: int) -> Fields:
    return {"cpu_based_vm_exec_control": PRIMARY | control, name: word}


def ept(pointer: int) -> Fields:
    return secondary(EPT, ept_pointer=pointer)


def area(name: str, address: int, count: int) -> Fields:
    return {f"vm_{name}_addr": address, f"vm_{name}_count": count}


CONTROLS: dict[str, tuple[Fields, Fields]] = {
    "CR3 targets": ({"cr3_target_count": 5}, {"cr3_target_count": 4}),
    "I/O bitmap A aligned": (
        page("io_bitmap_a", vmx.PROC_IO_BITMAPS, 0x9008),
        page("io_bitmap_a", vmx.PROC_IO_BITMAPS, 0x9000),
    ),
    "I/O bitmap B aligned": (
        page("io_bitmap_b", vmx.PROC_IO_BITMAPS, 0x9800),
        page("io_bitmap_b", 0, 0x9800),
    ),
    "I/O bitmap A in range": (
        page("io_bitmap_a", vmx.PROC_IO_BITMAPS, TOP),
        page("io_bitmap_a", vmx.PROC_IO_BITMAPS, TOP - 0x1000),
    ),
    "I/O bitmap B in range": (
        page("io_bitmap_b", vmx.PROC_IO_BITMAPS, TOP),
        page("io_bitmap_b", 0, TOP),
    ),
    "MSR bitmap aligned": (
        page("msr_bitmap", vmx.PROC_MSR_BITMAPS, 0x8001),
        page("msr_bitmap", vmx.PROC_MSR_BITMAPS, 0x8000),
    ),
    "MSR bitmap in range": (
        page("msr_bitmap", vmx.PROC_MSR_BITMAPS, TOP),
        page("msr_bitmap", 0, TOP),
    ),
    "virtual NMIs need NMI exiting": (
        {"pin_based_vm_exec_control": PIN & ~vmx.PIN_NMI},
        {"pin_based_vm_exec_control": PIN & ~vmx.PIN_NMI & ~vmx.PIN_VIRTUAL_NMIS},
    ),
    "the NMI window needs virtual NMIs": (
        {
            "pin_based_vm_exec_control": PIN & ~vmx.PIN_VIRTUAL_NMIS,
            "cpu_based_vm_exec_control": PRIMARY | vmx.PROC_NMI_WINDOW,
        },
        {"cpu_based_vm_exec_control": PRIMARY | vmx.PROC_NMI_WINDOW},
    ),
    "unrestricted needs EPT": (
        secondary(UNRESTRICTED, ept_pointer=EPT_POINTER),
        secondary(UNRESTRICTED | EPT, ept_pointer=EPT_POINTER),
    ),
    "EPT memory type": (ept(EPT_POINTER & ~7 | 5), ept(EPT_POINTER & ~7)),
    "EPT walk length": (ept(EPT_POINTER & ~0x38 | 4 << 3), ept(EPT_POINTER)),
    "EPT reserved bits": (ept(EPT_POINTER | 1 << 7), ept(EPT_POINTER | 1 << 6)),
    "EPT reserved bit 11": (ept(EPT_POINTER | 1 << 11), ept(EPT_POINTER | 1 << 12)),
    "EPT root in range": (ept(EPT_POINTER | TOP), ept(EPT_POINTER | TOP >> 1)),
    "entry to SMM": (
        {"vm_entry_controls": ENTRY | vmx.ENTRY_TO_SMM},
        {"vm_entry_controls": ENTRY},
    ),
    "dual monitor": (
        {"vm_entry_controls": ENTRY | vmx.ENTRY_DEACTIVATE_DUAL_MONITOR},
        {"vm_entry_controls": ENTRY},
    ),
    "save the timer": (
        {"vm_exit_controls": EXIT | vmx.EXIT_SAVE_PREEMPTION_TIMER},
        {"vm_exit_controls": EXIT},
    ),
    **{
        f"{name} aligned": (area(name, 0x70008, 1), area(name, 0x70008, 0))
        for name in ("entry_msr_load", "exit_msr_load", "exit_msr_store")
    },
    **{
        f"{name} in range": (area(name, TOP - 16, 2), area(name, TOP - 16, 0))
        for name in ("entry_msr_load", "exit_msr_load", "exit_msr_store")
    },
    "event type 1": (event(1, 3), event(4, 3)),
    "an NMI is vector 2": (event(2, 3), event(2, 2)),
    "exceptions end at 31": (event(3, 32), event(3, 31)),
    "MTF has vector 0": (event(7, 1), event(7, 0)),
    "#DB has no error code": (event(3, 1, WITH_CODE), event(3, 1)),
    "interrupts have none": (event(4, 13, WITH_CODE), event(4, 13)),
    "control protection has none by VMX": (event(3, 21, WITH_CODE), event(3, 21)),
    **{
        f"exception {vector} has one": (event(3, vector), event(3, vector, WITH_CODE))
        for vector in (8, 10, 11, 12, 13, 14, 17)
    },
    **{
        f"event bit {bit}": (event(3, 6, 1 << bit), event(3, 6))
        for bit in (12, 13, 20, 29, 30)
    },
    "error codes have 16 bits": (
        event(3, 13, WITH_CODE, error_code=0x10000),
        event(3, 13, WITH_CODE, error_code=0xFFFF),
    ),
    "an error code not used": (
        event(3, 13, WITH_CODE, error_code=1 << 31),
        event(3, 6, error_code=1 << 31),
    ),
    **{
        f"length of type {kind}": (event(kind, 3, length=16), event(kind, 3, length=15))
        for kind in (4, 5, 6)
    },
    "length 0": (event(4, 3, length=16), event(4, 3, length=0)),
    "length not used": (event(4, 3, length=16), event(3, 3, length=16)),
}  # fmt: skip

SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs", "tr")
ADDRESSES = (
    *("ia32_sysenter_esp", "ia32_sysenter_eip", "fs_base", "gs_base", "tr_base", "gdtr_base"),
    *("idtr_base", "rip"),
)
HOST_CR0 = registers.CR0_PE | registers.CR0_NE | registers.CR0_PG
HOST_CR4 = registers.CR4_PAE | registers.CR4_VMXE
LONG = registers.EFER_LMA | registers.EFER_LME
HOST: dict[str, tuple[Fields, Fields]] = {
    **{
        f"CR0 without bit {bit:#x}": ({"host_cr0": HOST_CR0 & ~bit}, {"host_cr0": HOST_CR0})
        for bit in (registers.CR0_PE, registers.CR0_NE, registers.CR0_PG)
    },
    "CR0 bit 32": ({"host_cr0": HOST_CR0 | 1 << 32}, {"host_cr0": HOST_CR0 | 1 << 31}),
    "CR4.VMXE": ({"host_cr4": HOST_CR4 & ~registers.CR4_VMXE}, {"host_cr4": HOST_CR4}),
    "CR4.PAE": ({"host_cr4": registers.CR4_VMXE}, {"host_cr4": HOST_CR4}),
    "CR4 reserved": (
        {"host_cr4": HOST_CR4 | 1 << 15},
        {"host_cr4": HOST_CR4 | registers.CR4_SMEP},
    ),
    "CR3": ({"host_cr3": TOP}, {"host_cr3": TOP - 1}),
    **{
        f"{name} canonical": ({f"host_{name}": 1 << 56}, {f"host_{name}": (1 << 56) - 1})
        for name in ADDRESSES
    },
    **{
        f"{name} canonical, high": (
            {f"host_{name}": 0xFEFF << 48 | (1 << 48) - 1},
            {f"host_{name}": 0xFF << 56},
        )
        for name in ADDRESSES
    },
    **{
        f"PAT type {kind}": (
            {"host_ia32_pat": 0x0606060606060606 & ~0xFF | kind},
            {"host_ia32_pat": 0x0606060606060606 & ~0xFF | kind, "vm_exit_controls": NO_PAT},
        )
        for NO_PAT in (EXIT & ~vmx.EXIT_LOAD_PAT,)
        for kind in (2, 3, 8, 0x86)
    },
    "EFER reserved": (
        {"host_ia32_efer": LONG | 1 << 1},
        {"host_ia32_efer": LONG | registers.EFER_NXE},
    ),
    "EFER.LMA": (
        {"host_ia32_efer": registers.EFER_LME},
        {"host_ia32_efer": registers.EFER_LME, "vm_exit_controls": EXIT & ~vmx.EXIT_LOAD_EFER},
    ),
    "EFER.LME": ({"host_ia32_efer": registers.EFER_LMA}, {"host_ia32_efer": LONG}),
    **{
        f"{name} selector's {what}": (
            {f"host_{name}_selector": 0x28 | bit},
            {f"host_{name}_selector": 0x28},
        )
        for name in SELECTORS
        for what, bit in (("RPL", 1), ("RPL's high bit", 2), ("TI", 4))
    },
    **{
        f"{name} null": ({f"host_{name}_selector": 0}, {f"host_{name}_selector": 8})
        for name in ("cs", "tr")
    },
    "a 64-bit host": (
        {"vm_exit_controls": EXIT & ~vmx.EXIT_HOST_64, "host_ia32_efer": 0},
        {"host_ss_selector": 0},
    ),
}  # fmt: skip


def base(changes: Fields) -> Machine:
    """Whatever a field with an EPT pointer may need is there."""
    return with_ept() if "ept_pointer" in changes else Machine()


def refuse(changes: Fields, error: InstructionError) -> None:
    machine = base(changes)
    machine.write(**changes)
    before = fields(machine)
    with pytest.raises(VmFail) as failure:
        machine.enter()
    assert failure.value.error == error
    assert machine.read("vm_instruction_error") == error
    assert machine.vmcs.complaint == failure.value.complaint
    assert fields(machine) == before  # nothing was loaded, consumed or corrected
    with pytest.raises(VmFail):
        machine.enter()  # it does not pass by being tried again


def accept(changes: Fields) -> None:
    machine = base(changes)
    machine.write(**changes)
    machine.core.kick()  # a guest that HLT does not stop is to come back, too
    assert not machine.enter().reason >> 31


@pytest.mark.parametrize("name", CONTROLS)
def test_a_bad_control_is_error_7_and_its_neighbour_is_not(name: str) -> None:
    bad, good = CONTROLS[name]
    refuse(bad, InstructionError.ENTRY_INVALID_CONTROL)
    accept(good)


@pytest.mark.parametrize("name", HOST)
def test_bad_host_state_is_error_8_and_its_neighbour_is_not(name: str) -> None:
    bad, good = HOST[name]
    refuse(bad, InstructionError.ENTRY_INVALID_HOST_STATE)
    accept(good)


def test_without_five_level_paging_addresses_are_canonical_from_bit_47_on() -> None:
    for word, accepted in ((1 << 47, False), ((1 << 47) - 1, True), (0x1FFFF << 47, True)):
        machine = Machine(cpu="icelake")
        machine.write(host_fs_base=word)
        if accepted:
            assert not machine.enter().reason >> 31
            continue
        with pytest.raises(VmFail):
            machine.enter()


def test_an_event_without_its_valid_bit_is_none() -> None:
    """SDM 3C, "VM-Entry Controls for Event Injection": the other bits mean nothing then."""
    machine = Machine()
    machine.write(vm_entry_intr_info_field=0x7FFFFFFF, vm_entry_instruction_len=99)
    assert not machine.enter().reason >> 31
    assert machine.read("guest_rip") == 0x10000
    assert machine.read("vm_entry_intr_info_field") == 0x7FFFFFFF


def test_an_event_that_was_good_once_is_looked_at_with_its_error_code_and_length() -> None:
    for kind, good, bad in (
        (3, event(3, 13, WITH_CODE, error_code=5), {"vm_entry_exception_error_code": 1 << 16}),
        (4, event(4, 13, length=2), {"vm_entry_instruction_len": 16}),
    ):
        machine = Machine()
        machine.handle(13, b"\xf4")
        machine.write(**good)
        assert not machine.enter().reason >> 31
        machine.write(**good)
        machine.write(**bad)
        with pytest.raises(VmFail):
            machine.enter()
        assert kind in (3, 4)


def test_in_real_mode_no_exception_has_an_error_code() -> None:
    """It takes "unrestricted guest" to be there."""
    machine = with_ept()
    machine.write(guest_cr0=machine.read("guest_cr0") & ~0x80000001, guest_ia32_efer=0)
    machine.write(vm_entry_controls=ENTRY & ~vmx.ENTRY_IA32E_GUEST, **event(3, 13, WITH_CODE))
    with pytest.raises(VmFail, match="error code"):
        machine.enter()
    machine.write(**event(3, 13))
    machine.core.kick()
    assert not machine.enter().reason >> 31


# -- the capability MSRs ---------------------------------------------------------------------------

WORDS = (
    ("pin_based_vm_exec_control", 0x48D, PIN),
    ("cpu_based_vm_exec_control", 0x48E, PRIMARY),
    ("vm_exit_controls", 0x48F, EXIT),
    ("vm_entry_controls", 0x490, ENTRY),
    ("secondary_vm_exec_control", 0x48B, 0),
)
# What a control needs beside itself.
COMPANIONS: dict[tuple[str, int], Fields] = {
    ("secondary_vm_exec_control", EPT): {"ept_pointer": EPT_POINTER},
    ("secondary_vm_exec_control", UNRESTRICTED): secondary(
        EPT | UNRESTRICTED, ept_pointer=EPT_POINTER
    ),
    ("pin_based_vm_exec_control", vmx.PIN_NMI): {
        "pin_based_vm_exec_control": PIN & ~vmx.PIN_NMI & ~vmx.PIN_VIRTUAL_NMIS
    },
    ("vm_exit_controls", vmx.EXIT_HOST_64): {"vm_exit_controls": EXIT},
    ("vm_entry_controls", vmx.ENTRY_IA32E_GUEST): {"vm_entry_controls": ENTRY},
}


@pytest.mark.parametrize("bit", [1 << i for i in range(32)], ids=hex)
@pytest.mark.parametrize(("name", "number", "usual"), WORDS, ids=lambda one: str(one)[:12])
def test_a_control_bit_is_taken_exactly_where_its_capability_msr_allows_it(
    name: str, number: int, usual: int, bit: int
) -> None:
    """SDM 3D, "VMX Capability Reporting Facility": the low half must be 1, the high half may."""
    allowed = capability.capability_msrs(model("max"))[number]
    must, may = allowed & 0xFFFFFFFF, allowed >> 32
    changed = usual ^ bit
    is_allowed = not must & ~changed and not changed & ~may
    companions = COMPANIONS.get((name, bit), {})
    changes = {name: changed, **companions} if is_allowed else {name: changed}
    if is_allowed:
        accept(changes)
    else:
        refuse(changes, InstructionError.ENTRY_INVALID_CONTROL)


def test_the_capability_msrs_can_be_read_and_not_written() -> None:
    for cpu in ("legacy", "icelake", "sapphire-rapids", "max"):
        core = Core(cpu, Ram(1 << 20), engine="interp")
        for number, word in capability.capability_msrs(core.model).items():
            assert core.msrs.read(number) == word
            with pytest.raises(Fault):
                core.msrs.write(number, word)
    amd = Core("zen5", Ram(1 << 20), engine="interp")
    with pytest.raises(Fault):
        amd.msrs.read(0x480)


@pytest.mark.parametrize(("cpu", "has_it"), [("icelake", False), ("sapphire-rapids", True)])
def test_bus_lock_detection_is_a_control_of_processors_that_know_it(cpu: str, has_it: bool) -> None:
    may = capability.capability_msrs(model(cpu))[0x48B] >> 32
    assert bool(may & vmx.PROC2_BUS_LOCK_DETECTION) == has_it
    machine = Machine(cpu=cpu)
    secondary = machine.read("secondary_vm_exec_control")
    machine.write(
        cpu_based_vm_exec_control=machine.read("cpu_based_vm_exec_control") | vmx.PROC_SECONDARY,
        secondary_vm_exec_control=secondary | vmx.PROC2_BUS_LOCK_DETECTION,
    )
    if has_it:
        assert not machine.enter().reason >> 31
        return
    with pytest.raises(VmFail) as refused:
        machine.enter()
    assert refused.value.error == InstructionError.ENTRY_INVALID_CONTROL


def test_the_capability_msrs_agree_with_each_other() -> None:
    for name in ("legacy", "icelake", "sapphire-rapids", "max"):
        words = capability.capability_msrs(model(name))
        for number, true in ((0x481, 0x48D), (0x482, 0x48E), (0x483, 0x48F), (0x484, 0x490)):
            must, may = words[true] & 0xFFFFFFFF, words[true] >> 32
            assert not must & ~may
            assert not must & ~words[number]  # TRUE only releases
            assert may == words[number] >> 32
        assert words[0x48B] & 0xFFFFFFFF == 0
        for fixed_0, fixed_1 in ((0x486, 0x487), (0x488, 0x489)):
            assert not words[fixed_0] & ~words[fixed_1]
        assert words[0x480] >> 31 & 1 == 0
        assert words[0x480] >> 32 & 0x1FFF <= 0x1000
        assert words[0x485] >> 16 & 0x1FF == 4


@pytest.mark.parametrize("bit", range(64))
def test_the_fixed_bits_of_cr4_are_those_of_the_capability_msrs(bit: int) -> None:
    words = capability.capability_msrs(model("max"))
    host = HOST_CR4 ^ 1 << bit
    is_allowed = not words[0x488] & ~host and not host & ~words[0x489]
    changes = {"host_cr4": host}
    if is_allowed and 1 << bit != registers.CR4_PAE:
        accept(changes)
    else:
        refuse(changes, InstructionError.ENTRY_INVALID_HOST_STATE)
