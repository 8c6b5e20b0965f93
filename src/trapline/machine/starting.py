"""The vCPU as the boot protocols want it: segments, control registers, and where it begins."""

from __future__ import annotations

import struct

from trapline.arch import cpuid, descriptor, registers
from trapline.kvm import Dtable, Kvm, Segment, Sregs, Vcpu
from trapline.machine import layout
from trapline.machine.boot import Mode, Start
from trapline.machine.memory import Memory

_CODE32, _DATA, _CODE64 = 0x08, 0x10, 0x18
_FLAT = 0xFFFFFFFF
_RFLAGS = 2  # interrupts off


def write_descriptors(memory: Memory) -> None:
    """The GDT that the selectors at the start come from."""
    rights = (descriptor.AR_CODE32, descriptor.AR_DATA32, descriptor.AR_CODE64)
    table = [0, *(descriptor.build_segment(0, _FLAT, one) for one in rights)]
    memory.write(layout.GDT, struct.pack(f"<{len(table)}Q", *table))


def set_cpuid(kvm: Kvm, vcpu: Vcpu) -> None:
    """What the hypervisor can show, but for the local APIC, which the board does not have."""
    vcpu.set_cpuid2(
        entry.with_feature(cpuid.APIC, False) if entry.function == cpuid.APIC.function else entry
        for entry in kvm.get_supported_cpuid()
    )


def start(vcpu: Vcpu, where: Start) -> None:
    """Put the vCPU before the first instruction of an image."""
    sregs = vcpu.get_sregs()
    if where.mode is Mode.REAL:
        vcpu.regs.rip = _enter_real_mode(sregs, where.entry)
    else:
        _enter_flat_mode(sregs, where.mode)
        vcpu.regs.rip = where.entry
    vcpu.set_sregs(sregs)
    regs = vcpu.regs
    regs.rsp, regs.rflags = layout.STACK, _RFLAGS
    regs.rax, regs.rbx, regs.rdx = where.rax, where.rbx, 0


def _enter_real_mode(sregs: Sregs, entry: int) -> int:
    """IP; CS stays 0 where that reaches, as for a boot sector."""
    base = 0 if entry < 0x10000 else entry & ~0xFFFF
    sregs.cs.base, sregs.cs.selector = base, base >> 4
    sregs.idt = Dtable(0, 0x3FF)
    sregs.cr0 = registers.CR0_ET  # firmware has switched the caches on
    return entry - base


def _enter_flat_mode(sregs: Sregs, mode: Mode) -> None:
    make = Segment.from_attributes
    sregs.gdt = Dtable(layout.GDT, 0x1F)
    sregs.idt = Dtable(0, 0)
    sregs.cr0 = registers.CR0_PE | registers.CR0_ET
    sregs.cs = make(_CODE32, 0, _FLAT, descriptor.AR_CODE32)
    if mode is Mode.LONG:
        sregs.cs = make(_CODE64, 0, _FLAT, descriptor.AR_CODE64)
        sregs.cr0 |= registers.CR0_PG
        sregs.cr3 = layout.PAGE_TABLES
        sregs.cr4 = registers.CR4_PAE
        sregs.efer = registers.EFER_LME | registers.EFER_LMA
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, make(_DATA, 0, _FLAT, descriptor.AR_DATA32))
