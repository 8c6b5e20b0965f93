"""One instruction in a guest, by the processor or behind the forced-emulation prefix, on memory or
on a device, and all that can be seen afterwards.

The cases and their memory are those that are held against the host's processor (tests/against).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, cast

from tests.against.layout import (
    CODE,
    FS_BASE,
    GS_BASE,
    REGIONS,
    USER_CS,
    USER_CS_32,
    USER_DS,
    background,
    pieces,
)
from tests.against.state import FIXED_FLAGS, Case
from tests.kvm.guest import GDT, IDT, KERNEL_STACK, TR, TSS, Guest, handle
from tests.processor.bare import Tables
from trapline.arch import descriptor
from trapline.arch.descriptor import AR_UNUSABLE, build_segment, build_system_segment, with_dpl
from trapline.arch.paging import PTE_NX, PTE_P, PTE_U, PTE_W
from trapline.arch.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)
from trapline.kvm import Dtable, Kvm, Regs, Segment, Sregs, abi, exits

PREFIX = b"\x0f\x0bkvm"
STORE = 0x200000  # where the regions lie, in the order of `background()`
TABLES = 0x100000
DEVICE = 0x40000000  # above all memory
_STACK_PAGE = KERNEL_STACK - 0x1000
_HLT = b"\xf4"
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
            *(f"r{number}" for number in range(8, 16)))  # fmt: skip


@dataclass
class Seen:
    """The state after an instruction: how it ended, registers, x87 and SSE, memory."""

    end: object
    regs: Regs
    fx: bytes
    selectors: tuple[int, ...]
    memory: bytes
    frame: bytes


class Bench:
    """A guest at CPL 3 with the regions of the cases mapped as they are on the host.

    With `has_device` all of them but the code is device memory, which the VMM answers for.
    """

    def __init__(self, kvm: Kvm, *, has_device: bool = False) -> None:
        self._has_device = has_device
        self.accesses = 0
        self.guest = Guest(kvm)
        self.vcpu = self.guest.vcpu
        self._background = background()
        memory = self.guest.memory
        memory.write(STORE, self._background)
        memory.write(TSS + descriptor.TSS_RSP0, struct.pack("<Q", KERNEL_STACK))
        user = [with_dpl(rights, 3) for rights in _USER_RIGHTS]
        memory.write_quads(
            GDT,
            0,
            build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE64),
            build_segment(0, 0xFFFFFFFF, descriptor.AR_DATA32),
            0,
            *(build_segment(0, 0xFFFFFFFF, rights) for rights in user),
            0,
            *build_system_segment(TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY),
        )
        for vector in range(32):
            handle(self.guest, vector, _HLT)
        self.vcpu.set_cpuid2(kvm.get_supported_cpuid())
        self._root = self._map()
        self._sregs = {bits: self._registers(bits) for bits in (32, 64)}
        self.vcpu.set_sregs(self._sregs[64])
        self.vcpu.set_xcrs({0: 3})

    def word(self, physical: int) -> int:
        return self.guest.memory.quad(physical)

    def set_word(self, physical: int, word: int) -> None:
        self.guest.memory.write_quads(physical, word)

    def _map(self) -> int:
        tables = Tables(cast(Any, self), TABLES)
        physical = STORE
        for region in REGIONS:
            rights = PTE_P | PTE_U | PTE_W * region.writable | PTE_NX * (not region.executable)
            beyond = DEVICE if self._has_device and region is not CODE else 0
            for page in range(region.linear, region.end, 0x1000):
                tables.map(page, physical + beyond, rights)
                physical += 0x1000
        for page in (GDT, IDT, TSS, *range(0x8000, 0xB000, 0x1000), _STACK_PAGE):
            tables.map(page, page, PTE_P | PTE_W)
        return int(tables.root)

    def _registers(self, bits: int) -> Sregs:
        sregs, make = self.vcpu.get_sregs(), Segment.from_attributes
        code = descriptor.AR_CODE64 if bits == 64 else descriptor.AR_CODE32
        selector = USER_CS if bits == 64 else USER_CS_32
        sregs.cs = make(selector, 0, 0xFFFFFFFF, with_dpl(code, 3))
        data = make(USER_DS, 0, 0xFFFFFFFF, with_dpl(descriptor.AR_DATA32, 3))
        sregs.ds = sregs.es = sregs.ss = data
        if bits == 64:
            sregs.fs = make(0, FS_BASE, 0, AR_UNUSABLE)
            sregs.gs = make(0, GS_BASE, 0, AR_UNUSABLE)
        else:
            sregs.fs = sregs.gs = data
        sregs.tr = make(TR + 0x10, TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY)
        sregs.ldt = make(0, 0, 0, AR_UNUSABLE)
        sregs.gdt, sregs.idt = Dtable(GDT, 0x4F), Dtable(IDT, 0xFFF)
        sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
        sregs.cr2, sregs.cr3 = 0, self._root
        sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        sregs.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        return sregs

    def run(self, case: Case, is_forced: bool) -> Seen:
        """One single step, from the same state either way."""
        vcpu, memory = self.vcpu, self.guest.memory
        patches = [*case.memory, (case.entry - len(PREFIX), PREFIX), (case.entry, case.code)]
        placed = [piece for linear, content in patches for piece in pieces(linear, content)]
        for offset, content in placed:
            memory.write(STORE + offset, content)
        memory.write(_STACK_PAGE, bytes(0x1000))
        vcpu.set_guest_debug(0)
        vcpu.set_sregs(self._sregs[case.bits])
        vcpu.set_xsave(case.fx + struct.pack("<Q", 3).ljust(3584, b"\0"))
        regs = Regs(**dict(zip(_GENERAL, case.registers, strict=True)))
        regs.rip = case.entry - (len(PREFIX) if is_forced else 0)
        regs.rflags = case.flags | FIXED_FLAGS
        vcpu.set_regs(regs)
        vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
        end = vcpu.run()
        while isinstance(end, exits.Mmio):
            self._serve(end)
            end = vcpu.run()
        sregs = vcpu.get_sregs()
        selectors = tuple(getattr(sregs, name).selector for name in ("cs", "ds", "es", "fs", "gs"))
        seen = Seen(
            (end.dr6, end.pc) if isinstance(end, exits.Debug) else end,
            vcpu.get_regs(),
            vcpu.get_xsave(),
            (*selectors, sregs.cr2),
            memory.read(STORE, len(self._background)),
            memory.read(_STACK_PAGE, 0x1000),
        )
        memory.write(STORE, self._background)
        return seen

    def _serve(self, exit: exits.Mmio) -> None:
        """The device is where the memory would be."""
        self.accesses += 1
        at = exit.guest_physical - DEVICE
        if exit.is_write:
            self.guest.memory.write(at, bytes(exit.data))
        else:
            exit.data[:] = self.guest.memory.read(at, exit.size)


_USER_RIGHTS = (descriptor.AR_CODE32, descriptor.AR_DATA32, descriptor.AR_CODE64)
