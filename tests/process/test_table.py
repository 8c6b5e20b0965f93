"""The table of system calls: complete, and in agreement with the kernel's own numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trapline.process.process import Process  # noqa: F401 - registers every handler
from trapline.process.syscalls.dispatch import handlers
from trapline.process.syscalls.table import CALLS, NUMBERS

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
# Reserved names that Linux itself answers ENOSYS to.
NEVER_IMPLEMENTED = {
    *("create_module", "get_kernel_syms", "query_module", "nfsservctl", "getpmsg", "putpmsg"),
    *("afs_syscall", "tuxcall", "security", "epoll_ctl_old", "epoll_wait_old", "vserver"),
}


def test_numbers_and_names_are_the_kernels() -> None:
    if not HEADER.exists():
        pytest.skip("the kernel's headers are not installed")
    kernel = {
        name: int(number)
        for name, number in re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())
        if name not in NEVER_IMPLEMENTED
    }
    assert {name: NUMBERS.get(name) for name in kernel} == kernel


def test_every_call_is_answered() -> None:
    assert not [name for number, (name, _) in CALLS.items() if number not in handlers]


def test_signatures_have_at_most_six_known_letters() -> None:
    for name, signature in CALLS.values():
        if not signature.startswith("!"):
            letters = signature.removeprefix("*")
            assert re.fullmatch("[ifpsnboau]{0,6}", letters), name
            assert not re.search("b(?!i)", letters), name  # the next argument is the size
