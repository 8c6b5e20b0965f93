"""Hardware task switches: done by the hypervisor, in the processor's place (kvm_task_switch).

What a task switch is says the processor's own microcode, replayed; here is only what led to it,
and whose the faults are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trapline.arch.debug import PAYLOAD_ENABLED_BREAKPOINT
from trapline.arch.exception import Vector
from trapline.arch.vmx import EventType
from trapline.kvm.emulator import ExitInformation, delivery_failure
from trapline.kvm.emulator.debug import take_traps
from trapline.kvm.emulator.devices import Awaited, Devices
from trapline.kvm.emulator.emulator import using_memory
from trapline.kvm.emulator.intercepts import Intercepts, Taken
from trapline.kvm.emulator.system import Instead
from trapline.processor import Fault, NotMemory, Replayer, Undefined

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_SOFTWARE: Final = (
    EventType.SOFTWARE_INTERRUPT,
    EventType.SOFTWARE_EXCEPTION,
    EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
)


class Delivered(NamedTuple):
    """The event that met a task gate; the kind in VMX's numbers."""

    kind: int
    vector: int
    error_code: int | None


def switch_task(
    vcpu: SoftwareVcpu, backend: CoreBackend, event: Delivered | None, exit: ExitInformation
) -> Answer:
    """CALL, JMP or IRET again from its beginning, or the event again through the IDT.  What
    another processor has put in the instruction's place since, the guest comes to by itself.

    `exit`: what the processor said, for a report that it could not be done.
    """
    with using_memory(vcpu):
        return _switch(vcpu, backend, event, exit)


def _switch(
    vcpu: SoftwareVcpu, backend: CoreBackend, event: Delivered | None, exit: ExitInformation
) -> Answer:
    replayer = Replayer(backend.core, Devices(vcpu, backend.slots), Intercepts(vcpu, backend))
    replayer.load()
    try:
        if event is None:
            replayer.begin()
            replayer.execute(replayer.fetch())
            replayer.finish()
        else:
            length = len(replayer.fetch().code) if event.kind in _SOFTWARE else 0
            replayer.deliver(event.vector, event.error_code, kind=event.kind, length=length)
    except (Taken, Instead):
        return None
    except Fault as fault:
        _raise(vcpu, replayer, fault)
        return None
    except (Awaited, NotMemory, Undefined):  # a device where the tables or the tasks should be
        return delivery_failure(exit, 0)
    vcpu.events.delivered()
    traps = replayer.state.pending_debug & ~PAYLOAD_ENABLED_BREAKPOINT
    replayer.state.pending_debug = 0
    replayer.store()
    return take_traps(vcpu, traps)


def _raise(vcpu: SoftwareVcpu, replayer: Replayer, fault: Fault) -> None:
    """A fault before the new task's registers are loaded leaves the old one as it was, and comes
    on top of the event; after that it is the new task's (SDM 3A, "Task Switching")."""
    events = vcpu.events
    if replayer.state.tr_selector != vcpu.state.tr_selector:
        events.delivered()
        replayer.state.pending_debug = replayer.state.interrupt_shadow = 0
        replayer.store()
    events.interrupt_injected = events.nmi_injected = False
    payload = fault.cr2 or 0 if fault.vector == Vector.PF else fault.payload or None
    events.queue(fault.vector, fault.error_code, payload)
