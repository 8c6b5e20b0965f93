"""What leaves an SVM guest: the intercept words, asked by the core through `Guest`.

Looks at the VMCB once, when its controls have changed; every question after that is a few
comparisons.  Nothing here enters a guest.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final, NoReturn

from trapline.arch import svm
from trapline.arch.exception import has_error_code
from trapline.arch.registers import CR0_MP, CR0_PE, CR0_TS, RFLAGS_IF, RFLAGS_RF
from trapline.arch.svm import ExitCode, Intercept
from trapline.processor import debug, exceptions, segment
from trapline.processor.guest import (
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NESTED_NPT,
    NMI,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    WATCH_INTERRUPT_WINDOW,
    WATCH_NMI_WINDOW,
    WATCH_PAUSE,
)
from trapline.processor.state import SEGMENTS
from trapline.processor.svm.exit import SvmExit, SvmLeave

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.svm.vmcb import Vmcb

_DB, _NMI_VECTOR, _PF = 1, 2, 14
_MASK_64: Final = (1 << 64) - 1
_MACHINE_STATUS_WORD: Final = 0xF  # what LMSW writes
_BY_NAME: Final = {
    name.lower(): (int(Intercept[name]), int(ExitCode[name]))
    for name in (
        *("CPUID", "HLT", "INVD", "INVLPG", "INVPCID", "MONITOR", "MWAIT", "PAUSE", "RDPMC"),
        *("RDTSC", "RDTSCP", "RSM", "WBINVD", "XSETBV"),
        *("VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "INVLPGA"),
    )
}
_MOV_CR: Final = 1 << 63  # EXITINFO1, a decode assist: LMSW, SMSW and CLTS leave it clear
_CR0_UNCHECKED: Final = CR0_TS | CR0_MP  # what the selective intercept does not look at
_IO_STRING, _IO_REPEAT = 1 << 4, 1 << 5  # of Guest.intercept_io
_NPF_PRESENT, _NPF_WRITE, _NPF_USER, _NPF_RESERVED, _NPF_FETCH = 1, 2, 4, 8, 16
_NPF_FINAL, _NPF_WALK = 1 << 32, 1 << 33
# EXITINFO2 of a task switch, above its error code (APM 2, "Task Switch Intercept").
_TASK_IRET, _TASK_JUMP, _TASK_ERROR_CODE, _TASK_RF = 1 << 36, 1 << 38, 1 << 44, 1 << 48


def _has_bit(bitmap: memoryview, number: int) -> bool:
    return bool(bitmap[number >> 3] >> (number & 7) & 1)


class SvmGuest:
    """The `Guest` of one VMCB on one core."""

    def __init__(self, core: Core, vmcb: Vmcb) -> None:
        self._core = core
        self.vmcb = vmcb
        self.ept_pointer: int | None = None
        self.nested_format = NESTED_NPT
        self.watches = 0
        self.vectoring_info = 0
        self.vectoring_error_code = self.vectoring_length = 0
        self.tsc_offset = 0
        self.bus_lock_exits = False
        self.bus_lock_threshold = False
        self.has_debugctl = False
        """LBR virtualization: DEBUGCTL is the guest's own."""
        self.mov_dr_exits = False
        self.io_exits = False  # there is always the permission map

    def configure(self) -> None:
        """Look at the controls (after they changed)."""
        read, wants = self.vmcb.read, self.vmcb.intercepts
        is_nested = read("nested_ctl") & svm.NESTED_CTL_NP
        self.ept_pointer = read("nested_cr3") if is_nested else None
        self._control_registers, self._debug_registers = read("intercept_0"), read("intercept_1")
        self.mov_dr_exits = bool(self._debug_registers)
        self._exceptions = read("intercept_2")
        self._exits = {name: code for name, (bit, code) in _BY_NAME.items() if wants(bit)}
        self._on_interrupt, self._on_nmi = wants(Intercept.INTR), wants(Intercept.NMI)
        self._on_icebp, self._on_shutdown = wants(Intercept.ICEBP), wants(Intercept.SHUTDOWN)
        self._on_virtual_interrupt = wants(Intercept.VINTR)
        self._on_task_switch = wants(Intercept.TASK_SWITCH)
        self._selective = wants(Intercept.CR0_SELECTIVE)
        self.bus_lock_threshold = wants(Intercept.BUS_LOCK)
        self._iopm = self._map("iopm_base_pa", svm.IOPM_SIZE, Intercept.IOIO)
        self._msrpm = self._map("msrpm_base_pa", svm.MSRPM_SIZE, Intercept.MSR)
        self.tsc_offset = read("tsc_offset")
        self.has_debugctl = bool(read("virt_ext") & svm.VIRT_EXT_LBR)
        self.watch_virtual_interrupts(read("int_ctl"))

    def _map(self, field: str, size: int, number: int) -> memoryview | None:
        """A permission map as it stands at each look; None where nothing is intercepted."""
        if not self.vmcb.intercepts(number):
            return None
        host = self._core.bus.host(self.vmcb.read(field) & ~0xFFF)
        if host is None:
            return memoryview(bytes(size))  # no RAM there: nothing set
        return memoryview((ctypes.c_ubyte * size).from_address(host)).cast("B")

    def watch_virtual_interrupts(self, int_ctl: int) -> None:
        """V_IRQ or V_NMI may be taken at any boundary from now on."""
        self._int_ctl = int_ctl
        watches = WATCH_INTERRUPT_WINDOW if int_ctl & svm.INT_CTL_V_IRQ else 0
        if int_ctl & svm.INT_CTL_V_NMI and int_ctl & svm.INT_CTL_V_NMI_ENABLE:
            watches |= WATCH_NMI_WINDOW
        watches |= WATCH_PAUSE if self.vmcb.intercepts(Intercept.PAUSE) else 0
        self.watches = watches

    # -- exceptions and interrupts -----------------------------------------------------------------

    def intercept_exception(
        self, vector: int, error_code: int | None, payload: int, kind: int, length: int
    ) -> None:
        if kind == PRIVILEGED_SOFTWARE_EXCEPTION:
            # INT1 has an intercept of its own; that of #DB does not see it.
            if self._on_icebp:
                self._leave(ExitCode.ICEBP, length=length)
            return
        if not self._exceptions >> vector & 1:
            return
        info_1 = info_2 = 0
        if vector == _DB:
            # APM 2, "#DB (Debug)": DR6 and DR7 are saved as the handler would see them.
            debug.record(self._core, payload, kind)
        elif vector == _PF:
            info_2 = payload  # CR2 is not written
        if error_code is not None and has_error_code(vector) and self._core.state.cr0 & CR0_PE:
            info_1 = error_code
        code = svm.exception_code(vector)
        self._leave(code, info_1, info_2, length if kind == SOFTWARE_EXCEPTION else 0)

    def intercept_triple_fault(self) -> None:
        if self._on_shutdown:
            self._leave(ExitCode.SHUTDOWN)

    def intercept_interrupt(self) -> None:
        # With V_INTR_MASKING it is the host's IF that counts, and the host has it set.
        masks = self._int_ctl & svm.INT_CTL_V_INTR_MASKING
        if self._on_interrupt and (masks or self._core.state.system_flags & RFLAGS_IF):
            self._leave(ExitCode.INTR)

    def intercept_nmi(self) -> None:
        if self._on_nmi:
            self._leave(ExitCode.NMI)

    def intercept_boundary(self, before_traps: bool) -> None:
        """APM 2, "Virtual Interrupts" and "NMI Virtualization": taken as if they were real."""
        state = self._core.state
        if before_traps or state.interrupt_shadow:
            return
        if self.watches & WATCH_NMI_WINDOW and not state.nmi_blocked:
            self._drop(svm.INT_CTL_V_NMI)
            exceptions.deliver(self._core, _NMI_VECTOR, kind=NMI)
            return
        if not self.watches & WATCH_INTERRUPT_WINDOW or not state.system_flags & RFLAGS_IF:
            return
        priority = self._int_ctl >> svm.INT_CTL_V_INTR_PRIORITY_SHIFT & 0xF
        if priority <= state.cr8 and not self._int_ctl & svm.INT_CTL_V_IGNORE_TPR:
            return
        if self._on_virtual_interrupt:
            self._leave(ExitCode.VINTR)
        self._drop(svm.INT_CTL_V_IRQ)
        vector = self.vmcb.read("int_vector") & 0xFF
        exceptions.deliver(self._core, vector, kind=EXTERNAL_INTERRUPT)

    def _drop(self, bit: int) -> None:
        self.vmcb.write("int_ctl", self.vmcb.read("int_ctl") & ~bit)

    # -- instructions ------------------------------------------------------------------------------

    def intercept(self, instruction: str, length: int, operand: int = 0) -> None:
        code = self._exits.get(instruction)
        if code is not None:
            self._leave(code, operand, length=length)

    def intercept_io(
        self,
        port: int,
        size: int,
        is_input: bool,
        length: int,
        string: int = 0,
        linear: int = 0,
    ) -> None:
        bitmap = self._iopm
        # The map goes on for three ports beyond the last (APM 2, "IN and OUT Behavior").
        if bitmap is None or not any(_has_bit(bitmap, port + i) for i in range(size)):
            return
        information = is_input | size << 4 | port << 16
        if string & _IO_STRING:
            information |= 1 << 2 | (1 << 3 if string & _IO_REPEAT else 0)
            information |= self._string_operand()
        self._leave(ExitCode.IOIO, information, self._after(length), length)

    def _string_operand(self) -> int:
        """EXITINFO1 of INS and OUTS: the address size and the effective segment."""
        instruction = self._core.instruction
        assert instruction is not None
        bound = next(one for one in instruction.operands if one.kind == "mem")
        return bound.address_width >> 4 << 7 | SEGMENTS.index(bound.segment) << 10

    def intercept_msr(self, index: int, is_write: bool, length: int) -> None:
        bitmap = self._msrpm
        if bitmap is None:
            return
        position = svm.msrpm_position(index)
        if position is None or _has_bit(bitmap, position + is_write):
            self._leave(ExitCode.MSR, int(is_write), length=length)

    def intercept_dr(self, register: int, is_read: bool, gpr: int, length: int) -> None:
        if self._debug_registers >> (register if is_read else 16 + register) & 1:
            base = ExitCode.READ_DR0 if is_read else ExitCode.WRITE_DR0
            self._leave(base + register, gpr, length=length)

    def read_cr(self, register: int, gpr: int, length: int) -> int:
        if self._control_registers >> register & 1:
            instruction = self._core.instruction
            is_mov = instruction is not None and instruction.name == "mov"
            assist = _MOV_CR | gpr if is_mov else 0
            self._leave(ExitCode.READ_CR0 + register, assist, length=length)
        state = self._core.state
        return {0: state.cr0, 3: state.cr3, 4: state.cr4, 8: state.cr8}[register]

    def write_cr(self, register: int, source: int, gpr: int, length: int) -> int:
        if self._control_registers >> 16 + register & 1:
            self._leave(ExitCode.WRITE_CR0 + register, _MOV_CR | gpr, length=length)
        changed = source ^ self._core.state.cr0
        if register == 0 and self._selective and changed & ~_CR0_UNCHECKED:
            self._leave(ExitCode.CR0_SEL_WRITE, _MOV_CR | gpr, length=length)
        return source

    def write_cr0_part(self, source: int, is_clts: bool, length: int) -> int | None:
        cr0 = self._core.state.cr0
        if self._control_registers >> 16 & 1:
            self._leave(ExitCode.WRITE_CR0, length=length)
        if is_clts:
            return cr0 & ~CR0_TS
        if self._selective:  # for LMSW it is not selective
            self._leave(ExitCode.CR0_SEL_WRITE, length=length)
        written = _MACHINE_STATUS_WORD & ~(CR0_PE & cr0)  # LMSW cannot clear PE
        return cr0 & ~written | source & written

    def intercept_task_switch(self, selector: int, source: int, length: int) -> None:
        if self._on_task_switch:
            flags = {1: _TASK_IRET, 2: _TASK_JUMP}.get(source, 0)
            if self._core.state.system_flags & RFLAGS_RF:
                flags |= _TASK_RF
            if self.vectoring_info & svm.EVENT_ERROR_CODE:
                flags |= _TASK_ERROR_CODE | self.vectoring_error_code
            self._leave(ExitCode.TASK_SWITCH, selector, flags)

    # -- bus locks and nested paging ---------------------------------------------------------------

    def before_bus_lock(self) -> None:
        """APM 2, "Bus Lock Threshold": fault-like, when the counter has come to 0."""
        if not self.bus_lock_threshold:
            return
        if self.vmcb.bus_lock_counter:
            self.vmcb.bus_lock_counter -= 1
            return
        self._leave(ExitCode.BUS_LOCK)

    def bus_lock_exit(self) -> None:
        """SVM looks only before."""

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        error = _NPF_USER | (_NPF_PRESENT if allowed else 0)
        error |= (_NPF_WRITE if access & 2 else 0) | (_NPF_FETCH if access & 4 else 0)
        error |= _NPF_WALK if is_walk else _NPF_FINAL
        self._leave(ExitCode.NPF, error, guest_physical)

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        """A reserved bit; whether by a walk is not known here."""
        error = _NPF_USER | _NPF_PRESENT | _NPF_RESERVED | _NPF_FINAL
        self._leave(ExitCode.NPF, error, guest_physical)

    # -- leaving -----------------------------------------------------------------------------------

    def _after(self, length: int) -> int:
        state = self._core.state
        following = state.rip + length
        if following >> 32:  # it may have to wrap around
            following &= _MASK_64 if segment.code_mode(state)[0] == 64 else 0xFFFFFFFF
        return following

    def _leave(self, code: int, info_1: int = 0, info_2: int = 0, length: int = 0) -> NoReturn:
        following = self._after(length) if length else 0
        exit = SvmExit(code, info_1, info_2, next_rip=following)
        information = self.vectoring_info
        if information:
            self.vectoring_info = 0
            if information >> 8 & 7 > 4:  # SVM has one type for all exceptions
                information = information & ~0x700 | HARDWARE_EXCEPTION << 8
            if information & svm.EVENT_ERROR_CODE:
                information |= self.vectoring_error_code << 32
            exit.int_info = information
        raise SvmLeave(exit)
