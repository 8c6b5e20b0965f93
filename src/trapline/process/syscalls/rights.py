"""Calls after which a process may not find or read what it could: observers are told first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.process.syscalls.dispatch import Handler, handlers
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

# capabilities(7), credentials(7), chroot(2), mount_namespaces(7)
_CALLS = (
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid"),
    *("setfsgid", "setgroups", "capset", "chroot", "pivot_root", "unshare", "setns", "mount"),
    *("umount2", "move_mount"),
)


def _telling_first(handler: Handler) -> Handler:
    def call(thread: Thread) -> int | None:
        thread.process.observer.will_lose_files(thread.process.pid)
        return handler(thread)

    return call


for _name in _CALLS:
    handlers[NUMBERS[_name]] = _telling_first(handlers[NUMBERS[_name]])
