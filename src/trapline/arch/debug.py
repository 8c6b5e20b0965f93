"""DR6, DR7 and the #DB payload: bits, polarity, and the rules of the silicon as pure functions.

Who raises a #DB and when is the processor's; how KVM delivers a payload is the hypervisor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from trapline.arch.bits import Bits, bit, field

DR6_B0 = 1 << 0
DR6_B1 = 1 << 1
DR6_B2 = 1 << 2
DR6_B3 = 1 << 3
DR6_BREAKPOINTS = 0xF
DR6_BUS_LOCK = 1 << 11  # active low; positive in payloads and exit qualifications
DR6_BD = 1 << 13
DR6_BS = 1 << 14
DR6_BT = 1 << 15
DR6_RTM = 1 << 16  # active low, like bit 11
# At once the reset value and the XOR mask between DR6 and the positive form (kvm_host.h).
DR6_ACTIVE_LOW = 0xFFFF0FF0
DR6_RESET = DR6_ACTIVE_LOW
DR6_VOLATILE = 0x0001E80F
DR6_FIXED_1 = DR6_ACTIVE_LOW & ~DR6_VOLATILE

DR7_BREAKPOINTS_ENABLED = 0xFF
DR7_LOCAL = 0x55
DR7_GLOBAL = 0xAA
DR7_LE = 1 << 8
DR7_GE = 1 << 9
DR7_FIXED_1 = 1 << 10
DR7_RTM = 1 << 11
DR7_GD = 1 << 13
DR7_VOLATILE = 0xFFFF2BFF
DR7_RESET = DR7_FIXED_1

# Only in pending debug exceptions: a data or I/O breakpoint matched and was enabled.
PAYLOAD_ENABLED_BREAKPOINT = 1 << 12

DR_UPPER = 0xFFFFFFFF_00000000  # MOV to DR6 or DR7 with any of these set is #GP(0)


class Dr6(Bits, width=64):
    """The debug status register; `bld` and `rtm` are true when the event happened."""

    reset = DR6_RESET
    fixed_ones = DR6_FIXED_1

    b0 = bit(0)
    b1 = bit(1)
    b2 = bit(2)
    b3 = bit(3)
    bld = bit(11, active_low=True)  # bus lock detected
    bd = bit(13)  # debug register access detected
    bs = bit(14)  # single step
    bt = bit(15)  # task switch
    rtm = bit(16, active_low=True)  # restricted transactional memory


class DebugPayload(Bits, width=64):
    """Exit qualification, pending debug exceptions, KVM payload: DR6's bits, all positive."""

    b0 = bit(0)
    b1 = bit(1)
    b2 = bit(2)
    b3 = bit(3)
    bld = bit(11)
    enabled_breakpoint = bit(12)
    bd = bit(13)
    bs = bit(14)
    bt = bit(15)
    rtm = bit(16)


class Dr7(Bits, width=64):
    """The debug control register; it has no bit for bus locks."""

    reset = DR7_RESET
    fixed_ones = DR7_FIXED_1

    l0 = bit(0)
    g0 = bit(1)
    l1 = bit(2)
    g1 = bit(3)
    l2 = bit(4)
    g2 = bit(5)
    l3 = bit(6)
    g3 = bit(7)
    le = bit(8)
    ge = bit(9)
    rtm = bit(11)
    gd = bit(13)
    rw0 = field(17, 16)
    len0 = field(19, 18)
    rw1 = field(21, 20)
    len1 = field(23, 22)
    rw2 = field(25, 24)
    len2 = field(27, 26)
    rw3 = field(29, 28)
    len3 = field(31, 30)


def force_dr6_reserved(dr6: int, has_bld: bool, has_rtm: bool) -> int:
    """DR6 as it reads back after `dr6` was written to it."""
    ones = DR6_FIXED_1
    if not has_bld:
        ones |= DR6_BUS_LOCK
    if not has_rtm:
        ones |= DR6_RTM
    return (dr6 & DR6_VOLATILE) | ones


def force_dr7_reserved(dr7: int, has_rtm: bool) -> int:
    """DR7 as it reads back after `dr7` was written to it."""
    writable = DR7_VOLATILE if has_rtm else DR7_VOLATILE & ~DR7_RTM
    return (dr7 & writable) | DR7_FIXED_1


def merge_dr6(dr6: int, payload: int, has_bld: bool, has_rtm: bool) -> int:
    """DR6 as the processor leaves it when it delivers a #DB with these causes.

    B0-B3 are replaced, BD/BS/BT and the bus-lock bit stay as software left them unless
    reported, and every #DB outside a transaction sets RTM again.
    """
    # SDM 3B, "Debug Status Register (DR6)"; the same computation as Xen's x86_merge_dr6().
    positive = dr6 ^ DR6_ACTIVE_LOW
    positive = positive & ~(DR6_BREAKPOINTS | DR6_RTM) | payload
    return force_dr6_reserved(positive ^ DR6_ACTIVE_LOW, has_bld, has_rtm)


def payload_of_dr6(dr6: int) -> int:
    """The causes that a DR6 value shows, in positive polarity."""
    return (dr6 ^ DR6_ACTIVE_LOW) & DR6_VOLATILE


class BreakpointKind(IntEnum):
    """DR7.R/Wn; IO is undefined unless CR4.DE is set."""

    EXECUTE = 0
    WRITE = 1
    IO = 2
    ACCESS = 3  # reads and writes, not fetches


BREAKPOINT_SIZES = (1, 2, 8, 4)  # by DR7.LENn


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """One of the four breakpoints as DR7 describes it; its linear address is in DRn."""

    index: int
    kind: BreakpointKind
    size: int
    is_local: bool
    is_global: bool

    @property
    def is_enabled(self) -> bool:
        return self.is_local or self.is_global

    @property
    def payload(self) -> int:
        """The bit of DR6, or of the payload, that reports it."""
        return 1 << self.index

    def touches(self, watched: int, linear: int, size: int) -> bool:
        """Whether `size` bytes at `linear` meet the range that DRn = `watched` guards."""
        # SDM 3B, "Breakpoint Field Recognition": the low bits of DRn are ignored.
        start = watched & -self.size
        return linear < start + self.size and start < linear + size


def breakpoint_of_dr7(dr7: int, index: int) -> Breakpoint:
    """Breakpoint `index` of DR7, enabled or not."""
    nibble = dr7 >> (16 + 4 * index)
    return Breakpoint(
        index=index,
        kind=BreakpointKind(nibble & 3),
        size=BREAKPOINT_SIZES[nibble >> 2 & 3],
        is_local=bool(dr7 >> (2 * index) & 1),
        is_global=bool(dr7 >> (2 * index + 1) & 1),
    )


def enabled_breakpoints(dr7: int) -> tuple[Breakpoint, ...]:
    """The breakpoints that DR7 enables, B0 first."""
    if not dr7 & DR7_BREAKPOINTS_ENABLED:
        return ()
    every = (breakpoint_of_dr7(dr7, index) for index in range(4))
    return tuple(one for one in every if one.is_enabled)
