"""What a recorder hears about the program besides its bus locks: files mapped, threads, children.

Observers only look.  Everything is called on the host thread of the guest thread it concerns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.process.areas import Area

if TYPE_CHECKING:
    from trapline.process.process import Process


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: by itself with `exit_status`, or by a signal."""

    exit_status: int
    signal: int = 0

    @property
    def shell_status(self) -> int:
        """The one number shells report."""
        return 128 + self.signal if self.signal else self.exit_status


class ProgramObserver:
    """Does nothing; a recorder overrides what it wants to know."""

    def attached(self, process: Process) -> None:
        """The process exists, nothing runs yet; files that the observer holds open belong into
        `process.own_files`."""

    def started(self, pid: int, executable: str, arguments: list[str]) -> None:
        """The first program has been loaded; `executable` is the ELF file's path."""

    def executed(self, pid: int, executable: str, arguments: list[str]) -> None:
        """execve: the process has another program now, at other addresses."""

    def mapped(self, pid: int, area: Area) -> None:
        """A file was mapped, or a mapping of one became executable or stopped being so."""

    def unmapped(self, pid: int, area: Area) -> None: ...

    def thread_started(self, pid: int, tid: int, stack_pointer: int) -> None:
        """A thread is about to run; the first one too."""

    def thread_ended(self, pid: int, tid: int) -> None: ...

    def forked(self, pid: int, child: int) -> None:
        """In the parent: there is a child."""

    def became_child(self, parent: int, pid: int) -> None:
        """In the child, before anything else: recorders own copies of everything now."""

    def will_lose_files(self, pid: int) -> None:
        """The program is about to change its rights or its root: what an observer reads by path,
        modules of its own too, it may not find later."""

    def may_be_killed(self, pid: int) -> None:
        """The program is about to send itself what no process survives."""

    def ended(self, pid: int, outcome: Outcome) -> None:
        """The process is about to end; last chance to write."""

    def bus_lock_trap(self, pid: int, tid: int, name: str, rip: int) -> None:
        """The monitor took a #DB for a bus lock; `rip` is the next instruction's."""
