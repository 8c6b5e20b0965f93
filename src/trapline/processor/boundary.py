"""Between two instructions: what is pending, in the manual's order, and what comes of it.

SDM 3A, "Priority Among Concurrent Events".  `before` is called where an instruction (or a run of
them) is about to start, `after` when it has completed; who runs them is the core's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.debug import DR6_BS, DR6_BUS_LOCK, PAYLOAD_ENABLED_BREAKPOINT
from trapline.arch.msr import DEBUGCTL_BLD, DEBUGCTL_BTF
from trapline.arch.registers import RFLAGS_DF, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF
from trapline.processor import buslock, debug, exceptions, segment
from trapline.processor.buslock import Cause
from trapline.processor.fault import Fault
from trapline.processor.guest import EXTERNAL_INTERRUPT, NMI, WATCH_MONITOR_TRAP, WATCH_PAUSE
from trapline.processor.memory import change_host
from trapline.processor.notes import LockedAccess
from trapline.processor.state import AFTER_BUS_LOCK, BEFORE_BUS_LOCK, INDEX, OFFSET

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded
    from trapline.processor.state import State

SHADOW_STI, SHADOW_MOV_SS = 1, 2  # state.interrupt_shadow
HALTED = 1  # state.activity
_ATTENTION_LINES = 4  # of state.attention; 1 stops the core, 2 lets another have the bus
_DB, _NMI_VECTOR = 1, 2
_ITERATIONS = 4096
_SUFFIXES = {"b": 1, "w": 2, "d": 4, "q": 8}
_WRITING = {name + suffix: size for name in ("movs", "stos") for suffix, size in _SUFFIXES.items()}
_BT = 1 << 15
# Causes that make pending debug exceptions valid: an enabled breakpoint, a step, a task switch;
# and a bus lock, which has no enabling bit of its own.
_VALID = PAYLOAD_ENABLED_BREAKPOINT | DR6_BS | DR6_BUS_LOCK | _BT
_FLAGS, _SHADOW, _PENDING = (
    INDEX["system_flags"],
    INDEX["interrupt_shadow"],
    INDEX["pending_debug"],
)
_DEBUGCTL, _CPL, _DR7 = INDEX["debugctl"], INDEX["cpl"], INDEX["dr7"]
_SEEN, _SIGNALS = INDEX["bus_lock_seen"], INDEX["bus_lock_signals"]
_LINES = INDEX["lines"]
_STEPPED = WATCH_MONITOR_TRAP | WATCH_PAUSE


class InterruptLines:
    """NMI and INTR of a bare processor; any thread may raise them."""

    def __init__(self, state: State) -> None:
        self._attention = state.address + OFFSET["attention"]
        self._q = state.q
        self.nmi = False
        self.vector: int | None = None  # what the interrupt controller answers to INTR

    def raise_nmi(self) -> None:
        self.nmi = True
        self._ask()

    def raise_interrupt(self, vector: int) -> None:
        self.vector = vector
        self._ask()

    def _ask(self) -> None:
        change_host(self._attention, 8, lambda bits: bits | _ATTENTION_LINES)

    def acknowledge(self) -> int:
        """The interrupt-acknowledge cycle."""
        vector = self.vector
        assert vector is not None
        self.vector = None
        return vector

    def tell_native_code(self) -> None:
        """While something is asked for, native code does not enable interrupts by itself."""
        self._q[_LINES] = int(self.nmi or self.vector is not None)


def must_step(core: Core) -> bool:
    """Whether the next instruction must be run alone: its end is another kind of boundary."""
    q = core.state.q
    if q[_FLAGS] & (RFLAGS_TF | RFLAGS_RF) or q[_SHADOW]:
        return True
    if core.guest is not None and core.guest.watches & _STEPPED:
        return True
    if not q[_DR7] & 0xFF:
        return False
    memory = core.memory
    memory.breakpoints_changed()  # whoever may have changed them
    return bool(memory.stops) and segment.linear_rip(core.state) >> 12 in memory.stops


def iterations(core: Core) -> int:
    """How many iterations of a REP instruction may pass before its end is looked at."""
    memory, instruction = core.memory, core.instruction
    if memory.notes.stepping or memory.is_watching:
        return 1
    if instruction is None or not instruction.form.repeat:
        return _ITERATIONS
    size = _WRITING.get(instruction.form.name)
    return _ITERATIONS if size is None else _until_itself(core, instruction, size)


def _until_itself(core: Core, instruction: Decoded, size: int) -> int:
    """As many iterations as there are up to one that writes the instruction itself, which must
    be fetched again then."""
    state = core.state
    target = state.rdi & (1 << instruction.form.address_width) - 1
    if segment.code_mode(state)[0] != 64:
        target = target + state.es_base & 0xFFFFFFFF
    first = segment.linear_rip(state)
    end = first + instruction.length
    if state.system_flags & RFLAGS_DF:
        ahead = target - end if target + size > first else None
    else:
        ahead = first - target - size if target < end else None
    if ahead is None:
        return _ITERATIONS
    return min(_ITERATIONS, max(0, ahead // size + 1) + 1)


def before(core: Core) -> None:
    """Take what is pending.  May put a handler in the next instruction's place, raise the fault
    of a code breakpoint, or leave the guest."""
    q, guest = core.state.q, core.guest
    if guest is not None and guest.watches:
        guest.intercept_boundary(True)
    if q[_PENDING] and q[_SHADOW] != SHADOW_MOV_SS:
        _take_debug_traps(core)
    if guest is not None and guest.watches:
        guest.intercept_boundary(False)
    lines = core.interrupt_lines
    if lines.nmi or lines.vector is not None or q[_LINES]:
        _take_lines(core)
        lines.tell_native_code()
    if q[_DR7] & 0xFF:
        _check_code_breakpoints(core)
    begin(core)
    choose_signals(core)


def before_kick(core: Core) -> None:
    """Take what comes before an external interrupt, in whose place a hypervisor sees a kick: the
    debug traps of the last instruction, which would be lost with the exit."""
    q = core.state.q
    if q[_PENDING] and q[_SHADOW] != SHADOW_MOV_SS:
        try:
            _take_debug_traps(core)
        except Fault as fault:
            exceptions.deliver_fault(core, fault)


def begin(core: Core) -> None:
    """Note what the next instruction begins with, for `after` to know."""
    q, notes = core.state.q, core.memory.notes
    flags = q[_FLAGS]
    notes.drop()  # what an instruction that left the guest half done had met
    notes.stepping = bool(flags & RFLAGS_TF)
    notes.resume = bool(flags & RFLAGS_RF)
    notes.shadow = q[_SHADOW]


def choose_signals(core: Core) -> None:
    """Whether native code must come back for a bus lock, because somebody will be told of it."""
    q, guest = core.state.q, core.guest
    signals = AFTER_BUS_LOCK if q[_DEBUGCTL] & DEBUGCTL_BLD and q[_CPL] else 0
    if guest is not None:
        if guest.bus_lock_exits:
            signals = AFTER_BUS_LOCK
        if guest.bus_lock_threshold:
            signals |= BEFORE_BUS_LOCK
    q[_SIGNALS] = signals


def after(core: Core) -> None:
    """An instruction, or the last of a run, has completed: gather what it causes."""
    q, notes = core.state.q, core.memory.notes
    if q[_SEEN]:
        _fetch_native_lock(core)
    if notes.is_unfinished:
        # SDM 3B, "Instruction-Breakpoint Exception Condition": between two iterations RF is 1.
        q[_FLAGS] |= RFLAGS_RF
        notes.is_unfinished = False
    elif notes.resume:
        q[_FLAGS] &= ~RFLAGS_RF  # it is for one instruction
    if notes.shadow:
        q[_SHADOW] = 0
    if notes.breakpoints:
        q[_PENDING] |= notes.breakpoints
        notes.breakpoints = 0
    if notes.stepping and (not q[_DEBUGCTL] & DEBUGCTL_BTF or _has_branched(core)):
        q[_PENDING] |= DR6_BS
    lock = notes.lock
    if lock is not None:
        notes.lock = None
        buslock.after_instruction(core, lock)


def wakes(core: Core) -> bool:
    """Whether a halted processor has something to wake up for."""
    state, lines = core.state, core.interrupt_lines
    if state.activity != HALTED:
        return False
    if state.pending_debug & _VALID or lines.nmi and not state.nmi_blocked:
        return True
    return lines.vector is not None and bool(state.system_flags & RFLAGS_IF)


def _has_branched(core: Core) -> bool:
    """Whether the instruction just stepped over transferred control."""
    instruction, rip = core.instruction, core.state.rip
    if instruction is None or rip == instruction.next_rip:
        return False
    return not (instruction.form.repeat and rip == instruction.rip)  # another iteration


def _fetch_native_lock(core: Core) -> None:
    state = core.state
    state.bus_lock_seen = 0
    linear = state.bus_lock_linear
    core.memory.notes.lock = LockedAccess(
        state.bus_lock_rip,
        linear,
        core.memory.known_physical(linear),
        state.bus_lock_size,
        state.cpl,
        Cause.SPLIT,
    )


def _take_debug_traps(core: Core) -> None:
    state = core.state
    causes = state.pending_debug
    state.pending_debug = 0
    if causes & _VALID:
        exceptions.deliver(core, _DB, payload=causes)


def _take_lines(core: Core) -> None:
    """NMI, then external interrupts."""
    state, lines, guest = core.state, core.interrupt_lines, core.guest
    if lines.nmi and not state.nmi_blocked and state.interrupt_shadow != SHADOW_MOV_SS:
        if guest is not None:
            guest.intercept_nmi()
        lines.nmi = False
        exceptions.deliver(core, _NMI_VECTOR, kind=NMI)
    if lines.vector is None:
        return
    if guest is not None:
        guest.intercept_interrupt()  # whatever IF says
    if state.system_flags & RFLAGS_IF and not state.interrupt_shadow:
        exceptions.deliver(core, lines.acknowledge(), kind=EXTERNAL_INTERRUPT)


def _check_code_breakpoints(core: Core) -> None:
    state = core.state
    if state.system_flags & RFLAGS_RF or state.interrupt_shadow == SHADOW_MOV_SS:
        return
    hit = debug.code_breakpoints(state, segment.linear_rip(state))
    if hit:
        raise Fault(_DB, payload=hit)
