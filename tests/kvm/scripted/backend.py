"""A vendor that is none: a platform and a backend made of a script, without a processor below.

Every promise of kvm/backend.py is kept in the plainest way, and every request is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from trapline.arch import cpuid
from trapline.arch.cpuid import CpuidEntry
from trapline.kvm.backend import Answer, Backend, Platform
from trapline.kvm.events import ExceptionQueue
from trapline.kvm.mmu import Slots
from trapline.kvm.structures import GPR_ORDER, Dtable, Segment
from trapline.kvm.vcpu import SoftwareVcpu

Step = Callable[[SoftwareVcpu, "ScriptedBackend"], Answer]
IF, STI = 1 << 9, 1
_NAMES = (
    *GPR_ORDER, "cr2", "cr3", "cr8", "efer", "xcr0", "pat", "cpl", "fs_base", "gs_base",
    "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "dr6_fixed", "pending_debug", "cr0", "cr4",
    "fcw", "fsw", "ftw", "fop", "fip", "fdp", "fcs", "fds", "mxcsr",
)  # fmt: skip


class RegisterFile:
    """Architectural registers by name, and no attribute beside them."""

    __slots__ = (*_NAMES, "wide")

    def __init__(self) -> None:
        for name in _NAMES:
            setattr(self, name, 0)
        self.wide: dict[tuple[str, int], int] = {}

    def x87(self, number: int) -> int:
        return self.wide.get(("x87", number), 0)

    def set_x87(self, number: int, word: int) -> None:
        self.wide["x87", number] = word

    def xmm(self, number: int) -> int:
        return self.wide.get(("xmm", number), 0)

    def set_xmm(self, number: int, word: int) -> None:
        self.wide["xmm", number] = word


class ScriptedBackend:
    """`script` is what the guest does, entry by entry; `asked` what the hypervisor wanted."""

    def __init__(self, vcpu_id: int, slots: Slots) -> None:
        self.vcpu_id, self.slots = vcpu_id, slots
        self.state: Any = RegisterFile()
        self.script: list[Step] = []
        self.asked: list[tuple[Any, ...]] = []
        self.kick_places = (0x1000 + vcpu_id,)
        self.shadow, self.nmi_masked = 0, False
        self.cr0 = self.cr4 = self.debugctl = self.tsc = 0
        self.segments: dict[str, Segment] = {}
        self.tables: dict[str, Dtable] = {}
        self.msrs = {0xC0000082: 0x1234}
        self.debugctl_mask = 4
        self.pdptes_are_fine = True
        self.is_closed = False

    # -- running --------------------------------------------------------------------------------

    def enter(self, vcpu: SoftwareVcpu) -> Answer:
        self.asked.append(("enter",))
        step = self.script.pop(0)
        if vcpu.events.needs_reinjection:
            vcpu.events.delivered()  # which a step may take back
        vcpu.in_guest = False
        return step(vcpu, self)

    def kick(self) -> None:
        self.asked.append(("kick",))

    def report_counts(self) -> None:
        self.asked.append(("report counts",))

    def close(self) -> None:
        self.is_closed = True

    def keep_alone(self) -> None:
        self.asked.append(("keep alone",))

    def reload_memory(self) -> None:
        self.asked.append(("reload memory",))

    # -- events ---------------------------------------------------------------------------------

    def inject_exception(self, exception: ExceptionQueue) -> None:
        self.asked.append(("exception", copy(exception)))

    def inject_interrupt(self, vector: int, is_soft: bool) -> None:
        self.asked.append(("interrupt", vector, is_soft))

    def inject_nmi(self) -> None:
        self.asked.append(("nmi",))

    def drop_injection(self) -> None:
        self.asked.append(("drop injection",))

    def interrupt_allowed(self) -> bool:
        return bool(self.state.rflags & IF) and not self.shadow

    def nmi_allowed(self) -> bool:
        return not self.nmi_masked and not self.shadow

    def open_interrupt_window(self, wanted: bool) -> None:
        self.asked.append(("interrupt window", wanted))

    def open_nmi_window(self, wanted: bool) -> None:
        self.asked.append(("nmi window", wanted))

    def get_interrupt_shadow(self) -> int:
        return self.shadow

    def set_interrupt_shadow(self, shadow: int) -> None:
        self.shadow = shadow

    def get_nmi_mask(self) -> bool:
        return self.nmi_masked

    def set_nmi_mask(self, masked: bool) -> None:
        self.nmi_masked = masked

    # -- registers ------------------------------------------------------------------------------

    def get_rflags(self) -> int:
        return int(self.state.rflags)

    def set_rflags(self, rflags: int) -> None:
        self.state.rflags = rflags

    def set_rip(self, rip: int) -> None:
        self.state.rip = rip

    def linear_rip(self) -> int:
        return int(self.state.rip) + self.segments["cs"].base

    @property
    def is_64_bit(self) -> bool:
        return bool(self.segments["cs"].l)

    def read_gpr(self, name: str) -> int:
        return int(getattr(self.state, name))

    def get_segment(self, name: str) -> Segment:
        return copy(self.segments[name])

    def set_segment(self, name: str, segment: Segment) -> None:
        self.segments[name] = copy(segment)

    def get_table(self, name: str) -> Dtable:
        return copy(self.tables[name])

    def set_table(self, name: str, table: Dtable) -> None:
        self.tables[name] = copy(table)

    def get_cr0(self) -> int:
        return self.cr0

    def set_cr0(self, cr0: int) -> None:
        self.cr0 = self.state.cr0 = cr0

    def get_cr4(self) -> int:
        return self.cr4

    def set_cr4(self, cr4: int) -> None:
        self.cr4 = self.state.cr4 = cr4

    def set_cr3(self, cr3: int) -> None:
        self.state.cr3 = cr3

    def set_efer(self, efer: int) -> None:
        self.state.efer = efer

    def load_pdptes(self) -> bool:
        self.asked.append(("load PDPTEs",))
        return self.pdptes_are_fine

    def set_breakpoints(self, db: Sequence[int] | None, dr7: int) -> None:
        self.asked.append(("breakpoints", db and tuple(db), dr7))
        if db is not None:
            self.state.dr0, self.state.dr1, self.state.dr2, self.state.dr3 = db
        self.state.dr7 = dr7

    def intercept_debug_registers(self, wanted: bool) -> None:
        self.asked.append(("debug registers", wanted))

    def update_exception_bitmap(self, guest_debug: int) -> None:
        self.asked.append(("exception bitmap", guest_debug))

    def cpuid_changed(self, vcpu: SoftwareVcpu) -> None:
        self.asked.append(("cpuid changed",))

    # -- MSRs -----------------------------------------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        return self.msrs.get(index)

    def write_msr(self, index: int, word: int) -> bool:
        if index in self.msrs:
            self.msrs[index] = word
        return index in self.msrs

    def get_debugctl(self) -> int:
        return self.debugctl

    def set_debugctl(self, debugctl: int) -> None:
        self.debugctl = debugctl

    def supported_debugctl(self, has_bus_lock_detect: bool, has_rtm: bool) -> int:
        return self.debugctl_mask if has_bus_lock_detect else 0

    def set_pat(self, pat: int) -> None:
        self.state.pat = pat

    def get_tsc(self) -> int:
        return self.tsc

    def set_tsc(self, tsc: int) -> None:
        self.tsc = tsc


class ScriptedPlatform:
    """Of a vendor nobody has heard of."""

    def __init__(self, has_bus_lock_exit: bool = True) -> None:
        self.bus_lock_exits = False
        self._has_bus_lock_exit = has_bus_lock_exit
        self.made: list[ScriptedBackend] = []
        self.forgotten: list[tuple[int, int]] = []

    @property
    def has_bus_lock_exit(self) -> bool:
        return self._has_bus_lock_exit

    def supported_cpuid(self) -> list[CpuidEntry]:
        ebx, edx, ecx = (int.from_bytes(text, "little") for text in (b"Scri", b"pted", b"Chip"))
        one = CpuidEntry(1, eax=0x12345)
        seven = CpuidEntry(7, 0, cpuid.SIGNIFICANT_INDEX)
        return [
            CpuidEntry(0, eax=7, ebx=ebx, ecx=ecx, edx=edx),
            one.with_feature(cpuid.MONITOR).with_feature(cpuid.SSE2),
            seven.with_feature(cpuid.BUS_LOCK_DETECT),
            CpuidEntry(0x80000000, eax=0x80000001),
        ]

    def create(self, vcpu_id: int, slots: Slots) -> Backend:
        backend = ScriptedBackend(vcpu_id, slots)
        self.made.append(backend)
        return backend

    def forget_code(self, start: int, size: int) -> None:
        self.forgotten.append((start, size))


_KEEPS_ITS_PROMISES: type[Platform] = ScriptedPlatform
