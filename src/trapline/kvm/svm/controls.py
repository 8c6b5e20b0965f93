"""What the hypervisor puts into a fresh VMCB: intercepts, permission maps, virtual interrupts.

KVM's init_vmcb(), as far as there is a use for it.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from trapline.arch import cpuid, msr, svm
from trapline.arch.exception import Vector
from trapline.arch.svm import Intercept
from trapline.kvm import abi
from trapline.processor import Vmcb

EXCEPTIONS = 1 << Vector.UD | 1 << Vector.MC | 1 << Vector.DB | 1 << Vector.AC
_INTERCEPTS: Final = (
    *(Intercept.INTR, Intercept.NMI, Intercept.CR0_SELECTIVE, Intercept.RDPMC, Intercept.CPUID),
    *(Intercept.INVD, Intercept.HLT, Intercept.IOIO, Intercept.MSR, Intercept.SHUTDOWN),
    *(Intercept.VMRUN, Intercept.WBINVD, Intercept.MONITOR, Intercept.MWAIT, Intercept.XSETBV),
    *(Intercept.TASK_SWITCH, Intercept.VMMCALL, Intercept.VMLOAD, Intercept.VMSAVE),
    *(Intercept.STGI, Intercept.CLGI, Intercept.SKINIT, Intercept.INVLPGA),
    svm.INTERCEPT_WRITE_CR + 4,
    svm.INTERCEPT_WRITE_CR + 8,
)
BY_CPUID: Final = ((cpuid.RDTSCP, Intercept.RDTSCP), (cpuid.INVPCID, Intercept.INVPCID))
"""Intercepted for those guests to whom the instruction is undefined."""
EVERY_DEBUG_REGISTER: Final = 0x00FF00FF
_PASSED_THROUGH: Final = (
    *(msr.IA32_STAR, msr.IA32_LSTAR, msr.IA32_CSTAR, msr.IA32_FMASK),
    *(msr.IA32_FS_BASE, msr.IA32_GS_BASE, msr.IA32_KERNEL_GS_BASE),
    *(msr.IA32_SYSENTER_CS, msr.IA32_SYSENTER_ESP, msr.IA32_SYSENTER_EIP),
)
_ASID: Final = 1


def exception_bitmap(guest_debug: int) -> int:
    """svm_update_exception_bitmap(), with nested paging."""
    both = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_SW_BP
    return EXCEPTIONS | (1 << Vector.BP if guest_debug & both == both else 0)


class PermissionMaps:
    """The map of ports, all intercepted, and that of MSRs, all but a few."""

    def __init__(self) -> None:
        size = svm.IOPM_SIZE + svm.MSRPM_SIZE
        self._pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages[:] = b"\xff" * size
        self.ports = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.msrs = self.ports + svm.IOPM_SIZE
        for index in _PASSED_THROUGH:
            position = svm.msrpm_position(index)
            assert position is not None
            self._pages[svm.IOPM_SIZE + (position >> 3)] &= ~(3 << (position & 7))


def fill(vmcb: Vmcb, maps: PermissionMaps, nested_root: int, bus_lock_threshold: bool) -> None:
    """The control area, once."""
    for number in _INTERCEPTS:
        vmcb.intercept(number)
    vmcb.intercept(Intercept.BUS_LOCK, bus_lock_threshold)
    for field, word in {
        "intercept_2": EXCEPTIONS,
        "iopm_base_pa": maps.ports,
        "msrpm_base_pa": maps.msrs,
        "asid": _ASID,
        "int_ctl": svm.INT_CTL_V_INTR_MASKING | svm.INT_CTL_V_NMI_ENABLE,
        "nested_ctl": svm.NESTED_CTL_NP,
        "nested_cr3": nested_root,
    }.items():
        vmcb.write(field, word)
