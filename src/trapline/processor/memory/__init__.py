"""Linear addresses to bytes: every access passes `Memory`."""

from trapline.processor.memory.access import LockedAccess, Memory
from trapline.processor.memory.bus import Bus, Device, HostBus, Ram
from trapline.processor.memory.page import (
    FETCH,
    READ,
    SUPERVISOR,
    SUPERVISOR_AC,
    USER,
    WRITE,
    Translation,
)
from trapline.processor.memory.walk import NonCanonical

__all__ = [
    "FETCH",
    "READ",
    "SUPERVISOR",
    "SUPERVISOR_AC",
    "USER",
    "WRITE",
    "Bus",
    "Device",
    "HostBus",
    "LockedAccess",
    "Memory",
    "NonCanonical",
    "Ram",
    "Translation",
]
