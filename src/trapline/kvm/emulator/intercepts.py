"""What an emulated instruction asks the hypervisor: everything that a guest can be asked for.

Where the hypervisor must do the instruction itself, `Taken` unwinds from the replay with what is
to be done; the checks before it (privilege, mode) were the description's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_PE
from trapline.kvm.emulator import system
from trapline.processor import HARDWARE_EXCEPTION, NESTED_EPT, Fault

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_LEFT_TO_THE_REPLAY: Final = frozenset(
    {"wbinvd", "invd", "pause", "rdtsc", "rdtscp", "rdpmc", "monitor", "mwait"}
)
_MACHINE_STATUS_WORD: Final = 0xF


class Taken(Exception):  # a way out, not an error
    """The hypervisor does this instruction: `act` works on the vCPU, and the instruction is then
    complete; it raises Fault, or Instead."""

    def __init__(self, act: Callable[[], Answer]) -> None:
        self.act = act


class Intercepts:
    """The emulator's `Guest`: what the processor's own microcode asks while it is replayed."""

    def __init__(self, vcpu: SoftwareVcpu, backend: CoreBackend) -> None:
        self._vcpu = vcpu
        self._backend = backend
        self.ept_pointer: int | None = None
        self.nested_format = NESTED_EPT
        self.watches = 0
        self.mov_dr_exits = self.io_exits = False
        self.vectoring_info = self.vectoring_error_code = self.vectoring_length = 0
        self.tsc_offset = 0
        self.bus_lock_exits = self.bus_lock_threshold = False
        self.locked_bus = False
        """The instruction has taken a bus lock."""
        self.halts = False
        """It was HLT: once it is complete, the vCPU waits."""

    # -- events ---------------------------------------------------------------------------------

    def intercept_exception(
        self, vector: int, error_code: int | None, payload: int, kind: int, length: int
    ) -> None:
        if kind == HARDWARE_EXCEPTION:  # while an INT n was being delivered
            is_page_fault = vector == Vector.PF
            cr2 = payload if is_page_fault else None
            raise Fault(vector, error_code, cr2, 0 if is_page_fault else payload)
        raise Taken(partial(system.raise_by_software, self._vcpu, self._backend, vector, length))

    def intercept_triple_fault(self) -> None: ...

    def intercept_interrupt(self) -> None: ...

    def intercept_nmi(self) -> None: ...

    def intercept_boundary(self, before_traps: bool) -> None: ...

    def intercept_task_switch(self, selector: int, source: int, length: int) -> None:
        """The replay does it."""

    # -- instructions ---------------------------------------------------------------------------

    def intercept(self, instruction: str, length: int, operand: int = 0) -> None:
        match instruction:
            case "invlpg":
                self._backend.core.memory.flush_page(operand)
            case "invpcid":
                self._backend.core.memory.flush()
            case "cpuid":
                raise Taken(partial(system.identify, self._vcpu))
            case "hlt":
                self.halts = True
                raise Taken(lambda: None)
            case "vmcall" | "vmmcall":
                raise Taken(partial(system.call_hypervisor, self._vcpu))
            case "xsetbv":
                raise Taken(partial(system.write_xcr, self._vcpu))
            case _ if instruction not in _LEFT_TO_THE_REPLAY:
                raise Fault(Vector.UD)

    def intercept_io(
        self, port: int, size: int, is_input: bool, length: int, string: int = 0, linear: int = 0
    ) -> None:
        """The bus asks the VMM."""

    def intercept_msr(self, index: int, is_write: bool, length: int) -> NoReturn:
        access = system.write_msr if is_write else system.read_msr
        raise Taken(partial(access, self._vcpu, index))

    def intercept_dr(self, register: int, is_read: bool, gpr: int, length: int) -> NoReturn:
        raise Taken(partial(system.access_dr, self._vcpu, register, is_read, gpr))

    def read_cr(self, register: int, gpr: int, length: int) -> int:
        return system.read_cr(self._vcpu, register)

    def write_cr(self, register: int, source: int, gpr: int, length: int) -> NoReturn:
        raise Taken(partial(system.write_cr, self._vcpu, self._backend, register, source))

    def write_cr0_part(self, source: int, is_clts: bool, length: int) -> NoReturn:
        cr0 = self._vcpu.backend.get_cr0()
        written = 1 << 3 if is_clts else _MACHINE_STATUS_WORD & ~(CR0_PE & cr0)
        word = cr0 & ~written | source & written
        raise Taken(partial(system.write_cr, self._vcpu, self._backend, 0, word))

    # -- memory ---------------------------------------------------------------------------------

    def before_bus_lock(self) -> None:
        """AMD's threshold is not asked: it stands before the instruction, and has let it pass."""

    def bus_lock_exit(self) -> None:
        self.locked_bus = True

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        raise AssertionError("the emulator goes through no nested tables")

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        raise AssertionError("the emulator goes through no nested tables")
