"""Small guests for the hypervisor's tests: memory, page tables, descriptor tables, in one block.

Everything is done through the public API, so the same guest runs on either hypervisor.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from trapline.arch import descriptor, paging, registers
from trapline.arch.descriptor import Gate, build_gate, build_segment, build_system_segment
from trapline.kvm import Dtable, Kvm, Segment, Sregs, Vcpu, Vm

SIZE = 4 << 20

PML4, PDPT, PAGE_DIRECTORY = 0x1000, 0x2000, 0x3000
GDT, IDT, TSS = 0x4000, 0x5000, 0x6000
HANDLERS = 0x8000
KERNEL_CODE, USER_CODE = 0x10000, 0x20000
KERNEL_STACK, USER_STACK = 0x38000, 0x48000
DATA = 0x50000

CS0, DS0, DS3, CS3, TR = 0x08, 0x10, 0x23, 0x2B, 0x30

_TABLE = paging.PTE_P | paging.PTE_W | paging.PTE_U

OUT_AL = bytes.fromhex("e6")  # out imm8, al


class Memory:
    """Page-aligned memory of this process, for a slot."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.block = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block))

    def write(self, offset: int, data: bytes) -> None:
        self.block[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        return self.block[offset : offset + size]

    def write_quads(self, offset: int, *words: int) -> None:
        self.write(offset, struct.pack(f"<{len(words)}Q", *words))

    def quad(self, offset: int) -> int:
        return int(struct.unpack("<Q", self.read(offset, 8))[0])


class Guest:
    """One VM with one vCPU and 4 MiB of memory at guest-physical 0."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.vm: Vm = kvm.create_vm()
        self.memory = Memory()
        self.vm.set_tss_addr(0xFFFBD000)
        self.vm.set_user_memory_region(0, 0, 0, SIZE, self.memory.address)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()


def real_mode(kvm: Kvm, code: bytes) -> Guest:
    """A guest in real mode at linear 0x1000 with flat zero segments."""
    guest = Guest(kvm)
    guest.memory.write(0x1000, code)
    sregs = guest.vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = 0x1000
    guest.vcpu.regs.rflags = 2
    return guest


def long_mode(kvm: Kvm, code: bytes, cpl: int = 0, *, cpuid: bool = True) -> Guest:
    """A guest in 64-bit mode, all memory identity-mapped for everybody, stopped before `code`."""
    guest = Guest(kvm)
    memory = guest.memory
    memory.write_quads(PML4, PDPT | _TABLE)
    memory.write_quads(PDPT, PAGE_DIRECTORY | _TABLE)
    memory.write_quads(PAGE_DIRECTORY, *(_TABLE | paging.PTE_PS | i << 21 for i in range(2)))
    write_descriptors(memory)
    at = USER_CODE if cpl else KERNEL_CODE
    memory.write(at, code)
    if cpuid:
        guest.vcpu.set_cpuid2(kvm.get_supported_cpuid())
    guest.vcpu.set_sregs(long_mode_sregs(guest.vcpu.get_sregs(), cpl))
    regs = guest.vcpu.regs
    regs.rip, regs.rflags = at, 2
    regs.rsp = USER_STACK if cpl else KERNEL_STACK
    return guest


def write_descriptors(memory: Memory) -> None:
    """The GDT of this module's selectors, and the TSS."""
    tss = build_system_segment(TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY)
    user = descriptor.with_dpl
    memory.write_quads(
        GDT,
        0,
        build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE64),
        build_segment(0, 0xFFFFFFFF, descriptor.AR_DATA32),
        build_segment(0, 0xFFFFFFFF, user(descriptor.AR_CODE32, 3)),
        build_segment(0, 0xFFFFFFFF, user(descriptor.AR_DATA32, 3)),
        build_segment(0, 0xFFFFFFFF, user(descriptor.AR_CODE64, 3)),
        *tss,
    )
    memory.write(TSS + descriptor.TSS_RSP0, struct.pack("<Q", KERNEL_STACK))


def long_mode_sregs(sregs: Sregs, cpl: int) -> Sregs:
    """64-bit mode with this module's tables, at CPL 0 or 3."""
    code = descriptor.with_dpl(descriptor.AR_CODE64, cpl)
    data = descriptor.with_dpl(descriptor.AR_DATA32, cpl)
    make = Segment.from_attributes
    sregs.cs = make(CS3 if cpl else CS0, 0, 0xFFFFFFFF, code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, make(DS3 if cpl else DS0, 0, 0xFFFFFFFF, data))
    sregs.tr = make(TR, TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY)
    sregs.ldt = make(0, 0, 0, descriptor.AR_UNUSABLE)
    sregs.gdt = Dtable(GDT, 0x3F)
    sregs.idt = Dtable(IDT, 0xFFF)
    sregs.cr0 = registers.CR0_PE | registers.CR0_ET | registers.CR0_NE | registers.CR0_WP
    sregs.cr0 |= registers.CR0_MP | registers.CR0_PG
    sregs.cr3 = PML4
    sregs.cr4 = registers.CR4_PAE | registers.CR4_OSFXSR | registers.CR4_OSXMMEXCPT
    sregs.efer = registers.EFER_SCE | registers.EFER_LME | registers.EFER_LMA | registers.EFER_NXE
    return sregs


def handle(guest: Guest, vector: int, code: bytes, dpl: int = 0) -> int:
    """Put `code` behind an interrupt gate of `vector`; returns where it is."""
    at = HANDLERS + 0x100 * vector
    guest.memory.write(at, code)
    gate = Gate(CS0, at, descriptor.SystemType.INTERRUPT_GATE, dpl, True)
    guest.memory.write_quads(IDT + 16 * vector, *build_gate(gate))
    return at
