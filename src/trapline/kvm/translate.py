"""KVM_TRANSLATE: the guest's page tables, read from outside, without marking anything."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from trapline.arch import registers
from trapline.arch.paging import PTE_BASE, PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.kvm.structures import Translation

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu


def translate(vcpu: SoftwareVcpu, linear: int) -> Translation:
    """Where a linear address leads at the guest's present paging mode."""
    backend, state = vcpu.backend, vcpu.state
    # An observer may ask while the guest runs: what an exit would save is then in the processor.
    cr0 = state.cr0 if vcpu.in_guest else backend.get_cr0()
    if not cr0 & registers.CR0_PG:
        return Translation(linear, linear, True, True, False)
    cr4 = state.cr4 if vcpu.in_guest else backend.get_cr4()
    if state.efer & registers.EFER_LMA:
        top = 48 if cr4 & registers.CR4_LA57 else 39
        leaf = _walk(vcpu, linear, state.cr3 & PTE_BASE, top, 8)
        if (linear + (1 << top + 8)) >> (top + 9) & (1 << 55 - top) - 1:
            leaf = None
    elif cr4 & registers.CR4_PAE:
        entry = _read(vcpu, (state.cr3 & registers.CR3_PAE_BASE) + (linear >> 30 & 3) * 8, 8)
        leaf = _walk(vcpu, linear, entry & PTE_BASE, 21, 8) if entry & PTE_P else None
    else:
        leaf = _walk(vcpu, linear, state.cr3 & 0xFFFFF000, 22, 4)
    if leaf is None:
        return Translation(linear, 0xFFFFFFFF_FFFFFFFF, False, False, False)
    physical, rights = leaf
    return Translation(linear, physical, True, bool(rights & PTE_W), bool(rights & PTE_U))


def _walk(
    vcpu: SoftwareVcpu, linear: int, table: int, shift: int, size: int
) -> tuple[int, int] | None:
    """The physical address and the rights all levels agree on; None where a level is absent."""
    step = 9 if size == 8 else 10
    rights = PTE_W | PTE_U
    while True:
        index = linear >> shift & (1 << step) - 1
        entry = _read(vcpu, table + index * size, size)
        if not entry & PTE_P:
            return None
        rights &= entry
        if shift == 12 or (entry & PTE_PS and shift <= 30):
            offset = (1 << shift) - 1
            return entry & PTE_BASE & ~offset | linear & offset, rights
        table, shift = entry & PTE_BASE, shift - step


def _read(vcpu: SoftwareVcpu, guest_physical: int, size: int) -> int:
    host = vcpu.slots.host(guest_physical)
    return 0 if host is None else int.from_bytes(ctypes.string_at(host, size), "little")
