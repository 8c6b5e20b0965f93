"""One vCPU on SVM: the VMCB behind everything the hypervisor asks of a processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from trapline.arch import cpuid, msr, registers, svm
from trapline.arch import vmcb as layout
from trapline.arch.debug import DR6_ACTIVE_LOW
from trapline.arch.exception import Vector
from trapline.arch.svm import EventType, Intercept
from trapline.kvm import abi, exits
from trapline.kvm.backend import Answer
from trapline.kvm.core_backend import CoreBackend
from trapline.kvm.hypercall import VMMCALL
from trapline.kvm.mmu import Slots
from trapline.kvm.silicon import Silicon
from trapline.kvm.structures import Dtable, Segment
from trapline.kvm.svm import controls
from trapline.kvm.svm.exit_table import HANDLERS
from trapline.kvm.svm.vectoring import requeue
from trapline.processor import Core, SvmExit, Vmcb, enter_svm

if TYPE_CHECKING:
    from trapline.kvm.events import Events, ExceptionQueue
    from trapline.kvm.vcpu import SoftwareVcpu

_MASK_64: Final = (1 << 64) - 1
_ERR: Final = 0xFFFFFFFF  # SVM_EXIT_ERR as KVM reports it
_SOFT_EXCEPTIONS: Final = (Vector.BP, Vector.OF)
_CR0_NOT_IN_HARDWARE: Final = registers.CR0_NW | registers.CR0_CD
_SEGMENTS: Final = {name: name for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr")} | {
    "ldt": "ldtr"
}
_WINDOW: Final = (
    svm.INT_CTL_V_IRQ | svm.INT_CTL_V_IGNORE_TPR | 0xF << svm.INT_CTL_V_INTR_PRIORITY_SHIFT
)


class SvmBackend(CoreBackend):
    """A core and the VMCB that is current on it, for good."""

    hypercall = VMMCALL

    def __init__(
        self, core: Core, slots: Slots, platform: Silicon, bus_lock_threshold: bool
    ) -> None:
        super().__init__(core, slots, platform)
        self.vmcb = Vmcb()
        self.saved_debug = (DR6_ACTIVE_LOW, 0)
        """DR6 and DR7 as the last #VMEXIT saved them, while there is a debugger."""
        self._cr0 = 0
        self._wants_nmi_window = False
        self._injected_at: int | None = None
        """Where the guest stood when this entry injected an exception or a soft interrupt."""
        self._maps = controls.PermissionMaps()
        controls.fill(self.vmcb, self._maps, self._tables.root, bus_lock_threshold)
        self.vmcb.load(core)
        self.set_tsc(0)

    # -- running --------------------------------------------------------------------------------

    def enter(self, vcpu: SoftwareVcpu) -> Answer:
        events = vcpu.events
        if self._wants_nmi_window:
            self._lend_nmi(events)
        try:
            exit = self._run(vcpu) if vcpu.guest_debug else enter_svm(self.core, self.vmcb)
        finally:
            vcpu.in_guest = False
        if exit.code == svm.EXIT_INVALID:
            return exits.FailEntry(_ERR)
        # Now, as the program may be killed before it comes back here.
        self.core.hand_over_bus_locks()
        if self._wants_nmi_window:
            self._take_nmi_back(events)
        injected_at, self._injected_at = self._injected_at, None
        if events.needs_reinjection:
            events.delivered()
        if exit.int_info:
            requeue(vcpu, self, exit, injected_at == self.linear_rip())
        handler = HANDLERS.get(exit.code)
        if handler is None:
            data = [exit.code]
            return exits.InternalError(abi.INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, data)
        return handler(vcpu, self, exit)

    def _run(self, vcpu: SoftwareVcpu) -> SvmExit:
        """With a debugger outside: the guest's MOV DR exit, so its DR6 and DR7 need not be in the
        processor, and what is saved there is the causes alone (svm_vcpu_run)."""
        state = self.core.state
        own, state.dr6 = (state.dr6, state.dr7), DR6_ACTIVE_LOW
        exit = enter_svm(self.core, self.vmcb)
        self.saved_debug = state.dr6, state.dr7
        state.dr6, state.dr7 = own
        return exit

    def _lend_nmi(self, events: Events) -> None:
        """One pending NMI goes to the processor, which knows when it may be taken (vNMI)."""
        if events.nmi_pending:
            events.nmi_pending -= 1
            self._change_int_ctl(0, svm.INT_CTL_V_NMI)

    def _take_nmi_back(self, events: Events) -> None:
        if self.vmcb.read("int_ctl") & svm.INT_CTL_V_NMI:
            self._change_int_ctl(svm.INT_CTL_V_NMI, 0)
            events.nmi_pending += 1
        else:
            self._wants_nmi_window = False
        events.waiting = events.waiting or bool(events.nmi_pending)

    def reload_memory(self) -> None:
        self._tables = self._platform.tables(self.slots)
        self.vmcb.write("nested_cr3", self._tables.root)
        # The old tables' memory may come back as other tables at the same address.
        self.core.memory.flush_frames()

    # -- events ---------------------------------------------------------------------------------

    def inject_exception(self, exception: ExceptionQueue) -> None:
        """svm_inject_exception()."""
        error_code, self._injected_at = None, self.linear_rip()
        # Real mode has no error codes (kvm_inject_exception).
        if exception.has_error_code and self.core.state.cr0 & registers.CR0_PE:
            error_code = exception.error_code
        if exception.vector in _SOFT_EXCEPTIONS:
            self._point_behind_instruction()
        self.vmcb.event_inj = svm.event(exception.vector, EventType.EXCEPTION, error_code)

    def inject_interrupt(self, vector: int, is_soft: bool) -> None:
        kind = EventType.SOFTWARE_INTERRUPT if is_soft else EventType.INTERRUPT
        if is_soft:
            self._injected_at = self.linear_rip()
            self._point_behind_instruction()
        self.vmcb.event_inj = svm.event(vector, kind)

    def _point_behind_instruction(self) -> None:
        """svm_update_soft_interrupt_rip(): the handler returns to nRIP."""
        self.vmcb.write("next_rip", self.core.state.rip + self.instruction_length)

    def drop_injection(self) -> None:
        self.vmcb.event_inj, self._injected_at = 0, None

    def inject_nmi(self) -> None:
        self.vmcb.event_inj = svm.event(Vector.NMI, EventType.NMI)

    def open_interrupt_window(self, wanted: bool) -> None:
        """svm_set_vintr(): a virtual interrupt that is intercepted before it is taken."""
        is_open = self.vmcb.intercepts(Intercept.VINTR)
        if wanted != is_open:
            self.vmcb.intercept(Intercept.VINTR, wanted)
            self._change_int_ctl(_WINDOW, _WINDOW if wanted else 0)

    def open_nmi_window(self, wanted: bool) -> None:
        self._wants_nmi_window = wanted

    def _change_int_ctl(self, clear: int, set_: int) -> None:
        self.vmcb.write("int_ctl", self.vmcb.read("int_ctl") & ~clear | set_)

    def get_interrupt_shadow(self) -> int:
        """svm_get_interrupt_shadow(): SVM does not tell the two apart."""
        both = abi.SHADOW_INT_STI | abi.SHADOW_INT_MOV_SS
        return both if self.core.state.interrupt_shadow else 0

    def set_interrupt_shadow(self, shadow: int) -> None:
        self.vmcb.write("int_state", svm.INT_STATE_SHADOW if shadow else 0)

    # -- registers ------------------------------------------------------------------------------

    def set_rflags(self, rflags: int) -> None:
        self.vmcb.write("rflags", rflags)

    def set_rip(self, rip: int) -> None:
        self.vmcb.write("rip", rip & _MASK_64)

    def get_segment(self, name: str) -> Segment:
        """svm_get_segment()."""
        read, register = self.vmcb.read, _SEGMENTS[name]
        rights = layout.rights_of_attributes(read(f"{register}_attributes"))
        selector, base, limit = (
            read(f"{register}_{part}") for part in ("selector", "base", "limit")
        )
        segment = Segment.from_attributes(selector, base, limit, rights)
        segment.unusable = int(not segment.present)
        if name == "ss":
            segment.dpl = self.core.state.cpl
        return segment

    def set_segment(self, name: str, segment: Segment) -> None:
        """svm_set_segment(); the privilege level goes with SS."""
        rights = segment.attributes
        if segment.unusable:
            rights &= ~(1 << 7)
        words = (segment.selector, layout.attributes_of_rights(rights), segment.limit, segment.base)
        parts = ("selector", "attributes", "limit", "base")
        for part, word in zip(parts, words, strict=True):
            self.vmcb.write(f"{_SEGMENTS[name]}_{part}", word)
        if name == "ss":
            self.vmcb.write("cpl", segment.dpl)

    def get_table(self, name: str) -> Dtable:
        read = self.vmcb.read
        return Dtable(read(f"{name}r_base"), read(f"{name}r_limit"))

    def set_table(self, name: str, table: Dtable) -> None:
        self.vmcb.write(f"{name}r_base", table.base)
        self.vmcb.write(f"{name}r_limit", table.limit)

    def get_cr0(self) -> int:
        hidden = self._cr0 & _CR0_NOT_IN_HARDWARE
        return self.vmcb.read("cr0") | hidden

    def set_cr0(self, cr0: int) -> None:
        """svm_set_cr0(): CD and NW are not for the processor, and while they are set the guest
        is asked at every access."""
        self._cr0 = cr0
        differs = bool(cr0 & _CR0_NOT_IN_HARDWARE)
        self.vmcb.write("cr0", cr0 & ~_CR0_NOT_IN_HARDWARE)
        self.vmcb.intercept(svm.INTERCEPT_READ_CR, differs)
        self.vmcb.intercept(svm.INTERCEPT_WRITE_CR, differs)

    def get_cr4(self) -> int:
        return self.vmcb.read("cr4")

    def set_cr4(self, cr4: int) -> None:
        self.flush_guest(cr4 ^ self.vmcb.read("cr4"))
        self.vmcb.write("cr4", cr4)

    def set_cr3(self, cr3: int) -> None:
        self.flush_guest()
        self.vmcb.write("cr3", cr3)

    def set_efer(self, efer: int) -> None:
        """svm_set_efer(): the processor wants SVME set, the guest does not see it."""
        self.vmcb.write("efer", efer | registers.EFER_SVME)

    def load_pdptes(self) -> bool:
        """VMRUN loads them; here they are only looked at."""
        if self.read_pdptes() is None:
            return False
        self.vmcb.dirty = True
        return True

    def set_breakpoints(self, db: Sequence[int] | None, dr7: int) -> None:
        state = self.core.state
        if db is not None:
            state.dr0, state.dr1, state.dr2, state.dr3 = db
        self.vmcb.write("dr7", dr7)  # VMRUN looks at the addresses too

    def intercept_debug_registers(self, wanted: bool) -> None:
        """Off, the guest's MOV DR does not exit: its registers are the processor's own."""
        self.vmcb.write("intercept_1", controls.EVERY_DEBUG_REGISTER if wanted else 0)

    def update_exception_bitmap(self, guest_debug: int) -> None:
        self.vmcb.write("intercept_2", controls.exception_bitmap(guest_debug))

    def cpuid_changed(self, vcpu: SoftwareVcpu) -> None:
        """Instructions that the guest's CPUID does not show are undefined
        (svm_recalc_instruction_intercepts)."""
        for feature, intercept in controls.BY_CPUID:
            self.vmcb.intercept(intercept, not vcpu.cpuid.has(feature))

    # -- MSRs -----------------------------------------------------------------------------------

    def get_debugctl(self) -> int:
        return self.vmcb.read("dbgctl")

    def set_debugctl(self, debugctl: int) -> None:
        """LBR virtualization is what gives a guest a DEBUGCTL of its own."""
        self.vmcb.write("dbgctl", debugctl)
        self.vmcb.write("virt_ext", svm.VIRT_EXT_LBR if debugctl else 0)

    def supported_debugctl(self, has_bus_lock_detect: bool, has_rtm: bool) -> int:
        """Upstream hides BLD and refuses it; here the guest gets it.  Without LBR virtualization
        a guest has no DEBUGCTL of its own."""
        model = self.core.model
        if not model.has(cpuid.LBRV):
            return 0
        has_bld = has_bus_lock_detect and model.has(cpuid.BUS_LOCK_DETECT)
        return msr.DEBUGCTL_LBR | (msr.DEBUGCTL_BLD if has_bld else 0)

    def set_pat(self, pat: int) -> None:
        self.vmcb.write("g_pat", pat)

    def get_tsc(self) -> int:
        return self._processor_tsc() + self.vmcb.read("tsc_offset") & _MASK_64

    def set_tsc(self, tsc: int) -> None:
        self.vmcb.write("tsc_offset", tsc - self._processor_tsc())
