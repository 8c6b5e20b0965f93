"""Checks of VM entry on the controls and the host state (VM-instruction errors 7 and 8).

Each function yields what is wrong, in the manual's order (SDM 3C, "Checks on VMX Controls and
Host-State Area"); an empty answer means that the entry may go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapline.arch import registers, vmx
from trapline.arch.exception import WITH_ERROR_CODE
from trapline.arch.paging import is_valid_pat
from trapline.arch.vmcs import Field
from trapline.processor.vmx import capability
from trapline.processor.vmx.capability import Features

if TYPE_CHECKING:
    from trapline.processor.vmx.vmcs import Vmcs

_PAGE = 0xFFF


def control_complaints(vmcs: Vmcs, model: Features) -> Iterator[str]:
    """Error 7: the execution, exit and entry controls."""
    yield from _allowed(vmcs, model)
    read = vmcs.read
    primary = read(Field.CPU_BASED_VM_EXEC_CONTROL)
    pin = read(Field.PIN_BASED_VM_EXEC_CONTROL)
    if read(Field.CR3_TARGET_COUNT) > capability.CR3_TARGETS:
        yield "more CR3 targets than there are"
    if primary & vmx.PROC_IO_BITMAPS:
        for name in (Field.IO_BITMAP_A, Field.IO_BITMAP_B):
            yield from _misplaced(vmcs, model, name, _PAGE)
    if primary & vmx.PROC_MSR_BITMAPS:
        yield from _misplaced(vmcs, model, Field.MSR_BITMAP, _PAGE)
    if pin & vmx.PIN_VIRTUAL_NMIS and not pin & vmx.PIN_NMI:
        yield "virtual NMIs without NMI exiting"
    if primary & vmx.PROC_NMI_WINDOW and not pin & vmx.PIN_VIRTUAL_NMIS:
        yield "NMI-window exiting without virtual NMIs"
    yield from _ept(vmcs, model)
    for count, area in (
        (Field.VM_EXIT_MSR_STORE_COUNT, Field.VM_EXIT_MSR_STORE_ADDR),
        (Field.VM_EXIT_MSR_LOAD_COUNT, Field.VM_EXIT_MSR_LOAD_ADDR),
        (Field.VM_ENTRY_MSR_LOAD_COUNT, Field.VM_ENTRY_MSR_LOAD_ADDR),
    ):
        if read(count):
            yield from _misplaced(vmcs, model, area, 0xF, 16 * read(count) - 1)


def _allowed(vmcs: Vmcs, model: Features) -> Iterator[str]:
    must_may = (
        (Field.PIN_BASED_VM_EXEC_CONTROL, vmx.PIN_DEFAULT1, capability.PIN_MAY),
        (Field.CPU_BASED_VM_EXEC_CONTROL, vmx.PROC_TRUE_DEFAULT1, capability.PROC_MAY),
        (Field.VM_EXIT_CONTROLS, vmx.EXIT_TRUE_DEFAULT1, capability.EXIT_MAY),
        (Field.VM_ENTRY_CONTROLS, vmx.ENTRY_TRUE_DEFAULT1, capability.ENTRY_MAY),
    )
    for field, must, may in must_may:
        word = vmcs.read(field)
        if must & ~word or word & ~(must | may):
            yield f"{field.name} {word:#x}: bits {must & ~word | word & ~(must | may):#x}"
    refused = vmcs.secondary() & ~capability.proc2_may(model)
    if refused:
        yield f"SECONDARY_VM_EXEC_CONTROL: bits {refused:#x}"


def _misplaced(
    vmcs: Vmcs, model: Features, field: Field, alignment: int, last: int = 0
) -> Iterator[str]:
    where = vmcs.read(field)
    if where & alignment or (where + last) >> model.physical_bits:
        yield f"{field.name} {where:#x} is not aligned or too high"


def _ept(vmcs: Vmcs, model: Features) -> Iterator[str]:
    secondary = vmcs.secondary()
    if not secondary & vmx.PROC2_EPT:
        if secondary & vmx.PROC2_UNRESTRICTED_GUEST:
            yield "unrestricted guest without EPT"
        return
    pointer = vmcs.read(Field.EPT_POINTER)
    if pointer & vmx.EPTP_TYPE not in (0, 6) or pointer >> vmx.EPTP_WALK_SHIFT & 7 != 3:
        yield f"EPT pointer {pointer:#x}: memory type or walk length"
    if pointer & 0xF80 or pointer >> model.physical_bits:
        yield f"EPT pointer {pointer:#x}: reserved bits"


def event_complaints(vmcs: Vmcs) -> Iterator[str]:
    """Error 7: the event to inject, where there is one."""
    information = vmcs.entry_info
    kind = information >> vmx.EVENT_TYPE_SHIFT & 7
    vector = information & vmx.EVENT_VECTOR
    if kind == 1 or information & vmx.EVENT_RESERVED:
        yield f"injected event {information:#x}: type or reserved bits"
    if kind == vmx.EventType.NMI and vector != 2:
        yield f"injected NMI with vector {vector}"
    if kind == vmx.EventType.HARDWARE_EXCEPTION and vector > 31:
        yield f"injected exception with vector {vector}"
    if kind == vmx.EventType.OTHER and vector:
        yield f"injected event of type 7 with vector {vector}"
    if bool(information & vmx.EVENT_ERROR_CODE) != _must_have_error_code(vmcs, kind, vector):
        yield f"injected event {information:#x}: error code"
    elif information & vmx.EVENT_ERROR_CODE and vmcs.entry_error_code >> 16:
        yield f"injected error code {vmcs.entry_error_code:#x}"
    if kind in (4, 5, 6) and vmcs.entry_length > 15:
        yield f"injected event of length {vmcs.entry_length}"


def _must_have_error_code(vmcs: Vmcs, kind: int, vector: int) -> bool:
    if kind != vmx.EventType.HARDWARE_EXCEPTION or vector not in WITH_ERROR_CODE or vector > 17:
        return False
    is_unrestricted = vmcs.secondary() & vmx.PROC2_UNRESTRICTED_GUEST
    return not is_unrestricted or bool(vmcs.read(Field.GUEST_CR0) & registers.CR0_PE)


def host_complaints(vmcs: Vmcs, model: Features) -> Iterator[str]:
    """Error 8: the host-state area."""
    read = vmcs.read
    cr0, cr4 = read(Field.HOST_CR0), read(Field.HOST_CR4)
    if capability.CR0_FIXED0 & ~cr0 or cr0 & ~capability.CR0_FIXED1:
        yield f"CR0 {cr0:#x}"
    if capability.CR4_FIXED0 & ~cr4 or cr4 & ~capability.cr4_fixed1(model):
        yield f"CR4 {cr4:#x}"
    if read(Field.HOST_CR3) >> model.physical_bits:
        yield "CR3 too high"
    exits = read(Field.VM_EXIT_CONTROLS)
    is_64 = bool(exits & vmx.EXIT_HOST_64)
    if exits & vmx.EXIT_LOAD_PAT and not is_valid_pat(read(Field.HOST_IA32_PAT)):
        yield "PAT"
    if exits & vmx.EXIT_LOAD_EFER:
        efer = read(Field.HOST_IA32_EFER)
        long_mode = registers.EFER_LMA | registers.EFER_LME
        if efer & ~EFER_DEFINED or efer & long_mode != (long_mode if is_64 else 0):
            yield f"EFER {efer:#x}"
    yield from _host_segments(vmcs, model, is_64)
    # The processor that enters is in 64-bit mode: the hypervisor above it is.
    if not is_64:
        yield "not a 64-bit host"
    elif not cr4 & registers.CR4_PAE or not is_canonical(read(Field.HOST_RIP), model):
        yield "CR4.PAE or RIP of a 64-bit host"


def _host_segments(vmcs: Vmcs, model: Features, is_64: bool) -> Iterator[str]:
    for field in (
        Field.HOST_IA32_SYSENTER_ESP, Field.HOST_IA32_SYSENTER_EIP, Field.HOST_FS_BASE,
        Field.HOST_GS_BASE, Field.HOST_TR_BASE, Field.HOST_GDTR_BASE, Field.HOST_IDTR_BASE,
    ):  # fmt: skip
        if not is_canonical(vmcs.read(field), model):
            yield f"{field.name} is not canonical"
    for name in ("ES", "CS", "SS", "DS", "FS", "GS", "TR"):
        selector = vmcs.read(Field[f"HOST_{name}_SELECTOR"])
        if selector & 7:
            yield f"{name} selector {selector:#x}"
        if not selector and (name in ("CS", "TR") or (name == "SS" and not is_64)):
            yield f"{name} selector is null"


EFER_DEFINED = registers.EFER_SCE | registers.EFER_LME | registers.EFER_LMA | registers.EFER_NXE


def is_canonical(linear: int, model: Features) -> bool:
    """Whether all bits from the highest of a linear address on are the same.

    The processor's width counts, not the paging mode's, as for the MSRs that hold such addresses.
    """
    upper = linear >> model.linear_bits - 1
    return upper in (0, (1 << 65 - model.linear_bits) - 1)
