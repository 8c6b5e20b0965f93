"""The matrix's guests directly on VMX and SVM, the test being the hypervisor.

Second-stage tables map memory to itself; under EPT a page's type stands where the bare processor
has an MTRR.
"""

from __future__ import annotations

import struct

from tests.kvm.matrix import modes
from tests.kvm.matrix.exits_model import Exit, Wish
from tests.kvm.matrix.model import BD, DB, Event
from tests.kvm.matrix.modes import Mode
from tests.kvm.matrix.surface import ENOUGH, Bare, Start, load_system_registers
from tests.processor.vmx.machine import ENTRY, EXIT, PIN, PRIMARY
from trapline.arch import paging, registers, svm, vmx
from trapline.arch.svm import ExitCode, Intercept
from trapline.arch.vmcs import Field
from trapline.arch.vmx import ExitReason
from trapline.kvm import Sregs
from trapline.processor import Vmcb, Vmcs, enter, enter_svm

_TABLES, _LEAVES = 0x100000, 0x103000
NPT = paging.PTE_P | paging.PTE_W | paging.PTE_U
EPT = paging.EPT_READ | paging.EPT_WRITE | paging.EPT_EXECUTE
_POINTER = 6 | 3 << 3
_GD = 1 << 13
_DB_BIT = 1 << DB
_HOST = {
    Field.HOST_CR0: registers.CR0_PE | registers.CR0_ET | registers.CR0_NE | registers.CR0_PG,
    Field.HOST_CR4: registers.CR4_PAE | registers.CR4_VMXE,
    Field.HOST_IA32_EFER: registers.EFER_LMA | registers.EFER_LME,
    Field.HOST_IA32_PAT: paging.PAT_RESET,
    Field.HOST_CS_SELECTOR: 0x08,
    Field.HOST_SS_SELECTOR: 0x10,
    Field.HOST_TR_SELECTOR: 0x18,
}


class Nested(Bare):
    """A guest with nested paging, and what leaves it among what it meets."""

    def __init__(self, vendor: str, engine: str, mode: Mode, cpl: int) -> None:
        super().__init__(vendor, engine, mode, cpl)
        self.wish = Wish()
        self._met: list[Event | Exit] = []
        self._at = self._code_hits = 0
        self.write_tables()

    def entry(self, page: int, entry: int) -> None:
        """The second stage's entry for a page of guest-physical memory."""
        self.memory.write(_LEAVES + 8 * page, struct.pack("<Q", entry))

    def write_tables(self, flags: int = NPT) -> None:
        for level in range(3):
            at = _TABLES + 0x1000 * level
            self.memory.write(at, struct.pack("<Q", at + 0x1000 | flags))

    def run_with(self, start: Start, wish: Wish) -> list[Event | Exit]:
        """Handlers entered and exits taken, in order."""
        self.wish, self._met, self._code_hits = wish, [], start.code_hits
        self._at = self.place(start.code) + self.mode.code_offset
        self.run(start)
        return self._met

    def run_first(self, start: Start) -> None:
        """Get ready only: the test itself enters."""
        self._at = self.place(start.code) + self.mode.code_offset
        self.begin(start, self.registers(start, self._at))

    def go(self) -> None:
        """Until a handler halts; what leaves the guest before is noted and passed."""
        for _ in range(ENOUGH):
            exit = self.leave()
            if exit is None:
                return
            self._met.append(exit)
        raise AssertionError(f"the guest leaves for ever: {self._met[-1]}")

    def leave(self) -> Exit | None:
        """Enter once; None at a handler's HLT."""
        raise NotImplementedError

    def look(self, at: int) -> Event:
        event = super().look(at)
        self._met.append(event)
        return event


class Vmx(Nested):
    """Intel."""

    def __init__(self, engine: str, mode: Mode, cpl: int) -> None:
        super().__init__("intel", engine, mode, cpl)
        self.vmcs = Vmcs()
        self.write_tables(EPT)
        for page in modes.EVERY_PAGE:
            kind = modes.MTRR_PAGES.get(page - modes.DATA >> 12, 6)
            self.entry(page >> 12, page | EPT | kind << 3)
        entry = ENTRY if mode.is_long else ENTRY & ~vmx.ENTRY_IA32E_GUEST
        self.vmcs.load(self.core)
        for field, word in {
            Field.PIN_BASED_VM_EXEC_CONTROL: PIN,
            Field.CPU_BASED_VM_EXEC_CONTROL: PRIMARY,
            Field.VM_EXIT_CONTROLS: EXIT,
            Field.VM_ENTRY_CONTROLS: entry,
            Field.EPT_POINTER: _TABLES | _POINTER,
            Field.GUEST_IA32_PAT: modes.PAT,
            **_HOST,
        }.items():
            self.vmcs.write(field, word)

    def begin(self, start: Start, registers_: dict[str, int]) -> None:
        vmcs, state = self.vmcs, self.state
        secondary = vmx.PROC2_EPT | vmx.PROC2_UNRESTRICTED_GUEST
        secondary |= vmx.PROC2_BUS_LOCK_DETECTION if self.wish.bus_lock else 0
        vmcs.write(Field.SECONDARY_VM_EXEC_CONTROL, secondary)
        vmcs.write(Field.EXCEPTION_BITMAP, _DB_BIT if self.wish.db else 0)
        sregs = modes.start(self.mode, self.cpl, Sregs())
        load_system_registers(self.core, sregs, self.cpl)
        disabled = registers.CR0_CD if start.is_cache_disabled else 0
        vmcs.write(Field.GUEST_CR0, sregs.cr0 | disabled)
        vmcs.write(Field.GUEST_CR4, sregs.cr4 | registers.CR4_VMXE)
        if self.mode.paging == "PAE":
            for i in range(4):
                word = int.from_bytes(self.memory.read(modes.TABLES + 8 * i, 8), "little")
                vmcs.write(Field.GUEST_PDPTR0 + 2 * i, word)
        for name, word in registers_.items():
            if name == "rflags":
                vmcs.write(Field.GUEST_RFLAGS, word)
            else:
                setattr(state, name, word)
        state.dr0, state.dr1, state.dr2, state.dr3 = start.breakpoints
        state.dr6, state.test_ctrl = start.dr6, start.test_ctrl
        vmcs.write(Field.GUEST_DR7, start.dr7)
        vmcs.write(Field.GUEST_IA32_DEBUGCTL, start.debugctl)
        vmcs.write(Field.GUEST_PENDING_DBG_EXCEPTIONS, 0)
        vmcs.write(Field.GUEST_INTERRUPTIBILITY_INFO, 0)
        vmcs.write(Field.GUEST_ACTIVITY_STATE, 0)

    def leave(self) -> Exit | None:
        exit, vmcs, state = enter(self.core, self.vmcs), self.vmcs, self.state
        if exit.reason == ExitReason.HLT:
            state.rip += exit.instruction_length
            return None
        assert exit.reason >> 31 == 0, vmcs.complaint
        pending = vmcs.read(Field.GUEST_PENDING_DBG_EXCEPTIONS)
        words = exit.interruption_info, exit.qualification
        has_gd = bool(state.dr7 & _GD)
        found = Exit(exit.reason, words, state.rip - self._at, state.dr6, has_gd, pending)
        if exit.qualification & BD:
            vmcs.write(Field.GUEST_DR7, state.dr7 & ~_GD)
        if exit.qualification & self._code_hits:
            vmcs.write(Field.GUEST_RFLAGS, vmcs.read(Field.GUEST_RFLAGS) | registers.RFLAGS_RF)
        if exit.interruption_info:  # C.3, check 2: as vmx_vcpu_run() with a debugger
            vmcs.write(Field.GUEST_INTERRUPTIBILITY_INFO, 0)
        return found


class Svm(Nested):
    """AMD; DEBUGCTL is the guest's own (LBR virtualization) unless a test says otherwise."""

    def __init__(self, engine: str, mode: Mode, cpl: int) -> None:
        super().__init__("amd", engine, mode, cpl)
        self.vmcb = Vmcb()
        self.vmcb.load(self.core)
        for page in modes.EVERY_PAGE:
            self.entry(page >> 12, page | NPT)
        for number in (Intercept.VMRUN, Intercept.HLT, Intercept.SHUTDOWN, Intercept.INTR):
            self.vmcb.intercept(number)
        for name, word in {
            "asid": 1,
            "nested_ctl": svm.NESTED_CTL_NP,
            "nested_cr3": _TABLES,
            "virt_ext": svm.VIRT_EXT_LBR,
        }.items():
            self.vmcb.write(name, word)

    def begin(self, start: Start, registers_: dict[str, int]) -> None:
        vmcb, state = self.vmcb, self.state
        vmcb.intercept(Intercept.BUS_LOCK, self.wish.bus_lock)
        vmcb.write("intercept_2", _DB_BIT if self.wish.db else 0)
        vmcb.bus_lock_counter = self.wish.threshold
        sregs = modes.start(self.mode, self.cpl, Sregs())
        load_system_registers(self.core, sregs, self.cpl)
        disabled = registers.CR0_CD if start.is_cache_disabled else 0
        for name, word in {
            "cpl": self.cpl,
            "cr0": sregs.cr0 | disabled,
            "efer": sregs.efer | registers.EFER_SVME,
            "g_pat": modes.PAT,
            "dr6": start.dr6,
            "dr7": start.dr7,
            "dbgctl": start.debugctl,
            "int_state": 0,
        }.items():
            vmcb.write(name, word)
        for name, word in registers_.items():
            if name == "rflags":
                vmcb.write(name, word)
            else:
                setattr(state, name, word)
        state.dr0, state.dr1, state.dr2, state.dr3 = start.breakpoints

    def leave(self) -> Exit | None:
        exit, vmcb, state = enter_svm(self.core, self.vmcb), self.vmcb, self.state
        if exit.code == ExitCode.HLT:
            state.rip = exit.next_rip
            return None
        assert exit.code != svm.EXIT_INVALID, vmcb.complaint
        words, has_gd = (exit.info_1, exit.info_2), bool(state.dr7 & _GD)
        found = Exit(exit.code, words, state.rip - self._at, state.dr6, has_gd)
        if exit.code == ExitCode.BUS_LOCK:
            vmcb.bus_lock_counter = 1
        elif state.dr6 & self._code_hits:
            vmcb.write("rflags", vmcb.read("rflags") | registers.RFLAGS_RF)
        return found
