"""The circumstances of a site's first event: code, operand, memory, call stack, as plain fields.

Runs while the guest thread waits, once a site.  What goes wrong here costs a field of the
report and never the traced program.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trapline.trace.cfi import CallFrames
from trapline.trace.file import Record
from trapline.trace.image import Image, import_reader
from trapline.trace.memory import classify
from trapline.trace.operand import Disassemble, find_operand
from trapline.trace.region import GuestThread, Locked, Region
from trapline.trace.unwind import Code, unwind

LONGEST_INSTRUCTION = 15
_Step = Callable[[Locked, GuestThread, dict[str, Any], list[Record]], dict[str, Any]]


class Capture:
    """Reads circumstances; remembers the images and mappings of one process image.

    `held`: descriptors of files that their paths may no longer lead to.
    """

    def __init__(self, disassemble: Disassemble, held: Mapping[str, int]) -> None:
        self._disassemble = disassemble
        self._held = held
        self.stack_pointers: dict[int, int] = {}
        self._numbers: dict[Region, int] = {}
        self._next_number = itertools.count(1)
        self._opening = threading.Lock()  # files have one position for all threads
        self._images: dict[tuple[str | None, int], tuple[Image, CallFrames] | None] = {}

    def circumstances(
        self, lock: Locked, thread: GuestThread, is_current: bool
    ) -> tuple[dict[str, Any], list[Record]]:
        """(fields of the site's record, records of mappings it is the first to name).

        `is_current`: the thread still stands right after the instruction, so that its
        registers and its stack are the bus lock's.
        """
        steps = [self._code, self._memory]
        steps += [self._operand] if is_current else []
        steps += [self._stack] if is_current and thread.bitness == 64 else []
        return self._take(steps, lock, thread)

    def surroundings(
        self, lock: Locked, thread: GuestThread, is_current: bool
    ) -> tuple[dict[str, Any], list[Record]]:
        """The circumstances that differ between bus locks of one instruction."""
        steps = [self._memory]
        steps += [self._stack] if is_current and thread.bitness == 64 else []
        return self._take(steps, lock, thread)

    def caller(self, lock: Locked, thread: GuestThread) -> int:
        """Where the culprit's function will return to, or 0 where that cannot be found."""
        if thread.bitness != 64:
            return 0
        try:
            registers = {**thread.registers(), "rip": lock.rip}
            frames = unwind(registers, thread.read, lambda at: self._find(at, thread), 2)
        except Exception:  # an observer must not stop the guest
            return 0
        return frames[1].rip if len(frames) > 1 else 0

    def _take(
        self, steps: Sequence[_Step], lock: Locked, thread: GuestThread
    ) -> tuple[dict[str, Any], list[Record]]:
        fields: dict[str, Any] = {}
        maps: list[Record] = []
        problems = []
        for step in steps:
            try:
                fields |= step(lock, thread, fields, maps)
            except Exception as error:  # an observer must not stop the guest
                problems.append(f"{step.__name__.lstrip('_')}: {type(error).__name__}: {error}")
        if problems:
            fields["problems"] = problems
        return fields, maps

    def region_number(self, region: Region | None, maps: list[Record], thread: GuestThread) -> Any:
        """The number a mapping is named by in the trace; a new one is added to `maps`."""
        if region is None:
            return None
        if region not in self._numbers:
            number = next(self._next_number)
            if self._numbers.setdefault(region, number) != number:
                return self._numbers[region]  # another thread was first
            found = self._image(region, thread)
            image = found[0] if found is not None else None
            maps.append(
                {
                    "record": "map",
                    "map": self._numbers[region],
                    "start": region.start,
                    "end": region.end,
                    "offset": region.offset,
                    "path": region.path,
                    "name": region.name,
                    "build_id": image.build_id if image is not None else None,
                    "bias": _bias(image, region, thread) if image is not None else None,
                }
            )
        return self._numbers[region]

    def use_held(self) -> None:
        """Read from now on what is held, not what its path leads to."""
        import_reader()
        with self._opening:
            for path in list(self._held):
                self._images.pop((path, 0), None)

    def _code(
        self, lock: Locked, thread: GuestThread, fields: dict[str, Any], maps: list[Record]
    ) -> dict[str, Any]:
        length = lock.next_rip - lock.rip
        is_known = 0 < length <= LONGEST_INSTRUCTION
        code = thread.read(lock.rip, length if is_known else LONGEST_INSTRUCTION)
        return {
            "map": self.region_number(thread.region(lock.rip), maps, thread),
            "code": code.hex() if is_known and code else None,
            "instruction": self._disassemble(code, lock.rip, thread.bitness) if code else None,
        }

    def _operand(
        self, lock: Locked, thread: GuestThread, fields: dict[str, Any], maps: list[Record]
    ) -> dict[str, Any]:
        registers = dict(thread.registers())
        # As text: JSON numbers beyond 53 bits lose digits in other tools.
        shown = {name: f"{number:#x}" for name, number in registers.items()}
        text = fields.get("instruction")
        operand = find_operand(text, registers, lock) if text else None
        return {"registers": shown, "operand": str(operand) if operand is not None else None}

    def _memory(
        self, lock: Locked, thread: GuestThread, fields: dict[str, Any], maps: list[Record]
    ) -> dict[str, Any]:
        own = thread.registers()
        pointers = {**self.stack_pointers, thread.tid: own["rsp"]}
        memory = classify(lock.linear, pointers, thread.tid, thread.region)
        self.stack_pointers.setdefault(thread.tid, own["rsp"])
        return {
            "memory": {
                "kind": memory.kind,
                "tid": memory.tid,
                "fs_base": own.get("fs_base"),
                "map": self.region_number(memory.region, maps, thread),
                "before": self.region_number(memory.before, maps, thread),
            }
        }

    def _stack(
        self, lock: Locked, thread: GuestThread, fields: dict[str, Any], maps: list[Record]
    ) -> dict[str, Any]:
        registers = {**thread.registers(), "rip": lock.rip}
        frames = unwind(registers, thread.read, lambda linear: self._find(linear, thread))
        return {
            "stack": [
                {
                    "rip": frame.rip,
                    "lookup": frame.lookup,
                    "map": self.region_number(thread.region(frame.lookup), maps, thread),
                    "how": frame.how,
                    "cfa": frame.cfa,
                    "rsp": frame.rsp,
                    "rbp": frame.rbp,
                }
                for frame in frames
            ]
        }

    def _find(self, linear: int, thread: GuestThread) -> Code | None:
        region = thread.region(linear)
        if region is None or not region.is_executable:
            return None
        found = self._image(region, thread)
        bias = _bias(found[0], region, thread) if found is not None else None
        if found is None or bias is None:
            return Code(None, 0)
        return Code(found[1], bias)

    def _image(self, region: Region, thread: GuestThread) -> tuple[Image, CallFrames] | None:
        """The image a mapping comes from; the vDSO's is read from guest memory."""
        if region.path is None and region.name != "[vdso]":
            return None
        key = (region.path, 0 if region.path else region.start)
        with self._opening:
            if key not in self._images:
                if region.path is not None:
                    image = Image.open(region.path, self._held.get(region.path))
                else:
                    image = Image.from_bytes(thread.read(region.start, region.end - region.start))
                ready = (image.read_ahead(), CallFrames(image)) if image is not None else None
                self._images[key] = ready
        return self._images[key]


def _bias(image: Image, region: Region, thread: GuestThread) -> int | None:
    """The load bias, from the lowest mapping of the same file right below this one."""
    for _ in range(8):
        below = thread.region(region.start - 1)
        if below is None or below.path != region.path or below.offset > region.offset:
            break
        region = below
    return image.bias(region.start, region.offset, region.is_executable)
