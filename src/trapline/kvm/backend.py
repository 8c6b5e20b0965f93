"""What VMX and SVM both promise the hypervisor: a processor under each vCPU, and its controls.

`vm` and `vcpu` see silicon through this and through nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm.exits import Exit
from trapline.kvm.mmu import Slots
from trapline.kvm.structures import Dtable, Segment

if TYPE_CHECKING:
    from trapline.kvm.events import ExceptionQueue
    from trapline.kvm.vcpu import SoftwareVcpu

Answer = Exit | None
"""What a handler says: an exit for the VMM, or None to go on with the guest."""

RegisterFile = Any
"""A core's register file: general registers, CR2, DR0-DR3, DR6 and the like by attribute."""


class Platform(Protocol):
    """The processors of one VM and what they share."""

    bus_lock_exits: bool
    """KVM_CAP_X86_BUS_LOCK_EXIT was enabled; for vCPUs made afterwards."""

    @property
    def has_bus_lock_exit(self) -> bool: ...

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The leaves of the processor model, before the hypervisor looks at them."""

    def create(self, vcpu_id: int, slots: Slots) -> Backend: ...

    def forget_code(self, start: int, size: int) -> None:
        """Host memory was changed behind the processors' back: no translation of it is kept."""


class Backend(Protocol):
    """One vCPU's processor and its VMCS or VMCB (KVM's kvm_x86_ops)."""

    @property
    def state(self) -> RegisterFile: ...

    def enter(self, vcpu: SoftwareVcpu) -> Answer:
        """Run the guest until it exits once, and handle that exit."""

    def kick(self) -> None:
        """Have the processor leave the guest soon; from any thread."""

    @property
    def kick_places(self) -> tuple[int, ...]:
        """The bytes of which storing 1 in each does what `kick` does, on the vCPU's thread."""

    def report_counts(self) -> None:
        """Tell the observer of bus locks that native code has only counted."""

    def close(self) -> None: ...

    def keep_alone(self) -> None:
        """In the child of a fork: this processor is the only one that came along."""

    def reload_memory(self) -> None:
        """The slots have changed: take their new tables."""

    # -- events ---------------------------------------------------------------------------------

    def inject_exception(self, exception: ExceptionQueue) -> None: ...

    def inject_interrupt(self, vector: int, is_soft: bool) -> None: ...

    def inject_nmi(self) -> None: ...

    def drop_injection(self) -> None:
        """What was to be delivered at the next entry is not."""

    def interrupt_allowed(self) -> bool: ...

    def nmi_allowed(self) -> bool: ...

    def open_interrupt_window(self, wanted: bool) -> None:
        """Exit as soon as an interrupt could be injected."""

    def open_nmi_window(self, wanted: bool) -> None: ...

    def get_interrupt_shadow(self) -> int:
        """In KVM's SHADOW_INT bits."""

    def set_interrupt_shadow(self, shadow: int) -> None: ...

    def get_nmi_mask(self) -> bool: ...

    def set_nmi_mask(self, masked: bool) -> None: ...

    # -- registers ------------------------------------------------------------------------------

    def get_rflags(self) -> int: ...

    def set_rflags(self, rflags: int) -> None: ...

    def set_rip(self, rip: int) -> None: ...

    def linear_rip(self) -> int: ...

    @property
    def is_64_bit(self) -> bool:
        """64-bit mode; not compatibility mode."""

    def read_gpr(self, name: str) -> int:
        """What an instruction finds in it: outside of 64-bit mode its low half."""

    def get_segment(self, name: str) -> Segment:
        """`name` as in kvm_sregs: cs, ds, es, fs, gs, ss, tr, ldt."""

    def set_segment(self, name: str, segment: Segment) -> None: ...

    def get_table(self, name: str) -> Dtable:
        """gdt or idt."""

    def set_table(self, name: str, table: Dtable) -> None: ...

    def get_cr0(self) -> int: ...

    def set_cr0(self, cr0: int) -> None: ...

    def get_cr4(self) -> int: ...

    def set_cr4(self, cr4: int) -> None: ...

    def set_cr3(self, cr3: int) -> None: ...

    def set_efer(self, efer: int) -> None: ...

    def load_pdptes(self) -> bool:
        """PAE paging: the four PDPTEs at CR3; False if one is malformed."""

    def set_breakpoints(self, db: Sequence[int] | None, dr7: int) -> None:
        """What the processor watches; `db` None leaves DR0-DR3 as they are."""

    def intercept_debug_registers(self, wanted: bool) -> None: ...

    def update_exception_bitmap(self, guest_debug: int) -> None: ...

    def cpuid_changed(self, vcpu: SoftwareVcpu) -> None: ...

    # -- MSRs -----------------------------------------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        """A register that lives in the processor; None: there is none."""

    def write_msr(self, index: int, word: int) -> bool:
        """False: refused."""

    def get_debugctl(self) -> int: ...

    def set_debugctl(self, debugctl: int) -> None: ...

    def supported_debugctl(self, has_bus_lock_detect: bool, has_rtm: bool) -> int:
        """The DEBUGCTL bits the guest may set, by what its CPUID shows."""

    def set_pat(self, pat: int) -> None: ...

    def get_tsc(self) -> int: ...

    def set_tsc(self, tsc: int) -> None: ...
