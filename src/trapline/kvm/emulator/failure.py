"""What becomes of an instruction that cannot be emulated, with the data as KVM lays them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trapline.arch.exception import Vector
from trapline.kvm import abi, exits

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu

_INSTRUCTION_BYTES: Final = 1  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
_LONGEST: Final = 15
_NOP: Final = b"\x90"


class ExitInformation(NamedTuple):
    """What the processor said of the exit that led here (kvm_x86_ops.get_exit_info)."""

    reason: int
    first: int
    second: int
    interruption: int
    error_code: int


NOTHING: Final = ExitInformation(0, 0, 0, 0, 0)


def fail(vcpu: SoftwareVcpu, code: bytes, information: ExitInformation) -> Answer:
    """handle_emulation_failure(): #UD for the guest, and at CPL 0 the VMM hears of it."""
    cpl = vcpu.state.cpl
    vcpu.events.queue(Vector.UD)
    return emulation_failure(code, information) if cpl == 0 else None


def emulation_failure(code: bytes, information: ExitInformation) -> exits.InternalError:
    """prepare_emulation_failure_exit(): flags, how many bytes could be fetched and these, and the
    exit's information."""
    data = [0]
    if code:
        area = bytes([len(code)]) + code[:_LONGEST].ljust(_LONGEST, _NOP)
        data = [_INSTRUCTION_BYTES]
        data += [int.from_bytes(area[:8], "little"), int.from_bytes(area[8:], "little")]
    return exits.InternalError(abi.INTERNAL_ERROR_EMULATION, [*data, *information])


def delivery_failure(information: ExitInformation, guest_physical: int) -> exits.InternalError:
    """kvm_prepare_event_vectoring_exit(): a device where the guest's IDT, TSS or stack should be,
    so that there is no instruction to emulate.  The last word would be the host's processor."""
    reason, first, second, _, _ = information
    data = [second, reason, first, guest_physical, 0]
    return exits.InternalError(abi.INTERNAL_ERROR_DELIVERY_EV, data)
