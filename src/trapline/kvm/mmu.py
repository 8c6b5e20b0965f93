"""Guest-physical memory: the slots, what lies where in the VMM, and when that changes.

How the slots become EPT or nested page tables is the vendor's; both ask `find`.
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_right
from dataclasses import dataclass, field

from trapline.arch.paging import PAGE_MASK, PAGE_SIZE
from trapline.kvm import abi

SLOT_LIMIT = 32764
GUEST_PHYSICAL_LIMIT = 1 << 48  # what four levels of EPT can map


@dataclass(frozen=True, order=True, slots=True)
class Slot:
    """A range of guest-physical memory and the VMM's memory behind it."""

    guest_physical: int
    size: int
    host: int
    flags: int
    number: int

    @property
    def end(self) -> int:
        return self.guest_physical + self.size

    @property
    def is_read_only(self) -> bool:
        return bool(self.flags & abi.MEM_READONLY)


@dataclass(slots=True)
class Slots:
    """The memory map of one VM.

    `generation` moves when something that was mapped is no longer; who translates through older
    tables must take the new ones before going on.
    """

    generation: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    _by_number: dict[int, Slot] = field(default_factory=dict)
    # Where they start, and they; replaced as one, for `find` is asked at any time, without a lock.
    _map: tuple[tuple[int, ...], tuple[Slot, ...]] = ((), ())

    def find(self, guest_physical: int) -> Slot | None:
        """The slot that holds this address."""
        starts, slots = self._map
        i = bisect_right(starts, guest_physical) - 1
        if i < 0:
            return None
        slot = slots[i]
        return slot if guest_physical < slot.end else None

    def host(self, guest_physical: int) -> int | None:
        """The VMM's address of a guest-physical byte, None outside the slots."""
        slot = self.find(guest_physical)
        return None if slot is None else slot.host + guest_physical - slot.guest_physical

    def set(self, slot: Slot) -> Slot | None:
        """KVM_SET_USER_MEMORY_REGION; the slot that was there before, if it is gone or moved."""
        with self.lock:
            old = self._by_number.get(slot.number)
            if slot.size == 0:
                if old is None:
                    raise _error(errno.EINVAL)
                self._replace(old, None)
                return old
            _check(slot)
            if old is not None and (old.size, old.host) != (slot.size, slot.host):
                raise _error(errno.EINVAL)
            if old is not None and old.is_read_only != slot.is_read_only:
                raise _error(errno.EINVAL)  # KVM: "Can't change read-only after creation"
            if self._overlaps(slot):
                raise _error(errno.EEXIST)
            if old == slot:
                return None
            self._replace(old, slot)
            return old

    def _replace(self, old: Slot | None, new: Slot | None) -> None:
        if old is not None:
            del self._by_number[old.number]
        if new is not None:
            self._by_number[new.number] = new
        slots = tuple(sorted(self._by_number.values()))
        self._map = tuple(slot.guest_physical for slot in slots), slots
        if old is not None:
            self.generation += 1

    def _overlaps(self, slot: Slot) -> bool:
        return any(
            other.guest_physical < slot.end and slot.guest_physical < other.end
            for other in self._by_number.values()
            if other.number != slot.number
        )


def _check(slot: Slot) -> None:
    unaligned = (slot.guest_physical | slot.size | slot.host) & ~PAGE_MASK
    if unaligned or slot.flags & ~abi.MEM_READONLY or slot.size < PAGE_SIZE:
        raise _error(errno.EINVAL)
    if slot.number >= SLOT_LIMIT or slot.end > GUEST_PHYSICAL_LIMIT:
        raise _error(errno.EINVAL)
    if slot.host < PAGE_SIZE or slot.host + slot.size > 1 << 47:
        raise _error(errno.EINVAL)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
