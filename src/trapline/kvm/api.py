"""The hypervisor's face: KVM's, one method an ioctl, whatever runs below it.

`software` and `host` promise the same; nothing here knows which of them answers.  Errors are
OSError with KVM's errno.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm.exits import Exit
from trapline.kvm.structures import DebugRegs, Fpu, Regs, Sregs, Translation, VcpuEvents


class RegisterView(Protocol):
    """The vCPU's registers as they stand, without copy or ioctl, while it is not running."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class Kvm(Protocol):
    """The system: /dev/kvm."""

    def get_api_version(self) -> int: ...

    def check_extension(self, capability: int) -> int:
        """0 where it is not supported."""

    def get_supported_cpuid(self) -> list[CpuidEntry]: ...

    @property
    def programs_see_host_cpuid(self) -> bool:
        """Whether CPL 3 sees the host's own CPUID and XCR0, whatever `Vcpu.set_cpuid2` and
        `Vcpu.set_xcrs` said.  No ioctl: hardware intercepts CPUID at every level."""

    def get_msr_index_list(self) -> list[int]: ...

    def get_msr_feature_index_list(self) -> list[int]:
        """The MSRs that say what can be virtualized; `get_feature_msrs` reads them."""

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """As `Vcpu.get_msrs`."""

    def create_vm(self) -> Vm: ...

    def place_files(self, place: Callable[[int], int]) -> None:
        """Have `place` move every descriptor that this holds or its VMs and vCPUs will hold; it
        is given the number and answers with the new one."""

    def close(self) -> None: ...


class Vm(Protocol):
    """One virtual machine: memory slots and vCPUs."""

    def check_extension(self, capability: int) -> int: ...

    def enable_cap(self, capability: int, *args: int) -> None: ...

    def set_user_memory_region(
        self, slot: int, flags: int, guest_physical: int, size: int, userspace_address: int
    ) -> None:
        """Make, move, re-flag or (size 0) delete a slot; all but `slot` in whole pages."""

    def forget_code(self, userspace_address: int, size: int) -> None:
        """The VMM, or the host's kernel for it, has written to guest memory.  No ioctl:
        hardware sees for itself, but processors in software may hold on to code."""

    def set_tss_addr(self, guest_physical: int) -> None:
        """Three pages Intel hosts without unrestricted guest need; of no effect elsewhere."""

    def set_identity_map_addr(self, guest_physical: int) -> None: ...

    def signal_msi(self, address: int, data: int) -> int:
        """A device's message; how many local APICs took it.  From any thread."""

    def create_vcpu(self, vcpu_id: int) -> Vcpu: ...

    def keep(self, vcpu: Vcpu) -> bool:
        """In the child of a fork: go on with this vCPU as the only one.  False where a VM cannot
        be taken along, and must be abandoned."""

    def abandon(self) -> None:
        """In the child of a fork: let go of the VM and its vCPUs, which go on in the parent."""

    def close(self) -> None: ...


class Vcpu(Protocol):
    """One virtual processor; all but `kick` belong to the thread that runs it."""

    @property
    def regs(self) -> RegisterView: ...

    fs_base: int
    gs_base: int

    request_interrupt_window: bool
    """kvm_run: return IrqWindowOpen as soon as an interrupt may be injected."""

    @property
    def ready_for_interrupt_injection(self) -> bool: ...

    @property
    def if_flag(self) -> bool: ...

    @property
    def flags(self) -> int:
        """kvm_run.flags of the last run: RUN_X86_BUS_LOCK and its like."""

    def run(self) -> Exit:
        """Enter the guest, until something concerns the caller."""

    def kick(self) -> None:
        """End the current or the next `run` with Interrupted; from any thread."""

    @property
    def kick_places(self) -> tuple[int, ...]:
        """Addresses of bytes: a signal handler on the vCPU's own thread that stores 1 in each,
        in this order, kicks it (kvm_run.immediate_exit, on the host's KVM)."""

    def set_signal_mask(self, mask: int) -> None:
        """The signals blocked while the guest runs, bit n-1 for signal n (KVM_SET_SIGNAL_MASK);
        in effect where a signal itself ends `run`."""

    def get_regs(self) -> Regs: ...
    def set_regs(self, regs: Regs) -> None: ...
    def get_sregs(self) -> Sregs: ...
    def set_sregs(self, sregs: Sregs) -> None: ...

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Those that can be read, up to the first that cannot (KVM's rule)."""

    def set_msrs(self, msrs: Mapping[int, int]) -> int:
        """How many were written: it ends at the first refused."""

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None: ...
    def get_cpuid2(self) -> list[CpuidEntry]: ...
    def get_debugregs(self) -> DebugRegs: ...
    def set_debugregs(self, debugregs: DebugRegs) -> None: ...
    def get_vcpu_events(self) -> VcpuEvents: ...
    def set_vcpu_events(self, events: VcpuEvents) -> None: ...

    def set_guest_debug(self, control: int, debugreg: Mapping[int, int] | None = None) -> None:
        """`debugreg`: 0-3 the addresses, 7 the DR7 to use, for GUESTDBG_USE_HW_BP."""

    def get_fpu(self) -> Fpu: ...
    def set_fpu(self, fpu: Fpu) -> None: ...

    def get_xsave(self) -> bytes:
        """The XSAVE area, standard format, 4096 bytes."""

    def set_xsave(self, area: bytes) -> None: ...
    def get_xcrs(self) -> dict[int, int]: ...
    def set_xcrs(self, xcrs: Mapping[int, int]) -> None: ...
    def get_mp_state(self) -> int: ...
    def set_mp_state(self, mp_state: int) -> None: ...

    def get_lapic(self) -> bytes:
        """struct kvm_lapic_state: 1 KiB of the local APIC's page."""

    def set_lapic(self, area: bytes) -> None: ...
    def translate(self, linear: int) -> Translation: ...

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt for the next entry; only while the vCPU is
        `ready_for_interrupt_injection`."""

    def nmi(self) -> None: ...

    def report_counts(self) -> None:
        """Have the observer told of the bus locks that have only been counted so far."""

    def close(self) -> None: ...
