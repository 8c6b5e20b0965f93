"""What the nested page tables of a VM look like."""

from __future__ import annotations

from typing import Final

from trapline.arch.paging import PTE_A, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.kvm.tdp import Format

NPT: Final = Format(
    table=PTE_P | PTE_W | PTE_U | PTE_A,
    # Entry 0 of the PAT: write-back.  The guest's own types come on top, for a bus lock on memory
    # that the guest made uncacheable is one of the two things we look for.
    page=PTE_P | PTE_U | PTE_A | PTE_D,
    write=PTE_W,
    large=PTE_PS,
)
