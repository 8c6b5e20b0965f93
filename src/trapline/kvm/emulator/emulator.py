"""x86_emulate_instruction(): one instruction at CS:RIP, done by the hypervisor.

The processor's own description is replayed on a copy of the registers; `devices` are what is no
memory, `intercepts` what a guest may not do.  Nothing counts until the instruction is complete.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final

from trapline.arch.debug import DR6_BUS_LOCK
from trapline.arch.exception import Vector
from trapline.arch.registers import RFLAGS_TF
from trapline.kvm import abi, exits, guest_debug
from trapline.kvm.emulator import debug
from trapline.kvm.emulator.devices import Awaited, Devices
from trapline.kvm.emulator.failure import ExitInformation, fail
from trapline.kvm.emulator.intercepts import Intercepts, Taken
from trapline.kvm.emulator.string import inputs_wanted
from trapline.kvm.emulator.system import Instead
from trapline.kvm.quirks import Quirk
from trapline.processor import Decoded, Fault, NotMemory, Replayer, Undefined

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_ITERATIONS: Final = 1024  # of a REP instruction before the guest is entered again (as KVM)
_MOV_SS: Final = 2
_LONGEST: Final = 15  # bytes of an instruction

Steps = Generator[exits.Exit, None, "Answer"]
"""An emulation: it yields exits, and goes on when the VMM has answered them."""


class Origin(Enum):
    """What led to the emulator (KVM's EMULTYPE_*)."""

    EXIT = "exit"  # the processor executed the instruction up to here
    FORCED = "forced"  # the forced-emulation prefix: nobody has looked at it yet


@contextmanager
def using_memory(vcpu: SoftwareVcpu) -> Iterator[None]:
    """No slot that goes away is given back to the VMM meanwhile."""
    vcpu.in_guest = True
    try:
        yield
    finally:
        vcpu.in_guest = False


class Emulator:
    """One vCPU's."""

    def __init__(self, vcpu: SoftwareVcpu, backend: CoreBackend) -> None:
        self._vcpu = vcpu
        self._backend = backend
        self._devices = Devices(vcpu, backend.slots)
        self._intercepts = Intercepts(vcpu, backend)
        self._replayer = Replayer(backend.core, self._devices, self._intercepts)
        self._rip = 0
        """Where the guest stood when the VMM was last asked."""

    def emulate(self, information: ExitInformation, origin: Origin = Origin.EXIT) -> Answer:
        """Do the instruction at CS:RIP, or as much of it as goes without the VMM.

        `information`: of the exit that led here, for a failure's report.
        """
        self._devices.clear()
        return self._drive(self._steps(information, origin))

    def peek(self, count: int) -> bytes:
        """The bytes at CS:RIP, as far as they can be read."""
        with using_memory(self._vcpu):
            self._replayer.load()
            return self._fetch(count)

    def decode(self) -> Decoded | None:
        """The instruction at CS:RIP; None if it cannot be read."""
        with using_memory(self._vcpu):
            self._replayer.load()
            try:
                return self._replayer.fetch()
            except (Fault, NotMemory):
                return None

    def patch(self, code: bytes) -> Answer:
        """Write over the bytes at CS:RIP, as the guest itself could; Fault if it could not."""
        self._devices.clear()
        return self._drive(self._patch(code))

    def _patch(self, code: bytes) -> Steps:
        replayer, word = self._replayer, int.from_bytes(code, "little")
        replayer.load()
        replayer.memory.write(self._backend.linear_rip(), len(code), word)
        yield from self._tell()
        return None

    def _drive(self, steps: Steps) -> Answer:
        state = self._vcpu.state
        try:
            with using_memory(self._vcpu):
                exit = next(steps)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer
        self._rip = state.rip

        def complete() -> Answer:
            if state.rip != self._rip:  # the VMM sent the guest elsewhere
                return None
            return self._drive(steps)

        self._vcpu.complete = complete
        return exit

    # -- an instruction -------------------------------------------------------------------------

    def _steps(self, information: ExitInformation, origin: Origin) -> Steps:
        replayer, devices = self._replayer, self._devices
        left = _ITERATIONS
        instruction: Decoded | None = None
        has_asked = False
        replayer.load()
        while left:
            devices.restart()
            try:
                if instruction is None:
                    instruction = replayer.fetch()
                    if origin is Origin.FORCED:
                        self._check_breakpoints()
                is_done, answer = self._replay(instruction)
            except Awaited as awaited:
                yield from self._tell()
                yield awaited.exit
                devices.answer(awaited.exit)
                has_asked = True
                replayer.reload()
                continue
            except Instead as instead:
                return instead.answer
            except (Undefined, NotMemory):
                return self._fail(information, origin)
            except Fault as fault:
                return self._raise(fault)
            left -= 1
            has_asked = has_asked or bool(devices.outputs)
            answer = yield from self._end(answer)
            if is_done or answer is not None or self._vcpu.events.waiting:
                return answer
            if has_asked and not devices.has_answers:
                return None  # interrupts have waited long enough
            replayer.reload()
        return None

    def _replay(self, instruction: Decoded) -> tuple[bool, Answer]:
        """Once through the description; whether the instruction is done, and what the hypervisor
        had to say to it."""
        replayer, vcpu = self._replayer, self._vcpu
        state, notes = replayer.state, replayer.memory.notes
        replayer.begin()
        if vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
            # The TF that is there is the debugger's, and the instruction must not see it.
            state.system_flags = guest_debug.get_rflags(vcpu) & state.system_flags
            notes.stepping = True
        is_watched = notes.stepping or replayer.memory.is_watching
        self._devices.inputs_wanted = 1 if is_watched else inputs_wanted(state, instruction)
        self._intercepts.locked_bus = self._intercepts.halts = False
        answer: Answer = None
        start, is_done = state.rip, True
        try:
            is_done = replayer.execute(instruction)
        except Taken as taken:
            answer = taken.act()
            replayer.reload()
            state.rip = instruction.next_rip
        except Fault:
            # What a fault leaves changed, as #XM does MXCSR, is the description's business.
            stepping = vcpu.state.system_flags & RFLAGS_TF
            replayer.store()
            vcpu.state.system_flags |= stepping
            raise
        replayer.finish()
        if instruction.form.repeat and state.rip == start:
            is_done = False
        return is_done, answer

    def _end(self, answer: Answer) -> Steps:
        """An instruction, or an iteration, is complete: it counts from here, the VMM is told, and
        what it caused is taken."""
        replayer, vcpu = self._replayer, self._vcpu
        state = replayer.state
        if Quirk.EMULATOR_LOCKS_NOTHING in vcpu.quirks:
            state.pending_debug &= ~DR6_BUS_LOCK
            self._intercepts.locked_bus = False
        traps, is_held = state.pending_debug, state.interrupt_shadow == _MOV_SS
        if not is_held:
            state.pending_debug = 0
        self._store()
        self._devices.forget()
        has_told = bool(self._devices.outputs)
        if self._intercepts.locked_bus and self._reports_bus_locks():
            vcpu.flags |= abi.RUN_X86_BUS_LOCK
            answer = answer or (None if has_told else exits.X86BusLock())
        # First the traps: while one is pending the VMM must not inject an interrupt.
        trap = None if is_held else debug.take_traps(vcpu, traps)
        yield from self._tell()
        if self._intercepts.halts:
            return guest_debug.halt_after(vcpu, trap)
        return trap or answer

    def _store(self) -> None:
        self._replayer.store()
        if self._vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
            guest_debug.set_rflags(self._vcpu, self._replayer.state.rflags)

    def _tell(self) -> Generator[exits.Exit, None, None]:
        """What has been written, in order."""
        outputs = self._devices.outputs
        while outputs:
            yield outputs.pop(0)

    def _reports_bus_locks(self) -> bool:
        """KVM_CAP_X86_BUS_LOCK_EXIT, in either vendor's way.

        Upstream's emulator locks nothing and reports nothing.  Here a locked access to a device
        is what the guest asked for, a bus lock.
        """
        guest = self._backend.core.guest
        return guest is not None and (guest.bus_lock_exits or guest.bus_lock_threshold)

    # -- what comes instead ---------------------------------------------------------------------

    def _check_breakpoints(self) -> None:
        ignores_shadow = self._backend.core.model.is_amd
        answer, payload = debug.code_breakpoint(self._vcpu, ignores_shadow)
        if answer is not None:
            raise Instead(answer)
        if payload:
            raise Fault(Vector.DB, payload=payload)

    def _raise(self, fault: Fault) -> Answer:
        """inject_emulated_exception()."""
        payload = fault.payload or None
        if fault.vector == Vector.PF:
            payload = fault.cr2 or 0
        self._vcpu.events.queue(fault.vector, fault.error_code, payload)
        return None

    def _fail(self, information: ExitInformation, origin: Origin) -> Answer:
        if origin is Origin.FORCED:  # EMULTYPE_TRAP_UD_FORCED
            self._vcpu.events.queue(Vector.UD)
            return None
        return fail(self._vcpu, self._fetch(_LONGEST), information)

    def _fetch(self, count: int) -> bytes:
        try:
            return self._replayer.memory.fetch(self._backend.linear_rip(), count)
        except (Fault, NotMemory):
            return b""
