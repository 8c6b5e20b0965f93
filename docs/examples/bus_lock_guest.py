"""A guest that locks the bus at CPL 3, and what its #DB handler finds in DR6.

python docs/examples/bus_lock_guest.py [MODEL]      a model of `trapline cpus`
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys

from trapline.arch.descriptor import AR_CODE32, AR_DATA32, AR_TSS_BUSY, build_segment, with_dpl
from trapline.arch.msr import DEBUGCTL_BLD, IA32_DEBUGCTL
from trapline.arch.registers import CR0_ET, CR0_PE
from trapline.kvm import Dtable, Segment, exits, open_kvm

SIZE = 0x10000
GDT, IDT, TSS, HANDLER, CODE, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
CODE0, DATA0, CODE3, DATA3, TASK = 0x08, 0x10, 0x1B, 0x23, 0x28

# Memory: tables, a handler for #DB, and the code.
memory = mmap.mmap(-1, SIZE)
rights = (AR_CODE32, AR_DATA32, with_dpl(AR_CODE32, 3), with_dpl(AR_DATA32, 3))
segments = [build_segment(0, 0xFFFFFFFF, word) for word in rights]
struct.pack_into("<6Q", memory, GDT, 0, *segments, build_segment(TSS, 0x67, AR_TSS_BUSY))
struct.pack_into("<HHHH", memory, IDT + 8 * 1, HANDLER, CODE0, 0x8E00, 0)  # an interrupt gate
struct.pack_into("<II", memory, TSS + 4, 0x8000, DATA0)  # the stack for CPL 0
memory[HANDLER : HANDLER + 4] = bytes.fromhex("0f21f0 f4")  # mov eax, dr6; hlt
memory[CODE : CODE + 6] = bytes.fromhex("f00fc10f ebfe")  # lock xadd [edi], ecx; jmp $

# A VM of one vCPU, with everything its processor can do shown to the guest.
kvm = open_kvm(cpu=sys.argv[1] if len(sys.argv) > 1 else "sapphire-rapids")
vm = kvm.create_vm()
host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
vm.set_user_memory_region(0, 0, 0, SIZE, host)
vcpu = vm.create_vcpu(0)
vcpu.set_cpuid2(kvm.get_supported_cpuid())

# Flat 32-bit protected mode at CPL 3.
sregs = vcpu.get_sregs()
sregs.cs = Segment.from_attributes(CODE3, 0, 0xFFFFFFFF, with_dpl(AR_CODE32, 3))
for name in ("ds", "es", "fs", "gs", "ss"):
    setattr(sregs, name, Segment.from_attributes(DATA3, 0, 0xFFFFFFFF, with_dpl(AR_DATA32, 3)))
sregs.tr = Segment.from_attributes(TASK, TSS, 0x67, AR_TSS_BUSY)
sregs.gdt, sregs.idt = Dtable(GDT, 0x2F), Dtable(IDT, 0x7FF)
sregs.cr0 = CR0_PE | CR0_ET
vcpu.set_sregs(sregs)
vcpu.regs.rip, vcpu.regs.rflags, vcpu.regs.rsp = CODE, 2, 0x9000
vcpu.regs.rdi, vcpu.regs.rcx = DATA + 62, 1  # two bytes on one cache line, two on the next

if not vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}):
    sys.exit("This processor has no bus lock detection: WRMSR would be #GP.")

exit = vcpu.run()
assert isinstance(exit, exits.Hlt), exit
(reported,) = struct.unpack_from("<I", memory, vcpu.regs.rsp)
print(f"DR6 {vcpu.regs.rax:#x}: bit 11 is {vcpu.regs.rax >> 11 & 1}, as a bus lock leaves it")
print(f"saved EIP {reported:#x}: the instruction after the one at {CODE:#x}")
