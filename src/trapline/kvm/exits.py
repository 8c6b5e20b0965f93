"""Why `Vcpu.run()` returned: one small class an exit (kvm_run's union, KVM_EXIT_*).

An exit is a value; what to do about it is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Buffer = bytearray | memoryview


@dataclass(slots=True)
class Io:
    """IN or OUT.  `data` holds count x size bytes: read them, or fill them before the next run."""

    direction: int
    size: int
    port: int
    count: int
    data: Buffer

    @property
    def is_input(self) -> bool:
        """The guest waits for `data` (KVM_EXIT_IO_IN)."""
        return self.direction == 0


@dataclass(slots=True)
class Mmio:
    """An access where no slot is; `data` is read, or filled before the next run (1 to 8 bytes)."""

    guest_physical: int
    size: int
    is_write: bool
    data: Buffer


@dataclass(slots=True)
class Hlt:
    """HLT, with no interrupt chip in the kernel to wait for an interrupt."""


@dataclass(slots=True)
class Debug:
    """A debug event somebody asked for with `set_guest_debug`; dr6 as KVM reports it."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True)
class Shutdown:
    """A triple fault."""


@dataclass(slots=True)
class FailEntry:
    """The processor refused the VM entry; `reason` is the hardware's."""

    reason: int
    cpu: int = 0


@dataclass(slots=True)
class InternalError:
    """The hypervisor could not go on (KVM_INTERNAL_ERROR_*)."""

    suberror: int
    data: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Interrupted:
    """A kick or a signal ended the run; nothing happened in the guest."""


@dataclass(slots=True)
class IrqWindowOpen:
    """`request_interrupt_window` was set, and the guest can take an interrupt now."""


@dataclass(slots=True)
class SetTpr:
    """The guest lowered CR8, which may let an interrupt in."""


@dataclass(slots=True)
class IoapicEoi:
    """The guest has ended a level-triggered interrupt, which the VMM's I/O APIC must know."""

    vector: int


@dataclass(slots=True)
class X86BusLock:
    """The guest locked the bus (KVM_CAP_X86_BUS_LOCK_EXIT); the address is in the registers."""


@dataclass(slots=True)
class Unknown:
    """An exit this API has no class for, by its KVM_EXIT number."""

    reason: int
    hardware_reason: int = 0


Exit = (
    Io
    | Mmio
    | Hlt
    | Debug
    | Shutdown
    | FailEntry
    | InternalError
    | Interrupted
    | IrqWindowOpen
    | SetTpr
    | IoapicEoi
    | X86BusLock
    | Unknown
)
