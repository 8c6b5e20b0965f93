"""What both vendors do alike with the core below a vCPU."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Final

from trapline.arch import registers
from trapline.arch.paging import PTE_P
from trapline.kvm.emulator import Emulator
from trapline.kvm.mmu import Slots
from trapline.kvm.silicon import Silicon
from trapline.processor import Core, Fault, State

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu

_MASK_64: Final = (1 << 64) - 1
_MASK_32: Final = (1 << 32) - 1
_CS_L: Final = 1 << 13
_PDPTE_RESERVED: Final = 0x1E6
# As MOV to CR4 does (SDM 3A, "Operations that Invalidate TLBs and Paging-Structure Caches").
_FLUSHING_CR4: Final = (
    registers.CR4_PGE
    | registers.CR4_PCIDE
    | registers.CR4_PSE
    | registers.CR4_PAE
    | registers.CR4_SMEP
    | registers.CR4_LA57
)


class CoreBackend:
    """A core for good, and the second stage of its paging."""

    hypercall: bytes
    """The instruction that this vendor's guests call the hypervisor by."""

    def __init__(self, core: Core, slots: Slots, platform: Silicon) -> None:
        self.core = core
        self.slots = slots
        self._platform = platform
        self._tables = platform.tables(slots)
        self.instruction_length = 0
        """Of the last INT3 or INTO that exited or was emulated (event_exit_inst_len)."""
        self._emulator: Emulator | None = None

    @property
    def state(self) -> State:
        return self.core.state

    def emulator(self, vcpu: SoftwareVcpu) -> Emulator:
        """The vCPU's, made when it is first needed."""
        if self._emulator is None:
            self._emulator = Emulator(vcpu, self)
        return self._emulator

    def kick(self) -> None:
        self.core.kick()

    @property
    def kick_places(self) -> tuple[int, ...]:
        return self.core.kick_places

    def report_counts(self) -> None:
        self.core.hand_over_bus_locks()

    def close(self) -> None:
        self.core.close()

    def keep_alone(self) -> None:
        self.core.keep_alone()

    def flush_guest(self, changed_cr4: int = _FLUSHING_CR4) -> None:
        """INVVPID, or TLB_CONTROL: the guest's CR3 was loaded, or these bits of its CR4 changed,
        in its place (kvm_post_set_cr4)."""
        if changed_cr4 & _FLUSHING_CR4:
            self.core.memory.flush()

    def map(self, guest_physical: int) -> bool:
        """Make an address of the memory map reachable; False outside of it."""
        slot = self.slots.find(guest_physical)
        if slot is None:
            return False
        with self.slots.lock:
            self._tables.map(guest_physical, slot)
        return True

    def read_pdptes(self) -> list[int] | None:
        """PAE paging: the four PDPTEs at CR3; None if one is malformed (load_pdptrs).

        Read in the slots, as the processor would need a guest to run to go through its tables.
        """
        host = self.slots.host(self.core.state.cr3 & registers.CR3_PAE_BASE)
        if host is None:
            return None
        pdptes = list(struct.unpack("<4Q", ctypes.string_at(host, 32)))
        reserved = _PDPTE_RESERVED | -1 << self.core.model.physical_bits & _MASK_64
        return None if any(one & PTE_P and one & reserved for one in pdptes) else pdptes

    def interrupt_allowed(self) -> bool:
        state = self.core.state
        return bool(state.system_flags & registers.RFLAGS_IF) and not state.interrupt_shadow

    def nmi_allowed(self) -> bool:
        return not self.core.state.nmi_blocked and not self.core.state.interrupt_shadow

    def get_nmi_mask(self) -> bool:
        return bool(self.core.state.nmi_blocked)

    def set_nmi_mask(self, masked: bool) -> None:
        self.core.state.nmi_blocked = int(masked)

    def get_rflags(self) -> int:
        return self.core.state.rflags

    @property
    def is_64_bit(self) -> bool:
        """64-bit mode; not compatibility mode (is_64_bit_mode)."""
        state = self.core.state
        return bool(state.efer & registers.EFER_LMA and state.cs_attributes & _CS_L)

    def read_gpr(self, name: str) -> int:
        """What an instruction finds in it: outside of 64-bit mode its low half
        (kvm_register_read)."""
        word: int = getattr(self.core.state, name)
        return word if self.is_64_bit else word & _MASK_32

    def linear_rip(self) -> int:
        state = self.core.state
        return state.rip if self.is_64_bit else state.rip + state.cs_base & _MASK_32

    def read_msr(self, index: int) -> int | None:
        try:
            return self.core.msrs.read(index)
        except Fault:
            return None

    def write_msr(self, index: int, word: int) -> bool:
        try:
            self.core.msrs.write(index, word)
        except Fault:
            return False
        return True

    def _processor_tsc(self) -> int:
        guest = self.core.guest
        return self.core.msrs.tsc() - (guest.tsc_offset if guest is not None else 0)
