"""The process that runs hostile cases, and looks at what they left.

Run as a script with one JSON argument; writes the number of each case before it runs, and then a
line of JSON about it, so that whoever reads knows the culprit if this process dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import os
import resource
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from iced_x86 import Mnemonic

from tests.against.hostile_cases import GENERAL, Hostile, hostile
from tests.against.hostile_guest import CODE, FAULTS, USER, Guest
from tests.against.undefined import APPROXIMATE, TRANSCENDENTAL
from trapline.processor import boundary
from trapline.processor.core import Core
from trapline.processor.jit.compiler import compiler

STEPS = 200  # on the reference engine
PATIENCE = 0.2  # seconds that a case may run
ATTEMPTS = 3
ADDRESS_SPACE = 16 << 30
# Of these the engines give neighbouring numbers; the reference engine notices them.
_APPROXIMATE = frozenset(
    name.lower()
    for name, number in vars(Mnemonic).items()
    if isinstance(number, int) and number in APPROXIMATE | TRANSCENDENTAL
)


@dataclass
class Ending:
    """What became of a case."""

    number: int
    how: str  # halted, shut down, limit, kicked, or what must never be
    digest: str = ""  # of the whole state, where that must be the same on both engines
    text: str = ""


class Kicker:
    """Kicks whatever processor runs for too long, from a thread of its own."""

    def __init__(self) -> None:
        self._core: Core | None = None
        self._started = 0
        self._wake = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()

    def watch(self, core: Core | None) -> None:
        with self._wake:
            self._core = core
            self._started += 1
            self._wake.notify()

    def _watch(self) -> None:
        with self._wake:
            while True:
                number, core = self._started, self._core
                if core is None:
                    self._wake.wait()
                elif not self._wake.wait_for(lambda seen=number: self._started != seen, PATIENCE):
                    core.kick()


class Runner:
    """Runs cases on one engine and looks at what they left."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.guest = Guest()
        self.kicker = Kicker()
        self.libm = ctypes.CDLL("libm.so.6")
        self._environment = self._float_environment()

    def run(self, case: Hostile) -> Ending:
        """Run a case; again if its time went into compiling handlers, which then are there."""
        for _ in range(ATTEMPTS):
            before = compiler().compiled
            ending = self._run(case)
            if ending.how != "kicked" or compiler().compiled == before:
                break
        return ending

    def _run(self, case: Hostile) -> Ending:
        core = self._prepare(case)
        self._is_exact = True
        protected = self.guest.protected_parts() if case.is_user else None
        try:
            how = self._execute(core)
        except Exception:
            return Ending(case.number, "raised", text=traceback.format_exc()[-1500:])
        finally:
            core.close()
        if not self.guest.bus.canaries_live():
            return Ending(case.number, "wrote outside of RAM")
        if self._float_environment() != self._environment:
            return Ending(case.number, "left the host's floating-point environment changed")
        if protected and self.guest.protected_parts() != protected:
            return Ending(case.number, "changed what only the supervisor may")
        comparable = how in ("halted", "shut down") and not case.reads_a_clock and self._is_exact
        return Ending(case.number, how, self._digest(core) if comparable else "")

    def state(self, core: Core) -> dict[str, object]:
        """All that two engines must agree on."""
        state: Any = core.state
        names = (*GENERAL, "rsp", "rip", "rflags", "cpl", "cr0", "cr2", "cr3", "cr4", "efer",
                 "dr0", "dr6", "dr7", "cs_selector", "ss_selector", "ds_selector", "fs_base",
                 "gs_base", "mxcsr", "fcw", "fsw", "ftw", "activity", "pending_debug",
                 "gdtr_base", "idtr_base", "debugctl", "xcr0")  # fmt: skip
        found: dict[str, object] = {name: getattr(state, name) for name in names}
        found |= {f"xmm{n}": state.xmm(n) for n in range(16)}
        found |= {f"x87 {n}": state.x87(n) for n in range(8)}
        found["memory"] = hashlib.sha256(self.guest.bus.bytes).hexdigest()
        return found

    def _prepare(self, case: Hostile) -> Core:
        guest = self.guest
        guest.restore()
        if case.kind == "real":
            core = guest.real_mode_core(self.engine)
        else:
            core = guest.core(self.engine, 0 if case.kind == "kernel" else 3, case.bits)
        guest.bus.load(case.physical, case.code)
        state: Any = core.state
        for name, word in case.registers.items():
            setattr(state, name, word)
        start = case.physical + case.offset
        if case.is_user:
            state.rip = start - CODE if case.bits == 16 else USER + start
        else:
            state.rip = start
        core.memory.mode_changed()
        core.memory.privilege_changed()
        core.memory.breakpoints_changed()
        return core

    def _execute(self, core: Core) -> str:
        if self.engine == "interp":
            end = time.monotonic() + PATIENCE
            for _ in range(STEPS):
                if core.state.activity and not boundary.wakes(core) or time.monotonic() > end:
                    break
                core.step()
                instruction = core.instruction
                if instruction is not None and instruction.name in _APPROXIMATE:
                    self._is_exact = False
        else:
            self.kicker.watch(core)
            try:
                core.run()
            finally:
                self.kicker.watch(None)
        match core.state.activity:
            case 0:
                return "limit" if self.engine == "interp" else "kicked"
            case 1:
                return "halted"
        return "shut down"

    def _digest(self, core: Core) -> str:
        return hashlib.sha256(repr(self.state(core)).encode()).hexdigest()[:16]

    def _float_environment(self) -> tuple[int, int]:
        """x87 control word, and MXCSR without its flags."""
        environment = ctypes.create_string_buffer(32)
        self.libm.fegetenv(environment)
        control = int.from_bytes(environment.raw[:2], "little")
        return control, int.from_bytes(environment.raw[28:32], "little") & ~0x3F


def main() -> None:
    setting = json.loads(sys.argv[1])
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    runner = Runner(setting["engine"])
    os.write(1, b"ready\n")
    for number in range(setting["first"], setting["first"] + setting["count"]):
        os.write(1, f"{number}\n".encode())
        if number == setting.get("crash_at"):
            ctypes.string_at(0)
        ending = runner.run(hostile(setting["kind"], number, setting["seed"]))
        os.write(1, json.dumps(asdict(ending)).encode() + b"\n")


assert FAULTS < STEPS

if __name__ == "__main__":
    main()
