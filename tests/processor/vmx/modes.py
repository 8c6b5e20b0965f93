"""Machines about to enter a guest in each mode, and what it takes to try one change on them."""

from __future__ import annotations

from collections.abc import Callable

from tests.processor.vmx.machine import CODE, DIRECTORY, ENTRY, PML4, PRIMARY, Machine
from trapline.arch import descriptor, paging, registers, vmx
from trapline.arch.vmcs import Field, Type, type_of

EPT = 0x100000
EPT_POINTER = EPT | 6 | 3 << 3
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
CR0 = registers.CR0_PE | registers.CR0_NE | registers.CR0_PG | registers.CR0_ET
NO_SEGMENT = descriptor.AR_UNUSABLE
_PTE = paging.PTE_P | paging.PTE_W | paging.PTE_U
_LARGE = 0xB7  # readable, writable, executable, write-back, 2 MiB

Fields = dict[str, int]


def long_mode() -> Machine:
    """64-bit mode, without EPT."""
    return Machine()


def with_ept(machine: Machine | None = None) -> Machine:
    """Guest-physical memory is RAM itself; the guest may be without paging."""
    machine = machine or Machine()
    words = {EPT: EPT + 0x1007, EPT + 0x1000: EPT + 0x2007}
    words |= {EPT + 0x2000 + 8 * i: i << 21 | _LARGE for i in range(2)}
    for at, word in words.items():
        machine.ram.load(at, word.to_bytes(8, "little"))
    machine.write(
        secondary_vm_exec_control=vmx.PROC2_EPT | vmx.PROC2_UNRESTRICTED_GUEST,
        ept_pointer=EPT_POINTER,
    )
    return machine


def _legacy(machine: Machine, cr4: int) -> Machine:
    machine.write(
        vm_entry_controls=ENTRY & ~vmx.ENTRY_IA32E_GUEST,
        guest_ia32_efer=0,
        guest_cr4=registers.CR4_VMXE | cr4,
        guest_cs_ar_bytes=descriptor.AR_CODE32,
        guest_tr_ar_bytes=descriptor.AR_TSS_BUSY,
    )
    return machine


def protected_mode() -> Machine:
    """32 bits with 32-bit paging of 4 MiB pages."""
    machine = _legacy(Machine(), registers.CR4_PSE)
    machine.ram.load(DIRECTORY, (_PTE | paging.PTE_PS).to_bytes(4, "little"))
    machine.write(guest_cr3=DIRECTORY)
    return machine


def pae(machine: Machine | None = None) -> Machine:
    """32 bits with PAE paging; the PDPTEs are at the PML4's place."""
    machine = _legacy(machine or Machine(), registers.CR4_PAE)
    machine.ram.load(PML4, (DIRECTORY | paging.PTE_P).to_bytes(8, "little"))
    machine.write(guest_pdptr0=DIRECTORY | paging.PTE_P)
    return machine


def pae_with_ept() -> Machine:
    return pae(with_ept())


def virtual_8086() -> Machine:
    machine = protected_mode()
    for name in SEGMENTS:
        machine.write(
            **{
                f"guest_{name}_selector": CODE >> 4,
                f"guest_{name}_base": CODE,
                f"guest_{name}_limit": 0xFFFF,
                f"guest_{name}_ar_bytes": descriptor.AR_VIRTUAL_8086,
            }
        )
    machine.write(guest_rip=0, guest_rsp=0xFF00, guest_rflags=2 | registers.RFLAGS_VM)
    return machine


def real_mode() -> Machine:
    """Which takes the control "unrestricted guest"."""
    machine = _legacy(with_ept(), 0)
    for name in SEGMENTS:
        machine.write(
            **{
                f"guest_{name}_selector": CODE >> 4,
                f"guest_{name}_base": CODE,
                f"guest_{name}_limit": 0xFFFF,
                f"guest_{name}_ar_bytes": 0x9B if name == "cs" else 0x93,
            }
        )
    machine.write(guest_cr0=registers.CR0_NE | registers.CR0_ET, guest_rip=0, guest_rsp=0xFF00)
    return machine


MODES: dict[str, Callable[[], Machine]] = {
    mode.__name__: mode
    for mode in (long_mode, with_ept, protected_mode, pae, pae_with_ept, virtual_8086, real_mode)
}

_KEPT = [field for field in Field if type_of(field) in (Type.CONTROL, Type.HOST, Type.GUEST)]


def fields(machine: Machine) -> dict[str, int]:
    """All of the VMCS but the exit information."""
    return {field.name: machine.vmcs.read(field) for field in _KEPT}


def secondary(bits: int, **more: int) -> Fields:
    """Fields that activate secondary controls."""
    return {
        "cpu_based_vm_exec_control": PRIMARY | vmx.PROC_SECONDARY,
        "secondary_vm_exec_control": bits,
        **more,
    }
