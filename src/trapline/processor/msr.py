"""The model-specific registers of one processor: RDMSR and WRMSR behind their privilege checks.

Registers that instructions use live in the state and are only checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.arch import cpuid, msr
from trapline.arch.paging import is_valid_pat
from trapline.arch.registers import (
    CR0_PG,
    EFER_FFXSR,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    EFER_SVME,
)
from trapline.processor.fault import Fault
from trapline.processor.memory.host import read_tsc
from trapline.processor.memory.types import MTRR_NUMBERS, Mtrrs
from trapline.processor.vmx.capability import capability_msrs

if TYPE_CHECKING:
    from trapline.processor.core import Core

_MASK_64 = (1 << 64) - 1
_CANONICAL_SLOTS = {
    msr.IA32_LSTAR: "lstar",
    msr.IA32_CSTAR: "cstar",
    msr.IA32_FS_BASE: "fs_base",
    msr.IA32_GS_BASE: "gs_base",
    msr.IA32_KERNEL_GS_BASE: "kernel_gs_base",
    msr.IA32_SYSENTER_ESP: "sysenter_esp",
    msr.IA32_SYSENTER_EIP: "sysenter_eip",
}
_PLAIN_SLOTS = {msr.IA32_STAR: "star", msr.IA32_SYSENTER_CS: "sysenter_cs"}
_DWORD_SLOTS = {msr.IA32_FMASK: "sfmask", msr.IA32_TSC_AUX: "tsc_aux"}

Reader = Callable[[], int]
Writer = Callable[[int], None]


def general_protection() -> Fault:
    return Fault(13, 0)


class Msrs:
    """The MSR file.  Other parts of the processor add theirs with `attach`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._state = core.state
        self.mtrrs = Mtrrs(core.model.physical_bits)
        self._readers: dict[int, Reader] = {}
        self._writers: dict[int, Writer] = {}
        self._words: dict[int, int] = {}
        self._attach_slots()
        self._attach_system()
        self._attach_bus_lock()
        for number in MTRR_NUMBERS:
            self.attach(number, self._mtrr_reader(number), self._mtrr_writer(number))
        if core.model.is_amd:
            self._attach_amd()
        else:
            self._attach_intel()

    def read(self, number: int) -> int:
        """The register's value; #GP(0) if there is none."""
        reader = self._readers.get(number)
        if reader is None:
            raise general_protection()
        return reader()

    def write(self, number: int, word: int) -> None:
        """Write the register; #GP(0) if there is none, or it does not take the value."""
        writer = self._writers.get(number)
        if writer is None:
            raise general_protection()
        writer(word)

    def attach(self, number: int, read: Reader, write: Writer | None = None) -> None:
        """Add a register, or replace one; without `write` it is read-only."""
        self._readers[number] = read
        if write is None:
            self._writers.pop(number, None)
        else:
            self._writers[number] = write

    def attach_word(self, number: int, word: int = 0, writable: int = _MASK_64) -> None:
        """Add a register that only holds its value; bits outside `writable` are #GP(0)."""
        self._words[number] = word

        def write(new: int) -> None:
            if new & ~writable:
                raise general_protection()
            self._words[number] = new

        self.attach(number, lambda: self._words[number], write if writable else None)

    # -- the registers -----------------------------------------------------------------------------

    def _attach_slots(self) -> None:
        state = self._state
        for number, name in (_CANONICAL_SLOTS | _PLAIN_SLOTS | _DWORD_SLOTS).items():
            is_canonical, is_dword = number in _CANONICAL_SLOTS, number in _DWORD_SLOTS

            def read(name: str = name) -> int:
                return int(getattr(state, name))

            def write(
                word: int,
                name: str = name,
                is_canonical: bool = is_canonical,
                is_dword: bool = is_dword,
            ) -> None:
                if is_canonical and not self.is_canonical(word) or is_dword and word >> 32:
                    raise general_protection()
                setattr(state, name, word)

            self.attach(number, read, write)
        if not self._core.model.has(cpuid.RDTSCP):
            del self._readers[msr.IA32_TSC_AUX], self._writers[msr.IA32_TSC_AUX]

    def _attach_system(self) -> None:
        state = self._state
        self.attach(msr.IA32_TSC, self.tsc, self._write_tsc)
        self.attach(msr.IA32_EFER, lambda: state.efer, self.write_efer)
        self.attach(msr.IA32_PAT, lambda: state.pat, self._write_pat)
        self.attach(msr.IA32_APIC_BASE, lambda: state.apic_base, self._write_apic_base)
        self.attach(msr.IA32_DEBUGCTL, lambda: state.debugctl, self._write_debugctl)
        self.attach_word(msr.IA32_MCG_CAP, 0, writable=0)
        self.attach_word(msr.IA32_MCG_STATUS, 0, writable=7)
        if self._core.model.has(cpuid.TSC_ADJUST):
            self.attach_word(msr.IA32_TSC_ADJUST)
        if self._core.model.has(cpuid.XSAVES):
            self.attach_word(msr.IA32_XSS, 0, writable=0)

    def _attach_bus_lock(self) -> None:
        model, state = self._core.model, self._state
        controls = msr.TEST_CTRL_NO_LOCK_SIGNAL if model.has_split_lock_ac else 0
        capabilities = 0
        if model.has_split_lock_ac:
            controls |= msr.TEST_CTRL_SPLIT_LOCK_AC
            capabilities |= msr.CORE_CAPABILITIES_SPLIT_LOCK_AC
        if model.has(cpuid.UC_LOCK_DISABLE):
            controls |= msr.TEST_CTRL_UC_LOCK_DISABLE

        def write(word: int) -> None:
            if word & ~controls:
                raise general_protection()
            state.test_ctrl = word

        if controls:
            self.attach(msr.TEST_CTRL, lambda: state.test_ctrl, write)
        if model.has(cpuid.CORE_CAPABILITIES):
            self.attach_word(msr.IA32_CORE_CAPABILITIES, capabilities, writable=0)

    def _attach_intel(self) -> None:
        defaults = msr.MISC_ENABLE_FAST_STRINGS
        defaults |= msr.MISC_ENABLE_BTS_UNAVAILABLE | msr.MISC_ENABLE_PEBS_UNAVAILABLE
        self.attach_word(msr.IA32_MISC_ENABLE, defaults)
        self.attach_word(msr.IA32_BIOS_SIGN_ID)
        if self._core.model.has(cpuid.VMX):
            self.attach(
                msr.IA32_FEATURE_CONTROL,
                lambda: self._words.get(msr.IA32_FEATURE_CONTROL, 0),
                self._write_feature_control,
            )
            for number, word in capability_msrs(self._core.model).items():
                self.attach_word(number, word, writable=0)

    def _attach_amd(self) -> None:
        self.attach_word(msr.AMD_PATCH_LEVEL, 0, writable=0)
        self.attach_word(msr.AMD_SYSCFG)
        self.attach_word(msr.AMD_HWCR)

    # -- writing -----------------------------------------------------------------------------------

    def is_canonical(self, linear: int) -> bool:
        """Whether a register that keeps an address takes this one: by what the processor can,
        whatever CR4.LA57 says (KVM, is_noncanonical_msr_address() and its like for descriptor
        tables, bases and INVPCID)."""
        bits = self._core.model.linear_bits
        return not (linear + (1 << bits - 1) & _MASK_64) >> bits

    def tsc(self) -> int:
        """The time-stamp counter as the running software sees it."""
        guest = self._core.guest
        offset = self._state.tsc_offset + (guest.tsc_offset if guest is not None else 0)
        return read_tsc() + offset & _MASK_64

    def _write_tsc(self, word: int) -> None:
        self._state.tsc_offset = word - read_tsc() & _MASK_64

    def write_efer(self, word: int) -> None:
        model, state = self._core.model, self._state
        writable = EFER_LME | EFER_LMA
        for bit, feature in (
            (EFER_SCE, cpuid.SYSCALL),
            (EFER_NXE, cpuid.NX),
            (EFER_SVME, cpuid.SVM),
            (EFER_FFXSR, cpuid.FXSR_OPT),
        ):
            writable |= bit if model.has(feature) else 0
        if word & ~writable or (word ^ state.efer) & EFER_LME and state.cr0 & CR0_PG:
            raise general_protection()
        # LMA follows LME and CR0.PG; what is written to it is ignored.
        state.efer = word & ~EFER_LMA | state.efer & EFER_LMA
        self._core.memory.mode_changed()

    def _write_pat(self, word: int) -> None:
        if not is_valid_pat(word):
            raise general_protection()
        self._state.pat = word
        self._core.memory.mode_changed()

    def _write_apic_base(self, word: int) -> None:
        model = self._core.model
        modes = msr.APIC_BASE_BSP | msr.APIC_BASE_ENABLE
        if model.has(cpuid.X2APIC):
            modes |= msr.APIC_BASE_X2APIC
        if word & ~((1 << model.physical_bits) - 4096 | modes):
            raise general_protection()
        self._state.apic_base = word

    def _write_debugctl(self, word: int) -> None:
        model = self._core.model
        supported = msr.DEBUGCTL_LBR | msr.DEBUGCTL_BTF
        if model.has(cpuid.BUS_LOCK_DETECT):
            supported |= msr.DEBUGCTL_BLD
        # APM 2, "Debug-Control MSR": bits 6:3 must be zero, the other undefined ones read as 0.
        refused = 0x7C if model.is_amd else _MASK_64
        if word & refused & ~supported:
            raise general_protection()
        self._state.debugctl = word & supported

    def _write_feature_control(self, word: int) -> None:
        defined = msr.FEATURE_CONTROL_LOCK | msr.FEATURE_CONTROL_VMX
        locked = self._words.get(msr.IA32_FEATURE_CONTROL, 0) & msr.FEATURE_CONTROL_LOCK
        if locked or word & ~defined:
            raise general_protection()
        self._words[msr.IA32_FEATURE_CONTROL] = word

    def _mtrr_reader(self, number: int) -> Reader:
        return lambda: self.mtrrs.read(number)

    def _mtrr_writer(self, number: int) -> Writer:
        def write(word: int) -> None:
            self.mtrrs.write(number, word)
            self._core.memory.flush_frames()

        return write
