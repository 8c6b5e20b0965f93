"""The host's own processor as the oracle: cases in, outcomes out, thousands at a time.

Packs cases for the worker process and unpacks what it leaves; the worker executes them.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from tests.against import blob
from tests.against.layout import (
    CODE,
    PAGE,
    REGIONS,
    TOTAL,
    USER_CS,
    USER_CS_32,
    USER_SS,
    background,
    linear_of,
    pieces,
)
from tests.against.safety import refuse
from tests.against.state import FIXED_FLAGS, FLAGS, NUMBER, Case, Fault, Outcome

WORKER = Path(__file__).with_name("worker.py")
BATCH = 4096
PATIENCE = 60.0

READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
SIGTRAP, BREAKPOINT, PAGE_FAULT = 5, 3, 14
INSTRUCTION_FETCH = 0x10
PRESENT = 1
KERNEL = 1 << 63

# The order of a signal frame: arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64.
_ORDER = [
    *range(8, 16),
    *(NUMBER[name] for name in ("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp")),
]
_INPUT = struct.Struct("<20Q")
_RESULT = struct.Struct("<26Q")
_HEAD = struct.Struct("<QQ")
_CONTROL = struct.Struct("<7Q")
_SELECTORS = {64: USER_CS | USER_SS << 48, 32: USER_CS_32 | USER_SS << 48}


class HostFailed(Exception):
    """The worker died or hung: the machinery's fault, not an outcome."""


class Host:
    """A worker process, started when entered and ended when left."""

    def __enter__(self) -> Host:
        self._descriptor = os.memfd_create("trapline-against")
        self._background = background()
        code, labels = blob.assemble()
        size = self._plan()
        os.ftruncate(self._descriptor, size)
        self._memory = mmap.mmap(self._descriptor, size)
        self._put(blob.STORE, self._background)
        self._put(blob.PRISTINE, self._background)
        self._put(blob.BLOB, code)
        setting = {
            "mappings": self._mappings,
            "alternate_stack": [blob.ALTERNATE_STACK, blob.ALTERNATE_STACK_SIZE],
            "enter": labels["enter"],
            "handler": labels["handler"],
        }
        self._worker = subprocess.Popen(
            [sys.executable, "-S", "-E", str(WORKER), json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._descriptor],
        )
        self._await()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.kill()
        self._worker.communicate()
        self._memory.close()
        os.close(self._descriptor)

    def run(self, cases: Iterable[Case]) -> list[Outcome]:
        """Execute each case; their order is kept.  Raises Unsafe before anything has run."""
        waiting = list(cases)
        for case in waiting:
            refuse(case)
        outcomes: list[Outcome] = []
        while len(outcomes) < len(waiting):
            outcomes += self._run_batch(waiting[len(outcomes) : len(outcomes) + BATCH])
        return outcomes

    def _plan(self) -> int:
        """Where each of the worker's ranges lies in the shared file; its size."""
        self._mappings: list[list[int]] = []
        self._offsets: dict[int, int] = {}
        end = 0
        for linear, size, protection in (
            (blob.STORE, TOTAL, READ | WRITE),
            (blob.PRISTINE, TOTAL, READ),
            (blob.CONTROL, PAGE, READ | WRITE),
            (blob.BLOB, PAGE, READ | EXECUTE),
            (blob.ALTERNATE_STACK, blob.ALTERNATE_STACK_SIZE, READ | WRITE),
            (blob.ARENA, blob.ARENA_SIZE, READ | WRITE),
        ):
            self._mappings.append([linear, size, protection, self._descriptor, end])
            self._offsets[linear] = end
            end += size
        start = self._offsets[blob.STORE]
        for region in REGIONS:
            protection = READ | WRITE * region.writable | EXECUTE * region.executable
            self._mappings.append([region.linear, region.size, protection, self._descriptor, start])
            start += region.size
        return end

    def _put(self, linear: int, content: bytes) -> None:
        start = self._offsets[linear]
        self._memory[start : start + len(content)] = content

    def _await(self) -> None:
        pipe = self._worker.stdout
        assert pipe is not None
        ready, _, _ = select.select([pipe], [], [], PATIENCE)
        if not ready or not os.read(pipe.fileno(), 1):
            self._worker.kill()
            status = self._worker.wait()
            raise HostFailed(f"the worker {'ended' if ready else 'hung'}, status {status}")

    def _run_batch(self, cases: list[Case]) -> list[Outcome]:
        inputs, patches = bytearray(), bytearray()
        patches_start = blob.ARENA + len(cases) * blob.INPUT_SIZE
        for case in cases:
            inputs += _pack(case, patches_start + len(patches))
            patches += _patches(case)
        self._put(blob.ARENA, bytes(inputs + patches))
        results = patches_start + len(patches) + 15 & -16
        changes = results + len(cases) * blob.RESULT_SIZE
        limit = blob.ARENA + blob.ARENA_SIZE - TOTAL // 8 * blob.CHANGE_SIZE
        if changes > limit:
            raise HostFailed("the batch does not fit into the arena")
        control = _CONTROL.pack(results, blob.ARENA, len(cases), changes, limit, 0, 0)
        self._put(blob.CONTROL, control.ljust(PAGE, b"\0"))
        assert self._worker.stdin is not None
        self._worker.stdin.write(b"+")
        self._worker.stdin.flush()
        try:
            self._await()
        except HostFailed as failure:
            done = self._control()[5]
            culprit = cases[done] if done < len(cases) else "the end"
            raise HostFailed(f"{failure}, at {culprit}") from None
        return list(self._outcomes(results, self._control()[5], cases))

    def _control(self) -> tuple[int, ...]:
        return _CONTROL.unpack_from(self._memory, self._offsets[blob.CONTROL])

    def _outcomes(self, linear: int, count: int, cases: list[Case]) -> Iterator[Outcome]:
        base = self._offsets[blob.ARENA] - blob.ARENA
        for number in range(count):
            start = base + linear + number * blob.RESULT_SIZE
            words = _RESULT.unpack_from(self._memory, start)
            image = start + blob.RESULT_FX
            yield _unpack(
                words,
                self._memory[image : image + 512],
                self._memory[base + words[24] : base + words[25]],
                cases[number],
            )


def _pack(case: Case, patches: int) -> bytes:
    registers = case.registers
    words = _INPUT.pack(
        *[registers[number] for number in _ORDER],
        case.entry,
        case.flags & FLAGS | FIXED_FLAGS,
        _SELECTORS[case.bits],
        patches,
    )
    return words.ljust(blob.INPUT_FX, b"\0") + case.fx


def _patches(case: Case) -> bytes:
    parts = bytearray()
    for linear, content in ((case.entry, case.code), *case.memory):
        for offset, piece in pieces(linear, content):
            parts += _HEAD.pack(blob.STORE + offset, len(piece))
            parts += piece.ljust(len(piece) + 15 & -16, b"\0")
    return bytes(parts + _HEAD.pack(0, 0))


def _unpack(words: tuple[int, ...], fx: bytes, changes: bytes, case: Case) -> Outcome:
    registers = [0] * 16
    for place, number in enumerate(_ORDER):
        registers[number] = words[place]
    rip, flags, _selectors, error_code, vector, _mask, cr2, signal = words[16:24]
    memory: dict[int, bytes] = {}
    for start in range(0, len(changes), blob.CHANGE_SIZE):
        linear = linear_of(8 * int.from_bytes(changes[start : start + 8], "little"))
        if not CODE.linear <= linear < CODE.end:
            memory[linear] = changes[start + 8 : start + 16]
    outcome = Outcome(registers, rip, flags, fx, memory, hung=signal == blob.SIGVTALRM)
    if outcome.hung:
        return outcome
    if signal == SIGTRAP and vector == BREAKPOINT:
        outcome.rip -= 1
    elif not _arrived(outcome, vector, error_code, cr2, case):
        outcome.fault = _fault(vector, error_code, cr2)
    return outcome


def _fault(vector: int, error_code: int, cr2: int) -> Fault:
    if vector != PAGE_FAULT:
        return Fault(vector, error_code)
    # Linux hides what the kernel has mapped (sanitize_error_code); in the guest it is nothing.
    return Fault(vector, error_code & ~PRESENT if cr2 & KERNEL else error_code, cr2)


def _arrived(outcome: Outcome, vector: int, error_code: int, cr2: int, case: Case) -> bool:
    """Whether the case ended well, and only fetching what comes next failed."""
    fetch = vector == PAGE_FAULT and error_code & INSTRUCTION_FETCH and cr2 == outcome.rip
    return bool(fetch) and outcome.rip != case.entry
