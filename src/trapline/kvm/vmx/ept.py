"""What the extended page tables of a VM look like."""

from __future__ import annotations

from typing import Final

from trapline.arch.paging import (
    EPT_EXECUTE,
    EPT_LARGE,
    EPT_READ,
    EPT_TYPE_SHIFT,
    EPT_WRITE,
    MemoryType,
)
from trapline.kvm.tdp import Format

EPT: Final = Format(
    table=EPT_READ | EPT_WRITE | EPT_EXECUTE,
    # Write-back, and no IPAT: unlike KVM we honour the guest's PAT always, for a bus lock on
    # memory that the guest made uncacheable is one of the two things we look for.
    page=EPT_READ | EPT_EXECUTE | MemoryType.WB << EPT_TYPE_SHIFT,
    write=EPT_WRITE,
    large=EPT_LARGE,
)
_POINTER: Final = MemoryType.WB | 3 << 3  # walk of four levels, no accessed and dirty flags


def pointer(root: int) -> int:
    """For the VMCS."""
    return root | _POINTER
