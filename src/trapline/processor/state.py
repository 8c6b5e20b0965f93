"""The register file of one logical processor: one flat block of memory both engines share.

Every register is a named 64-bit slot; native code reaches it by byte offset, Python by attribute.
Nothing here knows what an instruction does.  RFLAGS is held in two parts: the arithmetic flags
lazily (see `flags`), everything else in `system_flags`.
"""

from __future__ import annotations

import builtins
import ctypes
import mmap
from typing import TYPE_CHECKING

from trapline.processor.flags import CcKind, materialise

# state.bus_lock_signals: when a bus lock must come back to Python.
AFTER_BUS_LOCK, BEFORE_BUS_LOCK = 1, 2

GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")

ARITHMETIC_FLAGS = 0x8D5  # OF SF ZF AF PF CF
SYSTEM_FLAGS = 0x3F7700 | 0x2  # TF IF DF IOPL NT RF VM AC VIF VIP ID, and the fixed bit 1

_NAMES: list[str] = [
    *GPR_NAMES,
    "zero",  # always 0: stands for an absent base or index, and for a flat segment
    "rip",
    "cc_kind",  # how to read cc_dst and cc_src: flags.CcKind
    "cc_dst",
    "cc_src",
    "system_flags",
    "cpl",
    # What the native code's attention check reads: non-zero = leave at the next block head.
    "attention",
    # Why native code came back to Python, and its operands (engine's business).
    "exit_reason", "exit_rip", "exit_linear", "exit_size", "exit_detail", "exit_record",
    "next_record",  # a link of the block that was left, to be patched
    *(f"{s}_{part}" for s in SEGMENTS for part in ("selector", "base", "limit", "attributes")),
    "gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit",
    "cr0", "cr2", "cr3", "cr4", "cr8", "xcr0", "efer",
    "dr0", "dr1", "dr2", "dr3", "dr6", "dr7",
    # MSRs that instructions or the hypervisor touch often; the others live in processor.msr.
    "star", "lstar", "cstar", "sfmask", "kernel_gs_base",
    "sysenter_cs", "sysenter_esp", "sysenter_eip",
    "tsc_aux", "tsc_offset", "pat", "debugctl", "test_ctrl", "apic_base",
    # Between two instructions.
    "interrupt_shadow",  # 0, 1 after STI, 2 after MOV SS / POP SS
    "pending_debug",  # #DB causes, positive polarity (SDM "Pending Debug Exceptions" layout)
    "nmi_blocked",
    "activity",  # 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI (VMCS encoding)
    # Bus locks seen by native code since it was entered (see processor.buslock).
    "bus_lock_seen",  # SILENT or LOUD when native code has come back for one
    "bus_lock_rip", "bus_lock_next_rip", "bus_lock_linear",
    "bus_lock_size", "bus_lock_cause", "bus_lock_count",
    "bus_lock_signals",  # AFTER_BUS_LOCK, BEFORE_BUS_LOCK: every one must come back to Python
    "bus_lock_counted",  # not 0: some silent bus locks have only been counted
    "bus_lock_table",  # sites that only count: see jit.runtime
    "running",  # 1 while native code may touch guest memory
    # What native code must know to do system instructions by itself.
    "mov_dr_exits",  # 1: a hypervisor asks for MOV DR
    "io_exits",  # 1: a hypervisor takes every IN and OUT
    "lines",  # not 0: an NMI or an interrupt is asked for (see processor.boundary)
    "dr6_fixed",  # what MOV to DR6 leaves 1, by the processor's model
    # Floating point.
    "mxcsr",
    "fcw", "fsw", "ftw",  # ftw: full two-bit tags are derived; here bit i = register i is in use
    "fop", "fip", "fcs", "fdp", "fds",
    # Pointers native code needs.
    "tlb", "tlb_user", "tlb_supervisor", "tlb_supervisor_ac", "bus",
    "jump_cache", "jump_cache_user", "jump_cache_supervisor",
    "in_place",  # 1: the last write that was not plain went straight to its place
    "instructions",  # retired, counted by block where the engine was asked to count
    "scratch0", "scratch1", "scratch2", "scratch3",
]  # fmt: skip

INDEX: dict[str, int] = {name: i for i, name in enumerate(_NAMES)}
OFFSET: dict[str, int] = {name: 8 * i for i, name in enumerate(_NAMES)}

_AREAS = (8 * len(_NAMES) + 63) & ~63
XMM_OFFSET = _AREAS  # 16 registers of 16 bytes
X87_OFFSET = XMM_OFFSET + 16 * 16  # physical registers R0-R7, 16 bytes each, 10 used
BOUNCE_OFFSET = X87_OFFSET + 8 * 16  # 64 bytes: an operand that lies on two pages or two lines
SAVED_HOST_OFFSET = BOUNCE_OFFSET + 64  # host MXCSR and x87 control word while a guest runs
STATE_SIZE = (SAVED_HOST_OFFSET + 64 + 4095) & ~4095


class _Slots(ctypes.Structure):
    """Each slot as an attribute, which is several times faster than a descriptor in Python would
    be.  Of a word that is too wide only the low 64 bits are kept."""

    __slots__ = ()
    _fields_ = [(name, ctypes.c_uint64) for name in _NAMES]


class State(_Slots):
    """One logical processor's registers.  `q` is all of it as 64-bit words."""

    __slots__ = ("address", "bytes", "q")  # a name that is no register is an AttributeError
    bytes: memoryview[int]
    q: memoryview[int]
    address: int

    def __new__(cls) -> State:
        block = mmap.mmap(-1, STATE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        state = cls.from_buffer(block)
        state.bytes = memoryview(block)
        state.q = state.bytes.cast("Q")
        state.address = ctypes.addressof(state)
        state.q[_SYSTEM_FLAGS] = 2
        return state

    # -- flags ---------------------------------------------------------------------------------

    @property
    def arithmetic_flags(self) -> int:
        """OF SF ZF AF PF CF as they stand in RFLAGS."""
        q = self.q
        return materialise(q[_CC_KIND], q[_CC_DST], q[_CC_SRC])

    @arithmetic_flags.setter
    def arithmetic_flags(self, word: int) -> None:
        q = self.q
        q[_CC_KIND] = CcKind.EXPLICIT
        q[_CC_SRC] = word & ARITHMETIC_FLAGS

    @property
    def rflags(self) -> int:
        """The whole of RFLAGS."""
        q = self.q
        return q[_SYSTEM_FLAGS] | materialise(q[_CC_KIND], q[_CC_DST], q[_CC_SRC])

    @rflags.setter
    def rflags(self, word: int) -> None:
        q = self.q
        q[_CC_KIND] = CcKind.EXPLICIT
        q[_CC_SRC] = word & ARITHMETIC_FLAGS
        q[_SYSTEM_FLAGS] = word & SYSTEM_FLAGS | 2

    # -- wide registers ------------------------------------------------------------------------

    def xmm(self, number: int) -> int:
        """XMM register as a 128-bit integer."""
        i = (XMM_OFFSET >> 3) + 2 * number
        return self.q[i] | self.q[i + 1] << 64

    def set_xmm(self, number: int, word: int) -> None:
        i = (XMM_OFFSET >> 3) + 2 * number
        self.q[i] = word & 0xFFFFFFFFFFFFFFFF
        self.q[i + 1] = word >> 64

    def x87(self, physical_register: int) -> int:
        """Physical x87 register R0-R7 as an 80-bit integer."""
        i = (X87_OFFSET >> 3) + 2 * physical_register
        return self.q[i] | (self.q[i + 1] & 0xFFFF) << 64

    def set_x87(self, physical_register: int, word: int) -> None:
        i = (X87_OFFSET >> 3) + 2 * physical_register
        self.q[i] = word & 0xFFFFFFFFFFFFFFFF
        self.q[i + 1] = word >> 64 & 0xFFFF

    def snapshot(self) -> builtins.bytes:
        """The whole block, for comparisons."""
        return self.bytes.tobytes()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int: ...

        def __setattr__(self, name: str, word: object) -> None: ...


_CC_KIND, _CC_DST, _CC_SRC = INDEX["cc_kind"], INDEX["cc_dst"], INDEX["cc_src"]
_SYSTEM_FLAGS = INDEX["system_flags"]
