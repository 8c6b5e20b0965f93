"""What #VMEXIT writes into the control area, and the way out of the guest with it."""

from __future__ import annotations

from dataclasses import dataclass

from trapline.processor.guest import Leave, VmExit


@dataclass(slots=True)
class SvmExit:
    """Why the guest was left; one object an exit.

    `int_info` is EXITINTINFO with its error code in bits 63:32; `next_rip` is 0 where the exit
    is no instruction's.
    """

    code: int
    info_1: int = 0
    info_2: int = 0
    int_info: int = 0
    next_rip: int = 0


class SvmLeave(Leave):
    """Unwinds to `enter` with an exit in SVM's fields."""

    exit = VmExit(0)  # nobody's: these fields are VMX's

    def __init__(self, exit: SvmExit) -> None:
        self.svm_exit = exit
