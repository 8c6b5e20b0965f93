"""What the hypervisor puts into a fresh VMCS: controls, host state, intercepted MSRs.

KVM's init_vmcs() and setup_vmcs_config(), as far as there is a use for it.
"""

from __future__ import annotations

import ctypes
import mmap

from trapline.arch import cpuid, msr, registers, vmx
from trapline.arch.exception import Vector
from trapline.arch.paging import PAGE_SIZE, PAT_RESET
from trapline.arch.vmcs import Field
from trapline.kvm import abi
from trapline.processor import Vmcs

PIN = vmx.PIN_DEFAULT1 | vmx.PIN_EXTERNAL_INTERRUPT | vmx.PIN_NMI | vmx.PIN_VIRTUAL_NMIS
PRIMARY = (
    vmx.PROC_TRUE_DEFAULT1
    | vmx.PROC_HLT
    | vmx.PROC_TSC_OFFSETTING
    | vmx.PROC_RDPMC
    | vmx.PROC_MWAIT
    | vmx.PROC_MONITOR
    | vmx.PROC_CR8_LOAD
    | vmx.PROC_CR8_STORE
    | vmx.PROC_UNCONDITIONAL_IO
    | vmx.PROC_MSR_BITMAPS
    | vmx.PROC_SECONDARY
)
SECONDARY = vmx.PROC2_EPT | vmx.PROC2_UNRESTRICTED_GUEST | vmx.PROC2_WBINVD
BY_CPUID = ((cpuid.RDTSCP, vmx.PROC2_RDTSCP), (cpuid.INVPCID, vmx.PROC2_INVPCID))
"""Controls without which an instruction is undefined."""
EXIT = (
    vmx.EXIT_TRUE_DEFAULT1
    | vmx.EXIT_SAVE_DEBUG_CONTROLS
    | vmx.EXIT_HOST_64
    | vmx.EXIT_SAVE_PAT
    | vmx.EXIT_LOAD_PAT
    | vmx.EXIT_SAVE_EFER
    | vmx.EXIT_LOAD_EFER
)
ENTRY = (
    vmx.ENTRY_TRUE_DEFAULT1
    | vmx.ENTRY_LOAD_DEBUG_CONTROLS
    | vmx.ENTRY_LOAD_PAT
    | vmx.ENTRY_LOAD_EFER
)
# The guest may change these bits of CR0 and CR4 without asking (KVM_POSSIBLE_CR*_GUEST_BITS).
CR0_GUEST_OWNED = registers.CR0_TS | registers.CR0_WP
CR4_GUEST_OWNED = (
    registers.CR4_PVI
    | registers.CR4_DE
    | registers.CR4_PCE
    | registers.CR4_OSFXSR
    | registers.CR4_OSXMMEXCPT
    | registers.CR4_TSD
    | registers.CR4_FSGSBASE
    | registers.CR4_PGE
)
EXCEPTIONS = 1 << Vector.UD | 1 << Vector.MC | 1 << Vector.DB | 1 << Vector.AC
_PASSED_THROUGH = (
    *(msr.IA32_FS_BASE, msr.IA32_GS_BASE, msr.IA32_KERNEL_GS_BASE),
    *(msr.IA32_SYSENTER_CS, msr.IA32_SYSENTER_ESP, msr.IA32_SYSENTER_EIP),
)
_READ_THROUGH = (msr.IA32_TSC,)


def exception_bitmap(guest_debug: int) -> int:
    """vmx_update_exception_bitmap(), with EPT."""
    both = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_SW_BP
    return EXCEPTIONS | (1 << Vector.BP if guest_debug & both == both else 0)


class MsrBitmap:
    """The page that says which MSRs the guest may touch by itself."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page[:] = b"\xff" * PAGE_SIZE
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        for index in _PASSED_THROUGH:
            self._pass(index, 0)
            self._pass(index, 0x4000)
        for index in _READ_THROUGH:
            self._pass(index, 0)

    def _pass(self, index: int, base: int) -> None:
        number = base + (index & 0x1FFF) + (0x2000 if index >= 0xC0000000 else 0)
        self._page[number >> 3] &= ~(1 << (number & 7))


def fill(vmcs: Vmcs, msr_bitmap: int, ept_pointer: int, bus_lock_exits: bool) -> None:
    """The controls and the host state, once."""
    secondary = SECONDARY | (vmx.PROC2_BUS_LOCK_DETECTION if bus_lock_exits else 0)
    for field, word in {
        Field.PIN_BASED_VM_EXEC_CONTROL: PIN,
        Field.CPU_BASED_VM_EXEC_CONTROL: PRIMARY,
        Field.SECONDARY_VM_EXEC_CONTROL: secondary,
        Field.VM_EXIT_CONTROLS: EXIT,
        Field.VM_ENTRY_CONTROLS: ENTRY,
        Field.EXCEPTION_BITMAP: EXCEPTIONS,
        Field.MSR_BITMAP: msr_bitmap,
        Field.EPT_POINTER: ept_pointer,
        Field.CR0_GUEST_HOST_MASK: ~CR0_GUEST_OWNED,
        Field.CR4_GUEST_HOST_MASK: ~CR4_GUEST_OWNED,
        **_host_state(),
    }.items():
        vmcs.write(field, word)


def _host_state() -> dict[Field, int]:
    """A 64-bit host.  It is never loaded, for we are not on that processor; it must be valid."""
    return {
        Field.HOST_CR0: registers.CR0_PE | registers.CR0_ET | registers.CR0_NE | registers.CR0_PG,
        Field.HOST_CR4: registers.CR4_PAE | registers.CR4_VMXE,
        Field.HOST_IA32_EFER: registers.EFER_LMA | registers.EFER_LME,
        Field.HOST_IA32_PAT: PAT_RESET,
        Field.HOST_CS_SELECTOR: 0x08,
        Field.HOST_SS_SELECTOR: 0x10,
        Field.HOST_TR_SELECTOR: 0x18,
    }
