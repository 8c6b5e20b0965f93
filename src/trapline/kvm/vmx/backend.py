"""One vCPU on VMX: the VMCS behind everything the hypervisor asks of a processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from trapline.arch import cpuid, msr, registers, vmx
from trapline.arch.descriptor import SystemType
from trapline.arch.exception import Vector
from trapline.arch.vmcs import Field
from trapline.arch.vmx import EventType
from trapline.kvm import abi, exits
from trapline.kvm.backend import Answer
from trapline.kvm.core_backend import CoreBackend
from trapline.kvm.hypercall import VMCALL
from trapline.kvm.mmu import Slots
from trapline.kvm.silicon import Silicon
from trapline.kvm.structures import Dtable, Segment
from trapline.kvm.vmx import bus_lock, controls
from trapline.kvm.vmx.ept import pointer
from trapline.kvm.vmx.exit_table import HANDLERS
from trapline.kvm.vmx.vectoring import requeue
from trapline.processor import Core, Vmcs, VmFail, enter

if TYPE_CHECKING:
    from trapline.kvm.events import ExceptionQueue
    from trapline.kvm.vcpu import SoftwareVcpu

_FIELDS: Final = {
    name: tuple(
        Field[f"GUEST_{register}_{part}"] for part in ("SELECTOR", "BASE", "LIMIT", "AR_BYTES")
    )
    for name, register in (
        ("cs", "CS"), ("ds", "DS"), ("es", "ES"), ("fs", "FS"), ("gs", "GS"), ("ss", "SS"),
        ("tr", "TR"), ("ldt", "LDTR"),
    )
}  # fmt: skip
_UNUSABLE: Final = 1 << 16
_ACCESSED: Final = 1
_SYSTEM_TYPE: Final = 0xF
_BUS_LOCK: Final = vmx.REASON_BUS_LOCK
_BASIC: Final = vmx.REASON_BASIC
_SOFT_EXCEPTIONS: Final = (Vector.BP, Vector.OF)
_CR0_NOT_IN_HARDWARE: Final = registers.CR0_NW | registers.CR0_CD
_CR0_ALWAYS: Final = registers.CR0_NE
_MASK_64: Final = (1 << 64) - 1


class VmxBackend(CoreBackend):
    """A core and the VMCS that is current on it, for good."""

    hypercall = VMCALL

    def __init__(self, core: Core, slots: Slots, platform: Silicon, bus_lock_exits: bool) -> None:
        super().__init__(core, slots, platform)
        self.vmcs = Vmcs()
        self._bitmap = controls.MsrBitmap()
        controls.fill(self.vmcs, self._bitmap.address, pointer(self._tables.root), bus_lock_exits)
        self.vmcs.load(core)
        self.set_tsc(0)

    # -- running --------------------------------------------------------------------------------

    def enter(self, vcpu: SoftwareVcpu) -> Answer:
        if vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
            # Entry refuses TF with blocking by STI or MOV SS unless BS is pending
            # (vmx_vcpu_run()).
            self.set_interrupt_shadow(0)
        try:
            exit = enter(self.core, self.vmcs)
        except VmFail as failure:
            return exits.FailEntry(failure.error)
        finally:
            vcpu.in_guest = False
        # Now, as the program may be killed before it comes back here.
        self.core.hand_over_bus_locks()
        if exit.reason & vmx.REASON_ENTRY_FAILURE:
            return exits.FailEntry(exit.reason)  # what was to be injected still is
        events = vcpu.events
        if events.needs_reinjection:
            events.delivered()
        if exit.vectoring_info:
            requeue(vcpu, self, exit)
        reason = exit.reason
        handler = HANDLERS.get(reason & _BASIC)
        if handler is None:
            data = [reason]
            return exits.InternalError(abi.INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, data)
        answer = handler(vcpu, self, exit)
        return bus_lock.report(vcpu, answer) if exit.reason & _BUS_LOCK else answer

    def reload_memory(self) -> None:
        self._tables = self._platform.tables(self.slots)
        self.vmcs.write(Field.EPT_POINTER, pointer(self._tables.root))
        # The old tables' memory may come back as other tables at the same address.
        self.core.memory.flush_frames()

    # -- events ---------------------------------------------------------------------------------

    def inject_exception(self, exception: ExceptionQueue) -> None:
        """vmx_inject_exception()."""
        vmcs, kind = self.vmcs, EventType.HARDWARE_EXCEPTION
        information = vmx.EVENT_VALID | exception.vector
        # Real mode has no error codes (kvm_inject_exception).
        if exception.has_error_code and self.core.state.cr0 & registers.CR0_PE:
            information |= vmx.EVENT_ERROR_CODE
            vmcs.entry_error_code = exception.error_code & 0xFFFF
        if exception.vector in _SOFT_EXCEPTIONS:
            kind = EventType.SOFTWARE_EXCEPTION
            vmcs.entry_length = self.instruction_length
        vmcs.entry_info = information | kind << vmx.EVENT_TYPE_SHIFT
        self._wake()

    def inject_interrupt(self, vector: int, is_soft: bool) -> None:
        kind = EventType.SOFTWARE_INTERRUPT if is_soft else EventType.EXTERNAL_INTERRUPT
        if is_soft:
            self.vmcs.entry_length = self.instruction_length
        self.vmcs.entry_info = vmx.event(vector, kind)
        self._wake()

    def inject_nmi(self) -> None:
        self.vmcs.entry_info = vmx.event(Vector.NMI, EventType.NMI)
        self._wake()

    def drop_injection(self) -> None:
        self.vmcs.entry_info = 0

    def _wake(self) -> None:
        """vmx_clear_hlt()."""
        if self.core.state.activity == vmx.Activity.HLT:
            self.vmcs.write(Field.GUEST_ACTIVITY_STATE, vmx.Activity.ACTIVE)

    def open_interrupt_window(self, wanted: bool) -> None:
        self._set_control(Field.CPU_BASED_VM_EXEC_CONTROL, vmx.PROC_INTERRUPT_WINDOW, wanted)

    def open_nmi_window(self, wanted: bool) -> None:
        self._set_control(Field.CPU_BASED_VM_EXEC_CONTROL, vmx.PROC_NMI_WINDOW, wanted)

    def _set_control(self, field: Field, bits: int, wanted: bool) -> None:
        old = self.vmcs.read(field)
        new = old | bits if wanted else old & ~bits
        if new != old:
            self.vmcs.write(field, new)

    def get_interrupt_shadow(self) -> int:
        shadow = self.core.state.interrupt_shadow
        sti = abi.SHADOW_INT_STI if shadow & vmx.INTERRUPTIBILITY_STI else 0
        return sti | (abi.SHADOW_INT_MOV_SS if shadow & vmx.INTERRUPTIBILITY_MOV_SS else 0)

    def set_interrupt_shadow(self, shadow: int) -> None:
        blocking = vmx.INTERRUPTIBILITY_NMI if self.core.state.nmi_blocked else 0
        if shadow & abi.SHADOW_INT_MOV_SS:
            blocking |= vmx.INTERRUPTIBILITY_MOV_SS
        elif shadow & abi.SHADOW_INT_STI:
            blocking |= vmx.INTERRUPTIBILITY_STI
        self.vmcs.write(Field.GUEST_INTERRUPTIBILITY_INFO, blocking)

    # -- registers ------------------------------------------------------------------------------

    def set_rflags(self, rflags: int) -> None:
        self.vmcs.write(Field.GUEST_RFLAGS, rflags)

    def set_rip(self, rip: int) -> None:
        self.vmcs.write(Field.GUEST_RIP, rip & _MASK_64)

    def get_segment(self, name: str) -> Segment:
        segment = Segment.from_attributes(*(self.vmcs.read(field) for field in _FIELDS[name]))
        if segment.unusable:
            segment.present = 0  # vmx_get_segment(): as much as an unusable segment says
        return segment

    def set_segment(self, name: str, segment: Segment) -> None:
        rights = segment.attributes
        if segment.unusable or not segment.present:
            rights |= _UNUSABLE
        if name != "ldt":
            rights |= _ACCESSED  # __vmx_set_segment(): entry asks for it
        words = (segment.selector, segment.base, segment.limit, rights)
        for field, word in zip(_FIELDS[name], words, strict=True):
            self.vmcs.write(field, word)

    def get_table(self, name: str) -> Dtable:
        register = f"GUEST_{name.upper()}R_"
        read = self.vmcs.read
        return Dtable(read(Field[register + "BASE"]), read(Field[register + "LIMIT"]))

    def set_table(self, name: str, table: Dtable) -> None:
        register = f"GUEST_{name.upper()}R_"
        self.vmcs.write(Field[register + "BASE"], table.base)
        self.vmcs.write(Field[register + "LIMIT"], table.limit)

    def get_cr0(self) -> int:
        owned, hardware = controls.CR0_GUEST_OWNED, self.vmcs.read(Field.GUEST_CR0)
        return self.vmcs.read(Field.CR0_READ_SHADOW) & ~owned | hardware & owned

    def set_cr0(self, cr0: int) -> None:
        """vmx_set_cr0(), unrestricted guest."""
        self.vmcs.write(Field.CR0_READ_SHADOW, cr0)
        self.vmcs.write(Field.GUEST_CR0, cr0 & ~_CR0_NOT_IN_HARDWARE | _CR0_ALWAYS)

    def get_cr4(self) -> int:
        owned, hardware = controls.CR4_GUEST_OWNED, self.vmcs.read(Field.GUEST_CR4)
        return self.vmcs.read(Field.CR4_READ_SHADOW) & ~owned | hardware & owned

    def set_cr4(self, cr4: int) -> None:
        self.flush_guest(cr4 ^ self.get_cr4())
        self.vmcs.write(Field.CR4_READ_SHADOW, cr4)
        self.vmcs.write(Field.GUEST_CR4, cr4 | registers.CR4_VMXE)

    def set_cr3(self, cr3: int) -> None:
        self.flush_guest()
        self.vmcs.write(Field.GUEST_CR3, cr3)

    def set_efer(self, efer: int) -> None:
        is_long = bool(efer & registers.EFER_LMA)
        if is_long and not self.core.state.efer & registers.EFER_LMA:
            # enter_lmode(): entry asks for a 64-bit TSS, and the guest may load TR later.
            rights = self.vmcs.read(Field.GUEST_TR_AR_BYTES)
            busy = rights & ~_SYSTEM_TYPE | SystemType.TSS_BUSY
            self.vmcs.write(Field.GUEST_TR_AR_BYTES, busy)
        self.vmcs.write(Field.GUEST_IA32_EFER, efer)
        self._set_control(Field.VM_ENTRY_CONTROLS, vmx.ENTRY_IA32E_GUEST, is_long)

    def load_pdptes(self) -> bool:
        pdptes = self.read_pdptes()
        if pdptes is None:
            return False
        for i, pdpte in enumerate(pdptes):
            self.vmcs.write(Field.GUEST_PDPTR0 + 2 * i, pdpte)
        return True

    def set_breakpoints(self, db: Sequence[int] | None, dr7: int) -> None:
        state = self.core.state
        if db is not None:
            state.dr0, state.dr1, state.dr2, state.dr3 = db
        self.vmcs.write(Field.GUEST_DR7, dr7)  # the entry looks at the addresses too

    def intercept_debug_registers(self, wanted: bool) -> None:
        """Off, the guest's MOV DR does not exit: its registers are the processor's own."""
        self._set_control(Field.CPU_BASED_VM_EXEC_CONTROL, vmx.PROC_MOV_DR, wanted)

    def update_exception_bitmap(self, guest_debug: int) -> None:
        self.vmcs.write(Field.EXCEPTION_BITMAP, controls.exception_bitmap(guest_debug))

    def cpuid_changed(self, vcpu: SoftwareVcpu) -> None:
        """CR4 bits the guest's CPUID does not show are not its own (set_cr4_guest_host_mask);
        instructions it does not show are undefined (vmx_secondary_exec_control)."""
        owned = controls.CR4_GUEST_OWNED
        if not vcpu.control.allows_cr4(registers.CR4_FSGSBASE):
            owned &= ~registers.CR4_FSGSBASE
        self.vmcs.write(Field.CR4_GUEST_HOST_MASK, ~owned)
        for feature, control in controls.BY_CPUID:
            self._set_control(Field.SECONDARY_VM_EXEC_CONTROL, control, vcpu.cpuid.has(feature))

    # -- MSRs -----------------------------------------------------------------------------------

    def get_debugctl(self) -> int:
        return self.vmcs.read(Field.GUEST_IA32_DEBUGCTL)

    def set_debugctl(self, debugctl: int) -> None:
        self.vmcs.write(Field.GUEST_IA32_DEBUGCTL, debugctl)

    def supported_debugctl(self, has_bus_lock_detect: bool, has_rtm: bool) -> int:
        """vmx_get_supported_debugctl(): what both the processor and the guest's CPUID have."""
        model = self.core.model
        supported = 0
        if has_bus_lock_detect and model.has(cpuid.BUS_LOCK_DETECT):
            supported |= msr.DEBUGCTL_BLD
        if has_rtm and model.has(cpuid.RTM):
            supported |= msr.DEBUGCTL_RTM
        return supported

    def set_pat(self, pat: int) -> None:
        self.vmcs.write(Field.GUEST_IA32_PAT, pat)

    def get_tsc(self) -> int:
        return self._processor_tsc() + self.vmcs.read(Field.TSC_OFFSET) & _MASK_64

    def set_tsc(self, tsc: int) -> None:
        self.vmcs.write(Field.TSC_OFFSET, tsc - self._processor_tsc())
