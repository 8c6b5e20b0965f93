"""The vCPU as the boot protocols want it: segments, control registers, and where it begins."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from trapline.arch import apic, cpuid, descriptor, registers
from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import Dtable, Kvm, Segment, Sregs, Vcpu, abi
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


def set_cpuid(kvm: Kvm, vcpus: Sequence[Vcpu]) -> None:
    """What the hypervisor can show, and which processor each is: cores of one package."""
    entries = kvm.get_supported_cpuid()
    if kvm.check_extension(abi.Capability.TSC_DEADLINE_TIMER):
        entries = [
            entry.with_feature(cpuid.TSC_DEADLINE) if entry.function == 1 else entry
            for entry in entries
        ]
    for number, vcpu in enumerate(vcpus):
        vcpu.set_cpuid2([_of_processor(entry, number, len(vcpus)) for entry in entries])


def _of_processor(entry: CpuidEntry, number: int, count: int) -> CpuidEntry:
    """A leaf of the processor with this APIC ID (SDM 2A, CPUID; APM 3, Fn8000_0008)."""
    match entry.function, entry.index:
        case 1, _:
            ebx = entry.ebx & 0xFFFF | count << 16 | number << 24
            return replace(entry, ebx=ebx).with_feature(cpuid.HTT, count > 1)
        case 4, _ if entry.eax:
            return replace(entry, eax=entry.eax & 0x03FFFFFF | min(count - 1, 63) << 26)
        case 0xB, 0:
            return replace(entry, eax=0, ebx=1, edx=number)
        case 0xB, 1:
            return replace(entry, eax=(count - 1).bit_length(), ebx=count, edx=number)
        case 0x80000008, _:
            return replace(entry, ecx=count - 1)
    return entry


def connect_lines(vcpu: Vcpu) -> None:
    """As SeaBIOS leaves the first processor's APIC: on, the 8259 at LINT0, NMIs at LINT1."""
    area = bytearray(vcpu.get_lapic())
    for register, word in (
        (apic.SVR, apic.SVR_ENABLED | apic.SVR_RESET),
        (apic.LVT_LINT0, apic.LVT_LEVEL | apic.Delivery.EXTINT << apic.LVT_MODE_SHIFT),
        (apic.LVT_LINT1, apic.LVT_LEVEL | apic.Delivery.NMI << apic.LVT_MODE_SHIFT),
    ):
        struct.pack_into("<I", area, register, word)
    vcpu.set_lapic(bytes(area))


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
