"""How a VM entry fails, and the shape of the checks that say so."""

from __future__ import annotations

from dataclasses import dataclass

from trapline.arch.vmx import EntryFailure, InstructionError


class VmFail(Exception):
    """VMfailValid: nothing was loaded.  `error` is what VM_INSTRUCTION_ERROR holds."""

    def __init__(self, error: InstructionError, complaint: str) -> None:
        super().__init__(f"{error.name.lower().replace('_', ' ')}: {complaint}")
        self.error = error
        self.complaint = complaint


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why the guest state was refused; the entry ends in exit 33 with this qualification."""

    text: str
    qualification: EntryFailure = EntryFailure.DEFAULT
