"""A processor with SVM for tests: RAM, tables, and a VMCB that passes every check.

The tests are the hypervisor: they write fields, call `enter` and look at the exit.
"""

from __future__ import annotations

import struct

from trapline.arch import descriptor, msr, paging, registers, vmcb
from trapline.arch.descriptor import Gate, build_gate, build_segment, build_system_segment
from trapline.arch.svm import Intercept
from trapline.processor import Core, Ram, SvmExit, Vmcb, enter_svm

SIZE = 4 << 20
PML4, PDPT, DIRECTORY = 0x1000, 0x2000, 0x3000
GDT, IDT, TSS = 0x4000, 0x5000, 0x6000
IOPM, MSRPM = 0x60000, 0x64000
HANDLERS = 0xB000
CODE, STACK, KERNEL_STACK, DATA = 0x10000, 0x28000, 0x38000, 0x50000
SPLIT = DATA + 0x3E
LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
HLT = b"\xf4"
SPIN = b"\xeb\xfe"
_TABLE = paging.PTE_P | paging.PTE_W | paging.PTE_U
_SELECTORS = {0: (0x08, 0x10), 3: (0x2B, 0x23)}


class Machine:
    """One core and one VMCB with a 64-bit guest about to run `code` at CPL `cpl`; HLT and
    shutdown are intercepted."""

    def __init__(
        self, code: bytes = b"\xf4", cpl: int = 0, engine: str = "interp", cpu: str = "zen5"
    ) -> None:
        self.ram = Ram(SIZE)
        self.core = Core(cpu, self.ram, engine=engine)
        self.core.msrs.write(msr.IA32_MTRR_DEF_TYPE, 0x806)  # on, write-back by default
        self.state = self.core.state
        self.vmcb = Vmcb()
        self._build_tables()
        self.ram.load(CODE, code)
        self.intercept(Intercept.VMRUN, Intercept.HLT, Intercept.SHUTDOWN, Intercept.INTR)
        self.write(asid=1, iopm_base_pa=IOPM, msrpm_base_pa=MSRPM)
        self._fill_save_area(cpl)

    def enter(self) -> SvmExit:
        return enter_svm(self.core, self.vmcb)

    def write(self, **fields: int) -> None:
        for name, word in fields.items():
            self.vmcb.write(name, word)

    def read(self, name: str) -> int:
        return self.vmcb.read(name)

    def intercept(self, *numbers: int) -> None:
        for number in numbers:
            self.vmcb.intercept(number)

    def handle(self, vector: int, code: bytes, dpl: int = 0) -> int:
        """Put `code` behind an interrupt gate; returns where it is."""
        at = HANDLERS + 0x40 * vector
        self.ram.load(at, code)
        gate = Gate(0x08, at, descriptor.SystemType.INTERRUPT_GATE, dpl, True)
        self.ram.load(IDT + 16 * vector, struct.pack("<2Q", *build_gate(gate)))
        return at

    def quad(self, physical: int) -> int:
        return int.from_bytes(self.ram.bytes[physical : physical + 8], "little")

    def _build_tables(self) -> None:
        load, quads = self.ram.load, struct.Struct("<2Q")
        load(PML4, struct.pack("<Q", PDPT | _TABLE))
        load(PDPT, struct.pack("<Q", DIRECTORY | _TABLE))
        load(DIRECTORY, quads.pack(_TABLE | paging.PTE_PS, 1 << 21 | _TABLE | paging.PTE_PS))
        user = descriptor.with_dpl
        words = (
            0,
            build_segment(0, 0xFFFFFFFF, descriptor.AR_CODE64),
            build_segment(0, 0xFFFFFFFF, descriptor.AR_DATA32),
            build_segment(0, 0xFFFFFFFF, user(descriptor.AR_CODE32, 3)),
            build_segment(0, 0xFFFFFFFF, user(descriptor.AR_DATA32, 3)),
            build_segment(0, 0xFFFFFFFF, user(descriptor.AR_CODE64, 3)),
            *build_system_segment(TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY),
        )
        load(GDT, struct.pack("<8Q", *words))
        load(TSS + descriptor.TSS_RSP0, struct.pack("<Q", KERNEL_STACK))

    def segment(self, name: str, selector: int, base: int, limit: int, rights: int) -> None:
        self.write(
            **{
                f"{name}_selector": selector,
                f"{name}_base": base,
                f"{name}_limit": limit,
                f"{name}_attributes": vmcb.attributes_of_rights(rights),
            }
        )

    def _fill_save_area(self, cpl: int) -> None:
        cs, ss = _SELECTORS[cpl]
        data = descriptor.with_dpl(descriptor.AR_DATA32, cpl)
        for name in ("es", "ds", "fs", "gs", "ss"):
            self.segment(name, ss, 0, 0xFFFFFFFF, data)
        self.segment("cs", cs, 0, 0xFFFFFFFF, descriptor.with_dpl(descriptor.AR_CODE64, cpl))
        self.segment("tr", 0x30, TSS, descriptor.TSS_LIMIT, descriptor.AR_TSS_BUSY)
        self.write(
            gdtr_base=GDT,
            gdtr_limit=0x3F,
            idtr_base=IDT,
            idtr_limit=0xFFF,
            cpl=cpl,
            cr0=registers.CR0_PE | registers.CR0_NE | registers.CR0_PG | registers.CR0_ET,
            cr3=PML4,
            cr4=registers.CR4_PAE | registers.CR4_OSFXSR,
            efer=registers.EFER_LMA | registers.EFER_LME | registers.EFER_SCE | registers.EFER_SVME,
            g_pat=paging.PAT_RESET,
            dr6=0xFFFF0FF0,
            dr7=0x400,
            rsp=STACK if cpl else KERNEL_STACK,
            rip=CODE,
            rflags=2,
        )
        self.state.mxcsr, self.state.fcw = 0x1F80, 0x37F
