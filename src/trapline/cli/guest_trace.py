"""The bus locks of a guest image, heard for the table on stderr and for `--trace`.

Each processor has an observer of its own, which knows what mode it is in while the guest runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields

from trapline import __version__
from trapline.cli.guest_locks import GuestLocks
from trapline.cli.guest_state import read_linear
from trapline.kvm import Regs
from trapline.machine import Board, Part
from trapline.processor import BusLock, Cause, Core, Observer, Outcome, disassemble
from trapline.trace import Recorder, Region, ThreadObserver, TraceWriter

_PROCESS = 1  # a guest is one program, in the trace's words
_PAGE = 4096
_REGISTERS = (*(field.name for field in fields(Regs)), "fs_base", "gs_base")


class GuestWatcher:
    """Makes the observers; `locks` counts, and a recorder writes once `record` has been called."""

    def __init__(self) -> None:
        self.locks = GuestLocks()
        self._recorder: Recorder | None = None
        self._board: Board | None = None
        self._path = ""
        self._made = 0

    def observe(self, core: Core) -> Observer:
        """The observer of the next processor."""
        self._made += 1
        return _ProcessorObserver(core, self._made - 1, self)

    def record(self, writer: TraceWriter, board: Board, path: str, words: Sequence[str]) -> None:
        """Have the trace begin; before the guest runs."""
        self._recorder = Recorder(writer, disassemble, started=time.monotonic())
        self._board, self._path = board, path
        self._recorder.start(_PROCESS, 0, [path, *words], path)

    def ended(self, writer: TraceWriter, status: int) -> None:
        """Have the trace end; after the last counts."""
        if self._recorder is not None:
            self._recorder.exited(status, None)
            writer.write({"record": "end", "exit_status": status, "signal": None})

    def recording(self, core: Core, number: int) -> tuple[Recorder, StoppedProcessor] | None:
        if self._recorder is None or self._board is None:
            return None
        return self._recorder, StoppedProcessor(core, number, self._board, self._path)


def header(cpu: str) -> dict[str, str]:
    """What a guest's trace says of itself."""
    return {"tool": f"trapline {__version__}", "guest": "image", "cpu": cpu, "backend": "software"}


class StoppedProcessor:
    """A processor between two instructions, as the recorder asks for it."""

    def __init__(self, core: Core, number: int, board: Board, path: str) -> None:
        self._core, self._board, self._path = core, board, path
        self._vcpu = board.vcpus[number]
        self.tid, self.name = number, f"vCPU {number}"

    @property
    def bitness(self) -> int:
        return self._core.code_mode[0]

    def registers(self) -> Mapping[str, int]:
        state = self._core.state
        return {name: int(getattr(state, name)) for name in _REGISTERS}

    def read(self, linear: int, size: int) -> bytes:
        return read_linear(self._board, self._vcpu, linear, size)

    def region(self, linear: int) -> Region | None:
        """The image's segment at an address, or the page of memory that is mapped there."""
        if linear < 0:
            return None
        there = self._vcpu.translate(linear)
        if not there.valid:
            return None
        physical = there.physical_address
        for segment in self._board.parts:
            if segment.physical <= physical < segment.physical + segment.size:
                return self._in_image(segment, linear - physical + segment.physical)
        start = linear & -_PAGE
        return Region(start, start + _PAGE, 0, None, f"[memory at {physical:#x}]", True)

    def _in_image(self, segment: Part, start: int) -> Region:
        is_executable = segment.is_executable
        return Region(start, start + segment.size, segment.offset, self._path, "", is_executable)

    def linear_rip(self, rip: int) -> int:
        """Where code is by its address alone: what a report can look up."""
        if self.bitness == 64:
            return rip
        return int(self._core.state.cs_base) + rip & 0xFFFFFFFF


class _ProcessorObserver:
    """What one processor tells, to the table and to the recorder."""

    def __init__(self, core: Core, number: int, watcher: GuestWatcher) -> None:
        self._core, self._number, self._watcher = core, number, watcher

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self._watcher.locks.bus_lock(lock, outcome)
        recording = self._watcher.recording(self._core, self._number)
        if recording is not None:
            recorder, stopped = recording
            rip, next_rip = (stopped.linear_rip(one) for one in (lock.rip, lock.next_rip))
            recorder.bus_lock(lock._replace(rip=rip, next_rip=next_rip), outcome, stopped)

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        self._watcher.locks.bus_lock_total(rip, next_rip, cause, size, cpl, linear, count)
        recording = self._watcher.recording(self._core, self._number)
        if recording is not None:
            recorder, stopped = recording
            rip, next_rip = (stopped.linear_rip(one) for one in (rip, next_rip))
            observer = ThreadObserver(recorder, stopped)
            observer.bus_lock_total(rip, next_rip, cause, size, cpl, linear, count)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        recording = self._watcher.recording(self._core, self._number)
        if recording is not None:
            recorder, stopped = recording
            recorder.undefined(stopped.linear_rip(rip), code, text, stopped)
