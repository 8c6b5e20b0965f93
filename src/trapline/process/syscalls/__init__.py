"""The system calls of a program: names only.  Importing it registers every handler."""

from trapline.process.syscalls import (
    execute,
    file_size,
    files,
    identity,
    memory,
    rights,
    signals,
    threads,
    vectors,
)
from trapline.process.syscalls.dispatch import arguments, handles, system_call
from trapline.process.syscalls.table import NUMBERS

__all__ = [
    "NUMBERS",
    "arguments",
    "execute",
    "file_size",
    "files",
    "handles",
    "identity",
    "memory",
    "rights",
    "signals",
    "system_call",
    "threads",
    "vectors",
]
