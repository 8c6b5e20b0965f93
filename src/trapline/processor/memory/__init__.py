"""Linear addresses to bytes: every access passes `Memory`."""

from trapline.processor.memory.access import Memory
from trapline.processor.memory.bus import Bus, Device, HostBus, Ram
from trapline.processor.memory.host import change as change_host
from trapline.processor.memory.host import read_tsc
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
    "Memory",
    "NonCanonical",
    "Ram",
    "Translation",
    "change_host",
    "read_tsc",
]
