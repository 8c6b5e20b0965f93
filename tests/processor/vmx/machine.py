"""A processor in VMX operation for tests: RAM, tables, and a VMCS that passes every check.

The tests are the hypervisor: they write fields, call `enter` and look at the exit.
"""

from __future__ import annotations

import struct

from trapline.arch import descriptor, paging, registers, vmx
from trapline.arch.descriptor import Gate, build_gate, build_segment, build_system_segment
from trapline.arch.vmcs import Field
from trapline.processor import Core, Ram, Vmcs, VmExit, enter

SIZE = 4 << 20
PML4, PDPT, DIRECTORY = 0x1000, 0x2000, 0x3000
GDT, IDT, TSS = 0x4000, 0x5000, 0x6000
MSR_BITMAP, IO_BITMAP = 0x8000, 0x9000
HANDLERS = 0xB000
CODE, STACK, KERNEL_STACK, DATA = 0x10000, 0x28000, 0x38000, 0x50000
SPLIT = DATA + 0x3E
LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
HLT = b"\xf4"
SPIN = b"\xeb\xfe"
_TABLE = paging.PTE_P | paging.PTE_W | paging.PTE_U
_SELECTORS = {0: (0x08, 0x10), 3: (0x2B, 0x23)}

PIN = vmx.PIN_DEFAULT1 | vmx.PIN_EXTERNAL_INTERRUPT | vmx.PIN_NMI | vmx.PIN_VIRTUAL_NMIS
PRIMARY = vmx.PROC_TRUE_DEFAULT1 | vmx.PROC_HLT | vmx.PROC_SECONDARY
EXIT = vmx.EXIT_TRUE_DEFAULT1 | vmx.EXIT_SAVE_DEBUG_CONTROLS | vmx.EXIT_HOST_64
EXIT |= vmx.EXIT_SAVE_PAT | vmx.EXIT_LOAD_PAT | vmx.EXIT_SAVE_EFER | vmx.EXIT_LOAD_EFER
ENTRY = vmx.ENTRY_TRUE_DEFAULT1 | vmx.ENTRY_LOAD_DEBUG_CONTROLS | vmx.ENTRY_LOAD_PAT
ENTRY |= vmx.ENTRY_LOAD_EFER | vmx.ENTRY_IA32E_GUEST


class Machine:
    """One core and one VMCS with a 64-bit guest about to run `code` at CPL `cpl`."""

    def __init__(
        self, code: bytes = b"\xf4", cpl: int = 0, engine: str = "interp", cpu: str = "max"
    ) -> None:
        self.ram = Ram(SIZE)
        self.core = Core(cpu, self.ram, engine=engine)
        self.core.msrs.write(0x2FF, 0x806)  # MTRRs on, write-back by default
        self.state = self.core.state
        self.vmcs = Vmcs()
        self._build_tables()
        self.ram.load(CODE, code)
        self._fill_controls()
        self._fill_guest(cpl)

    def enter(self) -> VmExit:
        return enter(self.core, self.vmcs)

    def write(self, **fields: int) -> None:
        """Fields by name, lower case."""
        for name, word in fields.items():
            self.vmcs.write(Field[name.upper()], word)

    def read(self, name: str) -> int:
        return self.vmcs.read(Field[name.upper()])

    def set_bits(self, name: str, bits: int) -> None:
        self.write(**{name: self.read(name) | bits})

    def clear_bits(self, name: str, bits: int) -> None:
        self.write(**{name: self.read(name) & ~bits})

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

    def _fill_controls(self) -> None:
        self.write(
            pin_based_vm_exec_control=PIN,
            cpu_based_vm_exec_control=PRIMARY,
            vm_exit_controls=EXIT,
            vm_entry_controls=ENTRY,
            host_cr0=registers.CR0_PE | registers.CR0_ET | registers.CR0_NE | registers.CR0_PG,
            host_cr4=registers.CR4_PAE | registers.CR4_VMXE,
            host_ia32_efer=registers.EFER_LMA | registers.EFER_LME,
            host_ia32_pat=paging.PAT_RESET,
            host_cs_selector=0x08,
            host_ss_selector=0x10,
            host_tr_selector=0x18,
        )

    def _fill_guest(self, cpl: int) -> None:
        cs, ss = _SELECTORS[cpl]
        code = descriptor.with_dpl(descriptor.AR_CODE64, cpl)
        data = descriptor.with_dpl(descriptor.AR_DATA32, cpl)
        for name in ("es", "ds", "fs", "gs", "ss", "cs"):
            self.write(
                **{
                    f"guest_{name}_selector": cs if name == "cs" else ss,
                    f"guest_{name}_limit": 0xFFFFFFFF,
                    f"guest_{name}_ar_bytes": code if name == "cs" else data,
                }
            )
        self.write(
            guest_tr_selector=0x30,
            guest_tr_base=TSS,
            guest_tr_limit=descriptor.TSS_LIMIT,
            guest_tr_ar_bytes=descriptor.AR_TSS_BUSY,
            guest_ldtr_ar_bytes=descriptor.AR_UNUSABLE,
            guest_gdtr_base=GDT,
            guest_gdtr_limit=0x3F,
            guest_idtr_base=IDT,
            guest_idtr_limit=0xFFF,
            guest_cr0=registers.CR0_PE | registers.CR0_NE | registers.CR0_PG | registers.CR0_ET,
            guest_cr3=PML4,
            guest_cr4=registers.CR4_PAE | registers.CR4_VMXE | registers.CR4_OSFXSR,
            guest_ia32_efer=registers.EFER_LMA | registers.EFER_LME | registers.EFER_SCE,
            guest_ia32_pat=paging.PAT_RESET,
            guest_dr7=0x400,
            guest_rsp=STACK if cpl else KERNEL_STACK,
            guest_rip=CODE,
            guest_rflags=2,
        )
        self.state.dr6 = 0xFFFF0FF0
        self.state.mxcsr, self.state.fcw = 0x1F80, 0x37F
