"""RLIMIT_FSIZE: the host enforces it while a call of the program's own may make a file longer.

At any other time it would cut off what the VMM itself writes: the trace, compiled code.
"""

from __future__ import annotations

import os
import resource
import stat
from typing import TYPE_CHECKING

from trapline.process.syscalls.dispatch import Handler, handlers
from trapline.process.syscalls.table import NUMBERS
from trapline.process.syscalls.vectors import vector_output

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_LIMIT = resource.RLIMIT_FSIZE
_INFINITY = (1 << 64) - 1


def _is_file(thread: Thread) -> bool:
    """Whether the first argument is an open file, where no call waits."""
    try:
        return stat.S_ISREG(os.fstat(thread.vcpu.regs.rdi & 0x7FFFFFFF).st_mode)
    except OSError:
        return False


def _limited(handler: Handler, by_path: bool) -> Handler:
    def call(thread: Thread) -> int | None:
        process = thread.process
        wanted = process.limits.get(_LIMIT, (_INFINITY, 0))[0]
        if wanted == _INFINITY or not (by_path or _is_file(thread)):
            return handler(thread)
        with process.lock:  # the limit is the whole VMM's; nor may a child be made meanwhile
            soft, hard = resource.getrlimit(_LIMIT)
            most = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
            resource.setrlimit(_LIMIT, (most, hard))
            try:
                return handler(thread)
            finally:
                resource.setrlimit(_LIMIT, (soft, hard))

    return call


for _name in ("write", "pwrite64", "sendfile", "ftruncate", "fallocate"):
    handlers[NUMBERS[_name]] = _limited(handlers[NUMBERS[_name]], by_path=False)
for _name in ("writev", "pwritev", "pwritev2"):
    handlers[NUMBERS[_name]] = _limited(vector_output, by_path=False)
handlers[NUMBERS["truncate"]] = _limited(handlers[NUMBERS["truncate"]], by_path=True)
