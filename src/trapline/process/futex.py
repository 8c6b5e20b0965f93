"""What a thread's end does to futexes: wakes who waits for it, and gives up its robust mutexes.

kernel/futex/core.c, exit_robust_list(); kernel/fork.c, mm_release().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.process.areas import PROT_READ, PROT_WRITE
from trapline.process.memory import GuestFault
from trapline.process.native import exchange
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_WAKE = 1  # not private: who waits need not know of whom
_TID_MASK, _OWNER_DIED, _WAITERS = 0x3FFFFFFF, 0x40000000, 0x80000000
_LIST_LIMIT = 2048
_PRIORITY_INHERITING = 1  # in an entry's address


def wake(thread: Thread, linear: int) -> None:
    """Wake one that waits on this word."""
    thread.quiet(NUMBERS["futex"], thread.process.memory.host(linear), _WAKE, 1)


def clear_tid(thread: Thread) -> None:
    """Clear the word that set_tid_address or CLONE_CHILD_CLEARTID named; a join waits on it."""
    linear, thread.clear_child_tid = thread.clear_child_tid, 0
    if linear:
        try:
            thread.process.memory.write(linear, bytes(4))
        except GuestFault:
            return
        wake(thread, linear)


def release_robust_list(thread: Thread) -> None:
    """Mark the mutexes that the thread still holds as their owner's legacy."""
    head, thread.robust_list = thread.robust_list, 0
    if not head:
        return
    memory = thread.process.memory
    try:
        entry, pending = memory.read_word(head), memory.read_word(head + 16)
        offset = int.from_bytes(memory.read(head + 8, 8), "little", signed=True)
        for _ in range(_LIST_LIMIT):
            place = entry & ~_PRIORITY_INHERITING
            if place == head:
                break
            following = memory.read_word(place)
            if place != pending & ~_PRIORITY_INHERITING:
                _give_up(thread, entry, offset, False)
            entry = following
        if pending & ~_PRIORITY_INHERITING:
            _give_up(thread, pending, offset, True)
    except GuestFault:  # the list is the program's own
        return


def _give_up(thread: Thread, entry: int, offset: int, is_pending: bool) -> None:
    """handle_futex_death()."""
    linear = (entry & ~_PRIORITY_INHERITING) + offset
    inherits = entry & _PRIORITY_INHERITING
    memory = thread.process.memory
    with memory.lock:
        area = memory.areas.find(linear)
        rights = PROT_READ | PROT_WRITE
        if linear % 4 or area is None or area.prot & rights != rights:
            raise GuestFault
        while True:
            word = int.from_bytes(memory.read(linear, 4), "little")
            if is_pending and not inherits and not word:
                wake(thread, linear)
                return
            if word & _TID_MASK != thread.tid:
                return
            left = word & _WAITERS | _OWNER_DIED
            if exchange(memory.host(linear), word, left) == word:
                break
    if word & _WAITERS and not inherits:
        wake(thread, linear)
