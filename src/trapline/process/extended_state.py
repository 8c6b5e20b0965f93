"""Which of a program's registers XSAVE saves, and how large the area for them is."""

from __future__ import annotations

from dataclasses import dataclass

from trapline.arch import cpuid
from trapline.arch.registers import XCR0_SSE, XCR0_X87
from trapline.kvm import Kvm

_LEAST_FRAME = 1024  # ucontext, siginfo and alignment
_END_MARK = 4
_RED_ZONE = 128
_STEP = 1024


@dataclass(frozen=True, slots=True)
class ExtendedState:
    """The parts by their bits in XCR0, and the bytes of an area in the standard format."""

    xcr0: int
    size: int

    @property
    def signal_stack(self) -> int:
        """Bytes of the least stack that a signal's frame fits on (AT_MINSIGSTKSZ)."""
        needed = _LEAST_FRAME + self.size + _END_MARK + _RED_ZONE
        return -(-needed // _STEP) * _STEP


X87_AND_SSE = ExtendedState(XCR0_X87 | XCR0_SSE, 576)  # the legacy area and the header


def of_programs(kvm: Kvm) -> ExtendedState:
    """What a program may hold something in: where it sees the host's own CPUID it uses all that
    the host has, and would lose it over signals and forks."""
    if not kvm.programs_see_host_cpuid:
        return X87_AND_SSE
    leaf = cpuid.find(kvm.get_supported_cpuid(), 0xD)
    return ExtendedState(leaf.eax, leaf.ecx) if leaf else X87_AND_SSE
