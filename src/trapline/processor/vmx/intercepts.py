"""What leaves a VMX guest: the execution controls, asked by the core through `Guest`.

Looks at the VMCS once, when its controls have changed; every question after that is a few
comparisons.  Nothing here enters a guest.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final, NoReturn

from trapline.arch import vmx
from trapline.arch.debug import PAYLOAD_ENABLED_BREAKPOINT
from trapline.arch.exception import has_error_code
from trapline.arch.registers import CR0_PE, CR0_TS
from trapline.arch.vmcs import Field
from trapline.arch.vmx import ExitReason
from trapline.processor.fault import Fault
from trapline.processor.guest import (
    HARDWARE_EXCEPTION,
    NESTED_EPT,
    NMI,
    WATCH_INTERRUPT_WINDOW,
    WATCH_MONITOR_TRAP,
    WATCH_NMI_WINDOW,
    WATCH_PAUSE,
    Leave,
    VmExit,
)
from trapline.processor.vmx.operands import HAS_OPERANDS, describe

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.vmx.vmcs import Vmcs

_DF: Final = 8
_PF: Final = 14
_UD: Final = 6
_RFLAGS_IF: Final = 1 << 9
_MACHINE_STATUS_WORD: Final = 0xF  # what LMSW writes

# Instructions that always exit (SDM 3C, "Instructions That Cause VM Exits Unconditionally").
_ALWAYS: Final = {
    "cpuid": ExitReason.CPUID,
    "getsec": ExitReason.GETSEC,
    "invd": ExitReason.INVD,
    "xsetbv": ExitReason.XSETBV,
    "invept": ExitReason.INVEPT,
    "invvpid": ExitReason.INVVPID,
    "vmcall": ExitReason.VMCALL,
    "vmclear": ExitReason.VMCLEAR,
    "vmlaunch": ExitReason.VMLAUNCH,
    "vmptrld": ExitReason.VMPTRLD,
    "vmptrst": ExitReason.VMPTRST,
    "vmread": ExitReason.VMREAD,
    "vmresume": ExitReason.VMRESUME,
    "vmwrite": ExitReason.VMWRITE,
    "vmxoff": ExitReason.VMXOFF,
    "vmxon": ExitReason.VMXON,
}
_BY_PRIMARY: Final = {
    "hlt": (vmx.PROC_HLT, ExitReason.HLT),
    "invlpg": (vmx.PROC_INVLPG, ExitReason.INVLPG),
    "mwait": (vmx.PROC_MWAIT, ExitReason.MWAIT),
    "rdpmc": (vmx.PROC_RDPMC, ExitReason.RDPMC),
    "rdtsc": (vmx.PROC_RDTSC, ExitReason.RDTSC),
    "rdtscp": (vmx.PROC_RDTSC, ExitReason.RDTSCP),
    "monitor": (vmx.PROC_MONITOR, ExitReason.MONITOR),
    "pause": (vmx.PROC_PAUSE, ExitReason.PAUSE),
}
_BY_SECONDARY: Final = {
    "wbinvd": (vmx.PROC2_WBINVD, ExitReason.WBINVD),
    "rdrand": (vmx.PROC2_RDRAND, ExitReason.RDRAND),
    "rdseed": (vmx.PROC2_RDSEED, ExitReason.RDSEED),
}
_ENABLED_BY: Final = (("rdtscp", vmx.PROC2_RDTSCP), ("invpcid", vmx.PROC2_INVPCID))
_MSR_LOW_LAST: Final = 0x1FFF
_MSR_HIGH_FIRST, _MSR_HIGH_LAST = 0xC0000000, 0xC0001FFF


def _has_bit(bitmap: memoryview, number: int) -> bool:
    return bool(bitmap[number >> 3] >> (number & 7) & 1)


class VmxGuest:
    """The `Guest` of one VMCS on one core."""

    def __init__(self, core: Core, vmcs: Vmcs) -> None:
        self._core = core
        self.vmcs = vmcs
        self.ept_pointer: int | None = None
        self.watches = 0
        self.mov_dr_exits = self.io_exits = False
        self.vectoring_info = 0
        self.vectoring_error_code = self.vectoring_length = 0
        self.tsc_offset = 0
        self.bus_lock_exits = self.bus_lock_threshold = False
        self.nested_format = NESTED_EPT
        self.mtf_armed = False
        """An instruction has been started since the entry, so the next boundary is its end."""

    def configure(self) -> None:
        """Look at the controls (after they changed)."""
        read = self.vmcs.read
        pin, self._primary = read(Field.PIN_BASED_VM_EXEC_CONTROL), self._read_primary()
        self._secondary = 0
        if self._primary & vmx.PROC_SECONDARY:
            self._secondary = read(Field.SECONDARY_VM_EXEC_CONTROL)
        has_ept = self._secondary & vmx.PROC2_EPT
        self.ept_pointer = read(Field.EPT_POINTER) if has_ept else None
        self._exits_on_interrupt = bool(pin & vmx.PIN_EXTERNAL_INTERRUPT)
        self._exits_on_nmi = bool(pin & vmx.PIN_NMI)
        self._exceptions = read(Field.EXCEPTION_BITMAP)
        self._fault_mask = read(Field.PAGE_FAULT_ERROR_CODE_MASK)
        self._fault_match = read(Field.PAGE_FAULT_ERROR_CODE_MATCH)
        self.bus_lock_exits = bool(self._secondary & vmx.PROC2_BUS_LOCK_DETECTION)
        self.mov_dr_exits = bool(self._primary & vmx.PROC_MOV_DR)
        self._exits: dict[str, int] = dict(_ALWAYS)
        for word, table in ((self._primary, _BY_PRIMARY), (self._secondary, _BY_SECONDARY)):
            self._exits |= {name: reason for name, (bit, reason) in table.items() if word & bit}
        self._disabled = {name for name, bit in _ENABLED_BY if not self._secondary & bit}
        for name in self._disabled:
            self._exits.pop(name, None)
        if self._secondary & vmx.PROC2_INVPCID and self._primary & vmx.PROC_INVLPG:
            self._exits["invpcid"] = ExitReason.INVPCID
        self._cr_masks = {
            0: (read(Field.CR0_GUEST_HOST_MASK), read(Field.CR0_READ_SHADOW)),
            4: (read(Field.CR4_GUEST_HOST_MASK), read(Field.CR4_READ_SHADOW)),
        }
        targets = range(Field.CR3_TARGET_VALUE0, Field.CR3_TARGET_VALUE3 + 1, 2)
        self._cr3_targets = {read(f) for f in targets[: read(Field.CR3_TARGET_COUNT)]}
        self._configure_bitmaps()
        offsetting = self._primary & vmx.PROC_TSC_OFFSETTING
        self.tsc_offset = read(Field.TSC_OFFSET) if offsetting else 0

    def _read_primary(self) -> int:
        primary = self.vmcs.read(Field.CPU_BASED_VM_EXEC_CONTROL)
        watches = WATCH_MONITOR_TRAP if primary & vmx.PROC_MONITOR_TRAP_FLAG else 0
        watches |= WATCH_NMI_WINDOW if primary & vmx.PROC_NMI_WINDOW else 0
        watches |= WATCH_INTERRUPT_WINDOW if primary & vmx.PROC_INTERRUPT_WINDOW else 0
        watches |= WATCH_PAUSE if primary & vmx.PROC_PAUSE else 0
        self.watches = watches
        return primary

    def _configure_bitmaps(self) -> None:
        read = self.vmcs.read
        self._io_bitmap: tuple[memoryview, memoryview] | None = None
        self.io_exits = bool(self._primary & vmx.PROC_UNCONDITIONAL_IO)
        if self._primary & vmx.PROC_IO_BITMAPS:
            self.io_exits = False
            self._io_bitmap = (
                self._page(read(Field.IO_BITMAP_A)),
                self._page(read(Field.IO_BITMAP_B)),
            )
        self._msr_bitmap: memoryview | None = None
        if self._primary & vmx.PROC_MSR_BITMAPS:
            self._msr_bitmap = self._page(read(Field.MSR_BITMAP))

    def _page(self, physical: int) -> memoryview:
        """A page of physical memory, as it stands at each look."""
        host = self._core.bus.host(physical)
        if host is None:
            return memoryview(bytes(4096))  # no RAM there: nothing set
        return memoryview((ctypes.c_ubyte * 4096).from_address(host)).cast("B")

    # -- exceptions and interrupts -----------------------------------------------------------------

    def intercept_exception(
        self, vector: int, error_code: int | None, payload: int, kind: int, length: int
    ) -> None:
        wanted = self._exceptions >> vector & 1
        if vector == _PF:
            # SDM 3C, "Exception Bitmap": the error-code mask can turn the bit round.
            matches = (error_code or 0) & self._fault_mask == self._fault_match
            wanted = wanted if matches else not wanted
        if not wanted:
            return
        if vector == _DF:
            self.vectoring_info = 0  # as for the triple fault below
        information = vmx.EVENT_VALID | kind << 8 | vector
        is_real = not self._core.state.cr0 & CR0_PE
        if error_code is not None and has_error_code(vector) and not is_real:
            information |= vmx.EVENT_ERROR_CODE
        qualification = payload & ~PAYLOAD_ENABLED_BREAKPOINT
        length = length if kind != HARDWARE_EXCEPTION else 0
        self._deliver(VmExit(_EXCEPTION, qualification, length, information, error_code or 0))

    def intercept_triple_fault(self) -> NoReturn:
        # SDM 3C, "Information for VM Exits That Occur During Event Delivery": this one does not.
        self.vectoring_info = 0
        self._leave(ExitReason.TRIPLE_FAULT)

    def intercept_interrupt(self) -> None:
        if self._exits_on_interrupt:
            self._leave(ExitReason.EXTERNAL_INTERRUPT)

    def intercept_nmi(self) -> None:
        if self._exits_on_nmi:
            information = vmx.EVENT_VALID | NMI << 8 | 2
            self._leave(ExitReason.EXCEPTION_OR_NMI, interruption_info=information)

    def intercept_boundary(self, before_traps: bool) -> None:
        watches = self.watches
        if before_traps:
            if watches & WATCH_MONITOR_TRAP:
                if self.mtf_armed:
                    self._leave(ExitReason.MONITOR_TRAP_FLAG)
                self.mtf_armed = True
            return
        state = self._core.state
        if watches & WATCH_NMI_WINDOW and not state.nmi_blocked and not state.interrupt_shadow:
            self._leave(ExitReason.NMI_WINDOW)
        if (
            watches & WATCH_INTERRUPT_WINDOW
            and not state.interrupt_shadow
            and state.system_flags & _RFLAGS_IF
        ):
            self._leave(ExitReason.INTERRUPT_WINDOW)

    # -- instructions ------------------------------------------------------------------------------

    def intercept(self, instruction: str, length: int, operand: int = 0) -> None:
        reason = self._exits.get(instruction)
        if reason is None:
            if instruction in self._disabled:
                raise Fault(_UD)
            return
        exit = VmExit(reason, operand, length)
        if instruction in HAS_OPERANDS:
            exit.qualification, exit.instruction_information = describe(self._core)
        raise Leave(exit)

    def intercept_io(
        self,
        port: int,
        size: int,
        is_input: bool,
        length: int,
        string: int = 0,
        linear: int = 0,
    ) -> None:
        if self.io_exits or (self._io_bitmap is not None and self._is_port_set(port, size)):
            qualification = size - 1 | is_input << 3 | string | port << 16
            raise Leave(VmExit(_IO, qualification, length, guest_linear=linear))

    def _is_port_set(self, port: int, size: int) -> bool:
        bitmaps = self._io_bitmap
        assert bitmaps is not None
        if port + size > 0x10000:  # wraps around: exits in any case
            return True
        return any(_has_bit(bitmaps[p >> 15], p & 0x7FFF) for p in range(port, port + size))

    def intercept_msr(self, index: int, is_write: bool, length: int) -> None:
        bitmap = self._msr_bitmap
        if bitmap is not None:
            if index <= _MSR_LOW_LAST:
                number = index
            elif _MSR_HIGH_FIRST <= index <= _MSR_HIGH_LAST:
                number = (index & _MSR_LOW_LAST) + 0x2000
            else:
                number = -1
            if number >= 0 and not _has_bit(bitmap, number + (0x4000 if is_write else 0)):
                return
        raise Leave(VmExit(_WRMSR if is_write else _RDMSR, 0, length))

    def intercept_dr(self, register: int, is_read: bool, gpr: int, length: int) -> None:
        if self.mov_dr_exits:
            self._leave(ExitReason.MOV_DR, register | is_read << 4 | gpr << 8, length)

    # -- control registers (SDM 3C, "Changes to Instruction Behavior in VMX Non-Root Operation") ---

    def read_cr(self, register: int, gpr: int, length: int) -> int:
        state = self._core.state
        exiting = 0
        if register in self._cr_masks:
            mask, shadow = self._cr_masks[register]
            word = state.cr0 if register == 0 else state.cr4
            return word & ~mask | shadow & mask
        if register == 3:
            exiting, word = vmx.PROC_CR3_STORE, state.cr3
        else:
            exiting, word = vmx.PROC_CR8_STORE, state.cr8
        if self._primary & exiting:
            self._leave(ExitReason.CR_ACCESS, register | 1 << 4 | gpr << 8, length)
        return word

    def write_cr(self, register: int, source: int, gpr: int, length: int) -> int:
        state = self._core.state
        if register in self._cr_masks:
            mask, shadow = self._cr_masks[register]
            wanted = (source ^ shadow) & mask
            word = state.cr0 if register == 0 else state.cr4
            loaded = source & ~mask | word & mask
        else:
            loaded = source
            if register == 3:
                wanted = self._primary & vmx.PROC_CR3_LOAD and source not in self._cr3_targets
            else:
                wanted = self._primary & vmx.PROC_CR8_LOAD
        if wanted:
            self._leave(ExitReason.CR_ACCESS, register | gpr << 8, length)
        return loaded

    def write_cr0_part(self, source: int, is_clts: bool, length: int) -> int | None:
        cr0 = self._core.state.cr0
        mask, shadow = self._cr_masks[0]
        if is_clts:
            if not mask & CR0_TS:
                return cr0 & ~CR0_TS
            if shadow & CR0_TS:
                self._leave(ExitReason.CR_ACCESS, 2 << 4, length)
            return None
        source &= _MACHINE_STATUS_WORD
        changed = (source ^ shadow) & mask & _MACHINE_STATUS_WORD
        # LMSW can set PE and never clears it, so a PE that is 0 in the source counts for nothing.
        if changed & ~CR0_PE or changed & CR0_PE & source:
            self._leave(ExitReason.CR_ACCESS, 3 << 4 | source << 16, length)
        written = _MACHINE_STATUS_WORD & ~mask & ~(CR0_PE & cr0)
        return cr0 & ~written | source & written

    def intercept_task_switch(self, selector: int, source: int, length: int) -> NoReturn:
        self._leave(ExitReason.TASK_SWITCH, selector | source << 30, length)

    # -- bus locks and EPT -------------------------------------------------------------------------

    def before_bus_lock(self) -> None:
        """VMX looks only afterwards."""

    def bus_lock_exit(self) -> None:
        if self.bus_lock_exits:
            # Bit 26 comes with reason 74 too (SDM's VM-exit 74; KVM accepts both).
            self._leave(ExitReason.BUS_LOCK | vmx.REASON_BUS_LOCK)

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        qualification = access | allowed << 3
        if linear is not None:
            qualification |= 1 << 7 | (0 if is_walk else 1 << 8)
        exit = VmExit(ExitReason.EPT_VIOLATION, qualification, guest_physical=guest_physical)
        exit.guest_linear = linear or 0
        self._deliver(exit)

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        self._deliver(VmExit(ExitReason.EPT_MISCONFIGURATION, guest_physical=guest_physical))

    # -- leaving -----------------------------------------------------------------------------------

    def _leave(
        self,
        reason: int,
        qualification: int = 0,
        length: int = 0,
        interruption_info: int = 0,
        error_code: int = 0,
    ) -> NoReturn:
        self._deliver(VmExit(reason, qualification, length, interruption_info, error_code))

    def _deliver(self, exit: VmExit) -> NoReturn:
        if self.vectoring_info:
            exit.vectoring_info = self.vectoring_info
            exit.vectoring_error_code = self.vectoring_error_code
            if self.vectoring_info >> 8 & 7 > HARDWARE_EXCEPTION:
                exit.instruction_length = self.vectoring_length
            self.vectoring_info = 0
        raise Leave(exit)


_EXCEPTION: Final = int(ExitReason.EXCEPTION_OR_NMI)
_IO: Final = int(ExitReason.IO_INSTRUCTION)
_RDMSR: Final = int(ExitReason.RDMSR)
_WRMSR: Final = int(ExitReason.WRMSR)
