"""Bus locks: which accesses take one, and what the processor then does.

The whole decision is in this file.  Before the access `before_access` may refuse it; at the
instruction boundary `after_instruction` says what the bus lock causes.  Who observes, who
delivers and who intercepts is decided elsewhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from trapline.arch.cpuid import UC_LOCK_DISABLE
from trapline.arch.debug import DR6_BUS_LOCK
from trapline.arch.msr import (
    DEBUGCTL_BLD,
    TEST_CTRL_SPLIT_LOCK_AC,
    TEST_CTRL_UC_LOCK_DISABLE,
)
from trapline.processor.fault import Fault
from trapline.processor.guest import Leave

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.notes import LockedAccess

CACHE_LINE = 64
_GP, _AC = 13, 17


class Cause(StrEnum):
    """Why a locked access could not be done in the cache."""

    SPLIT = "split"
    UNCACHED = "uncached"


class Outcome(StrEnum):
    """What the architecture signalled for a bus lock."""

    NONE = "none"
    DB = "db"
    VM_EXIT = "vm_exit"
    AC = "ac"  # prevented: the access was refused by split-lock #AC


class BusLock(NamedTuple):
    """One bus lock, as it happened.  `rip` is the culprit, `next_rip` what a trap reports."""

    rip: int
    next_rip: int
    linear: int
    physical: int
    size: int
    cpl: int
    cause: Cause


def classify(linear: int, size: int, write_back: bool) -> Cause | None:
    """Why a locked access locks the bus, or None where a cache lock is enough."""
    if not write_back:
        return Cause.UNCACHED
    if linear % CACHE_LINE + size > CACHE_LINE:
        return Cause.SPLIT
    return None


def before_access(core: Core, access: LockedAccess) -> None:
    """What may stop a bus lock before any of it happens: #AC for split locks, at any CPL, the
    refusal of locked accesses to memory that is not write-back, and the hypervisor."""
    if core.state.test_ctrl:
        _refuse(core, access)
    if core.guest is not None:
        core.guest.before_bus_lock()


def _refuse(core: Core, access: LockedAccess) -> None:
    """What MSR_TEST_CTRL asks to refuse."""
    test_ctrl = core.state.test_ctrl
    if access.cause is Cause.SPLIT:
        # Whether it covers split locks to memory of other types is not stated; we say no.
        if not test_ctrl & TEST_CTRL_SPLIT_LOCK_AC:
            return
        refusal = Fault(_AC, 0)
    elif test_ctrl & TEST_CTRL_UC_LOCK_DISABLE:
        # The older parts (IA32_CORE_CAPABILITIES[4]) raise #GP(0), the newer ones #AC(4).
        refusal = Fault(_AC, 4) if core.model.has(UC_LOCK_DISABLE) else Fault(_GP, 0)
    else:
        return
    if core.observer is not None:
        core.observer.bus_lock(_completed(access, access.rip), Outcome.AC)
    raise refusal


def after_instruction(core: Core, access: LockedAccess) -> None:
    """What a bus lock causes once its instruction is complete: a #DB cause that joins the other
    debug traps (CPL > 0 and DEBUGCTL.BLD), a VM exit, or nothing; observed in every case.

    The VM exit comes first and leaves the #DB pending.
    """
    state = core.state
    lock, outcome = _completed(access, state.rip), Outcome.NONE
    if lock.cpl and state.debugctl & DEBUGCTL_BLD:
        state.pending_debug |= DR6_BUS_LOCK
        outcome = Outcome.DB
    observer = core.observer
    if core.guest is not None:
        try:
            core.guest.bus_lock_exit()
        except Leave:
            if observer is not None:
                observer.bus_lock(lock, Outcome.VM_EXIT)
            raise
    if observer is not None:
        observer.bus_lock(lock, outcome)


def _completed(access: LockedAccess, next_rip: int) -> BusLock:
    rip, linear, physical, size, cpl, cause = access
    return BusLock(rip, next_rip, linear, physical, size, cpl, cause)
