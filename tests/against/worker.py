"""The process in which cases execute: maps the memory it is told, then runs batches on request.

Started as a script of its own and imports only the standard library, so a case that goes wrong
can hurt nothing else.  One byte on standard input runs a batch; one byte answers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys

# MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE: a page fault's error code says whether the page
# was there, so it must be.
MAP_FLAGS = 0x01 | 0x10_0000 | 0x8000
SYS_RT_SIGACTION, SYS_SIGALTSTACK = 13, 131
PR_SET_PDEATHSIG = 1
SA_SIGINFO, SA_ONSTACK, SA_RESTORER = 0x4, 0x0800_0000, 0x0400_0000
SIGNALS = (
    signal.SIGTRAP, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGVTALRM,
)  # fmt: skip
TICK = 0.05  # seconds of the process's own time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.syscall.restype = ctypes.c_long


def map_at(linear: int, size: int, protection: int, descriptor: int, offset: int) -> None:
    got = libc.mmap(linear, size, protection, MAP_FLAGS, descriptor, offset)
    if got != linear:
        raise SystemExit(f"cannot map {linear:#x}: {os.strerror(ctypes.get_errno())}")


def set_handler(number: int, handler: int) -> None:
    """The kernel's own sigaction: struct { handler, flags, restorer, mask }."""
    flags = SA_SIGINFO | SA_ONSTACK | SA_RESTORER if handler else 0
    action = struct.pack("<4Q", handler, flags, handler, 1 << signal.SIGVTALRM - 1)
    if libc.syscall(SYS_RT_SIGACTION, int(number), action, None, 8):
        raise SystemExit(f"sigaction: {os.strerror(ctypes.get_errno())}")


def set_alternate_stack(linear: int, size: int) -> None:
    if libc.syscall(SYS_SIGALTSTACK, struct.pack("<QQQ", linear, 0, size), None):
        raise SystemExit(f"sigaltstack: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    setting = json.loads(sys.argv[1])
    for mapping in setting["mappings"]:
        map_at(*mapping)
    set_alternate_stack(*setting["alternate_stack"])
    enter = ctypes.CFUNCTYPE(None)(setting["enter"])
    os.write(1, b"+")
    while os.read(0, 1):
        for number in SIGNALS:
            set_handler(number, setting["handler"])
        signal.setitimer(signal.ITIMER_VIRTUAL, TICK, TICK)
        enter()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number in SIGNALS:
            set_handler(number, 0)
        os.write(1, b"+")


main()
