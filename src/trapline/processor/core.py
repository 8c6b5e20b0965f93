"""One logical processor: its state, its engine, and the loop between two instructions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import trapline.processor.isa  # noqa: F401 - registers the instructions
from trapline.arch.registers import CR0_EM, CR0_PE, CR0_TS, CR4_OSFXSR, RFLAGS_RF, RFLAGS_TF
from trapline.processor import boundary, debug, exceptions, segment
from trapline.processor.cluster import Cluster
from trapline.processor.cpuid import Model, model
from trapline.processor.decode import Decoded, decode_run
from trapline.processor.fault import Fault, Undefined
from trapline.processor.guest import WATCH_PAUSE
from trapline.processor.interp import execute
from trapline.processor.jit import SILENT, Engine, Native, SiteTable, SiteTotal
from trapline.processor.memory import HostBus, Memory
from trapline.processor.microcode import MICROCODE
from trapline.processor.msr import Msrs
from trapline.processor.state import INDEX, OFFSET, State

if TYPE_CHECKING:
    from trapline.processor.events import Observer
    from trapline.processor.guest import Guest
    from trapline.processor.jit import Block
    from trapline.processor.memory import Bus

_PENDING, _SHADOW = INDEX["pending_debug"], INDEX["interrupt_shadow"]
_ATTENTION, _ACTIVITY = INDEX["attention"], INDEX["activity"]
_FLAGS, _DR7, _BUS_LOCK_SEEN = INDEX["system_flags"], INDEX["dr7"], INDEX["bus_lock_seen"]
_IMMEDIATE = 1 << 6  # exit qualification for I/O: the port is in the instruction
_COUNTED = INDEX["bus_lock_counted"]
_MXCSR_MASKS = 0x1F80
# By whether FS and GS are flat, then by whether floating point is native.
_NATIVE = (
    (Native.INTEGERS, Native.INTEGERS | Native.UNITS),
    (Native.INTEGERS | Native.FS_GS, Native.ALL),
)
_FCW_MASKS = 0x3F


class Core:
    """A logical processor.

    `engine` "jit" or "interp".  `cluster` is shared by processors on one memory; `observer`
    sees bus locks; `guest` asks for intercepts while a hypervisor's guest runs.
    """

    def __init__(
        self,
        chosen: Model | str = "max",
        bus: Bus | None = None,
        *,
        engine: str = "jit",
        cluster: Cluster | None = None,
        apic_id: int = 0,
    ) -> None:
        if engine not in ("jit", "interp"):
            raise ValueError(f"there is no engine {engine!r}; choose jit or interp")
        self.state = State()
        self.model = model(chosen) if isinstance(chosen, str) else chosen
        self.bus: Bus = bus if bus is not None else HostBus()
        self.apic_id = apic_id
        self.guest: Guest | None = None
        self.observer: Observer | None = None
        self.cluster = cluster if cluster is not None else Cluster()
        self.memory = Memory(self)
        self.memory.tlb.code = self.cluster.code_pages
        self.memory.tlb.maps = self.cluster.code_maps.addresses
        self.memory.exclusive = lambda: self.cluster.exclusive(self)
        self.msrs = Msrs(self)
        self.interrupt_lines = boundary.InterruptLines(self.state)
        self.instruction: Decoded | None = None
        self._kicked = ctypes.c_uint8()
        self._sites = SiteTable()
        self.state.bus_lock_table = self._sites.address
        self.state.dr6_fixed = debug.dr6_fixed(self.model)
        self.engine = Engine(self, self.cluster.code) if engine == "jit" else None
        self._decoded: dict[tuple[bytes, int, int], Decoded] = {}
        self.cluster.join(self)

    # -- what the engines ask ----------------------------------------------------------------------

    def linearize(self, name: str, offset: int, size: int, is_write: bool) -> int:
        """Segment:offset to a linear address, with the segment's checks."""
        return segment.linearize(self, name, offset, size, is_write)

    def run_microcode(self, name: str, instruction: Decoded, args: Sequence[int]) -> int | None:
        return MICROCODE[name](self, instruction, *args)

    @property
    def code_mode(self) -> tuple[int, int]:
        """Bitness of the code, width of the stack."""
        return segment.code_mode(self.state)

    @property
    def native(self) -> Native:
        """What the fast engine may run in the present mode: flat segments, and floating point
        only where no exception is unmasked (the host runs guest arithmetic with all of them
        masked) and the units are switched on, which native code does not look at."""
        state, has_fs_gs = self.state, True
        if self.code_mode[0] != 64:
            if not segment.are_flat(state, ("es", "cs", "ss", "ds")) or not state.cr0 & CR0_PE:
                return Native.NOTHING
            if state.es_base or state.ss_base or state.ds_base:
                return Native.NOTHING  # native code looks for the limit only behind CS, FS and GS
            has_fs_gs = segment.are_flat(state, ("fs", "gs"))
        has_units = not state.cr0 & (CR0_EM | CR0_TS) and state.cr4 & CR4_OSFXSR
        if state.mxcsr & _MXCSR_MASKS != _MXCSR_MASKS or state.fcw & _FCW_MASKS != _FCW_MASKS:
            has_units = False
        return _NATIVE[has_fs_gs][bool(has_units)]

    def deny_write(self, host_page: int) -> None:
        """A host page is about to hold translated code."""
        self.cluster.deny_write(self, host_page)

    def keep_block(
        self, key: tuple[int, ...], block: Block, is_current: Callable[[], bool]
    ) -> bool:
        """Have a translation found, if the code is still what was translated."""
        return self.cluster.keep_block(key, block, is_current)

    def flush_translations(self, host: int, size: int = 1) -> None:
        """Bytes of a host page that holds translated code were written."""
        self.cluster.written(host, size)

    def mappings_changed(self) -> None:
        """Linear addresses may lead elsewhere: the native jump caches are stale."""
        if self.engine is not None:
            self.engine.mappings_changed()

    # -- one instruction on the reference engine ---------------------------------------------------

    def fetch(self) -> Decoded:
        """Decode the instruction at CS:RIP; raises the fault of fetching it."""
        state, memory, window = self.state, self.memory, segment.code_window
        rip = state.rip
        bitness, stack_width = segment.code_mode(state)
        linear, count = (rip, 15) if bitness == 64 else window(state, rip, 15)
        code = memory.fetch(linear, count)
        mode = bitness | stack_width << 8
        known = self._decoded.get((code, rip, mode))
        if known is not None:
            return known
        while True:
            found = next(decode_run(code, rip, bitness, stack_width), None)
            if found is not None:
                break
            if len(code) >= 15:
                raise Fault(13, 0)  # SDM 2A, 2.3.11: longer than 15 bytes
            code += memory.fetch(*window(state, rip + len(code), 15 - len(code)))
        if len(self._decoded) > 20000:
            self._decoded.clear()
        self._decoded[code, rip, mode] = found
        return found

    def interpret(self, instruction: Decoded | None = None) -> None:
        """Do the instruction at CS:RIP on the reference engine, or raise its fault.
        `instruction`: what it is, where that is known."""
        if instruction is None:
            instruction = self.fetch()
        self.instruction = instruction
        notes, guest = self.memory.notes, self.guest
        if guest is not None and guest.watches & WATCH_PAUSE and instruction.name == "pause":
            guest.intercept("pause", instruction.length)
        try:
            if not execute(self, instruction, boundary.iterations(self)):
                notes.is_unfinished = True
        except Undefined as undefined:
            if self.observer is not None:
                self.observer.undefined(self.state.rip, undefined.code, undefined.text)
            raise

    # -- running -----------------------------------------------------------------------------------

    def kick(self) -> None:
        """Make `run` return at the next boundary.  From any thread."""
        self._kicked.value = 1
        self.state.attention = 1

    @property
    def kick_places(self) -> tuple[int, ...]:
        """Addresses of bytes: storing 1 in each, in this order, is a kick.  For signal handlers
        on the thread that calls `run`."""
        return ctypes.addressof(self._kicked), self.state.address + OFFSET["attention"]

    def step(self) -> None:
        """One instruction, with what it causes at its end; faults are delivered."""
        try:
            boundary.before(self)
            if self.state.activity:  # shut down there, or still waiting
                return
            self.interpret()
            boundary.after(self)
        except Fault as fault:
            exceptions.deliver_fault(self, fault)

    def step_natively(self) -> bool:
        """As `step`, on the fast engine, and a fault is raised instead of delivered: to compare
        the engines.  False if the instruction was the reference engine's after all."""
        assert self.engine is not None
        boundary.before(self)
        if boundary.must_step(self):
            self.interpret()
            native = False
        else:
            self._tell_native_code()
            native = self.engine.step()
        boundary.after(self)
        return native

    def run(self) -> None:
        """Run until the processor halts or shuts down (state.activity), or is kicked
        (state.attention is then 1)."""
        state = self.state
        while True:
            # Cleared before looking, so that a kick from now on is seen by native code.
            state.attention = 0
            if self._kicked.value:
                self._kicked.value = 0
                state.attention = 1
                return
            if state.activity and not boundary.wakes(self):
                return
            self._advance()

    def _advance(self) -> None:
        """From one boundary that must be looked at to the next."""
        state = self.state
        try:
            boundary.before(self)
            if state.activity:  # shut down there, or still waiting
                return
            if self.engine is None or boundary.must_step(self):
                self.interpret()
            else:
                self._tell_native_code()
                self.engine.run()
                if state.bus_lock_seen == SILENT:
                    self._count_site()
            boundary.after(self)
        except Fault as fault:
            exceptions.deliver_fault(self, fault)

    def _tell_native_code(self) -> None:
        """What a hypervisor wants to be asked about."""
        state, guest = self.state, self.guest
        if guest is None:
            state.mov_dr_exits = state.io_exits = 0
        else:
            state.mov_dr_exits, state.io_exits = guest.mov_dr_exits, guest.io_exits
            if guest.watches:
                # Until the guest can take an interrupt or an NMI.  Whatever makes it able to
                # comes back here: IRET and SYSRET because of this, the others in any case.
                state.lines = 1

    def leave_for_port(self, qualification: int, length: int) -> NoReturn:
        """IN or OUT, which leaves the guest whatever the port (Guest.io_exits)."""
        assert self.guest is not None
        size, is_input = (qualification & 7) + 1, bool(qualification & 8)
        self.guest.intercept_io(
            qualification >> 16, size, is_input, length, qualification & _IMMEDIATE
        )
        raise AssertionError("the hypervisor takes every port access, and did not take this one")

    def goes_on(self) -> bool:
        """Whether nothing is to be done at this boundary, so that native code may go on: the
        quick answer to what `boundary.after` and `before` would find."""
        q, notes, guest = self.state.q, self.memory.notes, self.guest
        if q[_PENDING] or q[_SHADOW] or q[_ATTENTION] or q[_ACTIVITY]:
            return False
        if q[_FLAGS] & (RFLAGS_TF | RFLAGS_RF) or q[_DR7] & 0xFF or notes.is_unfinished:
            return False
        if notes.lock is not None or notes.breakpoints or q[_BUS_LOCK_SEEN]:
            return False
        lines = self.interrupt_lines
        if guest is not None and guest.watches or lines.nmi or lines.vector is not None:
            return False
        boundary.choose_signals(self)
        return True

    # -- bus locks that only count -----------------------------------------------------------------

    def _count_site(self) -> None:
        """A bus lock that signals nothing was seen for the first time: from now on native code
        only counts this instruction's."""
        state, sites = self.state, self._sites
        rip, linear = state.bus_lock_rip, state.bus_lock_linear
        self._hand_over(sites.claim(rip))
        sites.describe(rip, state.rip, state.bus_lock_size, state.cpl, linear)

    def hand_over_bus_locks(self) -> None:
        """Give the observer what native code has counted.  On the processor's own thread, or
        while it is not running."""
        q = self.state.q
        if q[_COUNTED]:
            q[_COUNTED] = 0
            for total in self._sites.drain():
                self._hand_over(total)

    def _hand_over(self, total: SiteTotal | None) -> None:
        if total is not None and total.times and self.observer is not None:
            self.observer.bus_lock_total(*total)

    def keep_alone(self) -> None:
        """In the child of a host fork: the others of the cluster stayed behind, and so did what
        this one has counted."""
        self._sites = SiteTable()
        self.state.bus_lock_table = self._sites.address
        self.cluster.keep(self)

    def close(self) -> None:
        """The processor will not run again."""
        self.hand_over_bus_locks()
        self.cluster.leave(self)
