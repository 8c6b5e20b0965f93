"""Hostile cases and the process that runs them: random bytes, odd instructions, damaged programs.

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
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from elftools.elf.elffile import ELFFile
from iced_x86 import Mnemonic

from tests.against.hostile_guest import (
    CODE,
    CODE_SIZE,
    DATA,
    DATA_SIZE,
    FAULTS,
    GDT,
    KERNEL_CODE,
    READ_ONLY,
    REAL_CODE,
    SIZE,
    STACK_TOP,
    TABLES,
    USER,
    USER_STACK_TOP,
    Guest,
)
from tests.against.undefined import APPROXIMATE, TRANSCENDENTAL
from trapline.processor import boundary
from trapline.processor.core import Core
from trapline.processor.jit.compiler import compiler

KINDS = ("user", "kernel", "real", "damaged")
PROGRAMS = ("/bin/ls", "/bin/sh", "/usr/bin/perl")
STEPS = 200  # on the reference engine
PATIENCE = 0.2  # seconds that a case may run
ATTEMPTS = 3
ADDRESS_SPACE = 16 << 30
GENERAL = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
AC, DF, TF, NT, IOPL = 1 << 18, 1 << 10, 1 << 8, 1 << 14, 3 << 12
# Whatever reads a clock: two engines need not agree afterwards.
CLOCKS = (b"\x0f\x31", b"\x0f\x01\xf9", b"\x0f\x32")
# Of these the engines give neighbouring numbers; the reference engine notices them.
_APPROXIMATE = frozenset(
    name.lower()
    for name, number in vars(Mnemonic).items()
    if isinstance(number, int) and number in APPROXIMATE | TRANSCENDENTAL
)
_EVERYTHING = (1 << 64) - 1


@dataclass
class Hostile:
    """One case: code, where it goes, and the state it starts from."""

    kind: str
    number: int
    seed: int
    code: bytes
    physical: int
    offset: int  # of the first instruction in the code
    bits: int
    registers: dict[str, int]


@dataclass
class Ending:
    """What became of a case."""

    number: int
    how: str  # halted, shut down, limit, kicked, or what must never be
    digest: str = ""  # of the whole state, where that must be the same on both engines
    text: str = ""


# -- cases -----------------------------------------------------------------------------------------


def hostile(kind: str, number: int, seed: int = 0) -> Hostile:
    """The n-th case of a kind, the same each time."""
    source = Random(f"{seed} {kind} {number}")
    if kind == "damaged":
        return _damaged(source, number, seed)
    bits = 16 if kind == "real" else source.choice((64, 64, 64, 64, 32, 32, 16))
    code = _code(source, bits)
    if kind == "kernel":
        physical = KERNEL_CODE
    else:
        physical = CODE + source.choice((0, 0x123, 0xFE0, 0xFFD)) if kind == "user" else REAL_CODE
    return Hostile(
        kind, number, seed, code, physical, 0, bits, _state(source, kind, bits, physical)
    )


def _code(source: Random, bits: int) -> bytes:
    length = source.choice((16, 64, 200))
    match source.randrange(3):
        case 0:
            return source.randbytes(length)
        case 1:
            return b"".join(_odd(source, bits) for _ in range(length // 4))
        case _:
            parts = source.randbytes(3) if source.random() < 0.2 else _odd(source, bits)
            return b"".join((parts, *(_odd(source, bits) for _ in range(length // 5))))


def _odd(source: Random, bits: int) -> bytes:
    """An instruction more likely than random bytes to mean something, and something unusual."""
    prefixes = b""
    while source.random() < 0.3:
        prefixes += source.choice(
            (b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x2e", b"\x64", b"\x65")
        )
    if bits == 64 and source.random() < 0.4:
        prefixes += bytes([0x40 | source.getrandbits(4)])
    chance = source.random()
    if chance < 0.40:
        opcode = bytes([source.getrandbits(8)])
    elif chance < 0.80:
        opcode = bytes([0x0F, source.getrandbits(8)])
    elif chance < 0.88:
        opcode = bytes([0x0F, source.choice((0x38, 0x3A)), source.getrandbits(8)])
    elif chance < 0.94:
        opcode = bytes([0xD8 | source.getrandbits(3)])
    else:  # control and debug registers, descriptor tables, MSRs, strings, far branches
        opcode = source.choice((
            b"\x0f\x00", b"\x0f\x01", b"\x0f\x20", b"\x0f\x21", b"\x0f\x22", b"\x0f\x23",
            b"\x0f\x30", b"\x0f\xae", b"\x0f\xc7", b"\xf3\xa4", b"\xf3\xab", b"\xff", b"\xcf",
        ))  # fmt: skip
    modrm = source.getrandbits(8)
    tail = source.randbytes(source.choice((1, 1, 2, 4)))
    if source.random() < 0.5:  # small displacements and immediates
        tail = bytes([source.choice((0, 1, 4, 0xFF, 0x80))]) + bytes(source.choice((0, 3)))
    return prefixes + opcode + bytes([modrm]) + tail


@cache
def _programs() -> list[bytes]:
    texts = []
    for path in PROGRAMS:
        if Path(path).exists():
            with open(path, "rb") as file:
                section = ELFFile(file).get_section_by_name(".text")
                if section is not None:
                    texts.append(section.data()[:CODE_SIZE])
    return texts


def _damaged(source: Random, number: int, seed: int) -> Hostile:
    """A piece of a real program, some of its bits flipped near where it is entered."""
    text = bytearray(source.choice(_programs()))
    offset = source.randrange(max(1, len(text) - 4096))
    for _ in range(source.choice((0, 1, 4, 16, 64))):
        at = offset + source.randrange(min(2048, len(text) - offset))
        text[at] ^= 1 << source.randrange(8)
    registers = _state(source, "user", 64, CODE)
    return Hostile("damaged", number, seed, bytes(text), CODE, offset, 64, registers)


def _state(source: Random, kind: str, bits: int, physical: int) -> dict[str, int]:
    base = USER if kind == "user" else 0
    registers = {name: _word(source, base, bits) for name in GENERAL}
    top = USER + USER_STACK_TOP - 0x800 if kind == "user" else STACK_TOP - 0x1000
    registers["rsp"] = top if source.random() < 0.85 else _word(source, base, bits)
    registers["rflags"] = source.getrandbits(12) & 0x8D5 | 2
    for flag, chance in ((DF, 0.1), (TF, 0.04), (AC, 0.1), (NT, 0.05), (IOPL, 0.1)):
        if source.random() < chance:
            registers["rflags"] |= flag
    if source.random() < 0.1:
        registers |= {"dr0": base + DATA + 8, "dr1": base + physical + 9, "dr7": 0x000F_040A}
    if source.random() < 0.3:
        registers["debugctl"] = 1 << 2
    if source.random() < 0.1:
        registers["test_ctrl"] = 1 << 29
    if source.random() < 0.2:
        registers["mxcsr"] = source.getrandbits(16)
    if source.random() < 0.2:
        registers["fcw"] = source.getrandbits(16) & 0xF3F | 0x40
    if kind == "real":
        registers = {name: word & 0xFFFF_FFFF for name, word in registers.items()}
        registers["rsp"] = source.choice((0x6F00, 0x7FFF, 1, 0))
    return registers


def _word(source: Random, base: int, bits: int) -> int:
    """What a register holds: mostly a pointer to somewhere interesting."""
    match source.randrange(12):
        case 0 | 1 | 2:
            return base + DATA + source.randrange(DATA_SIZE)
        case 3:
            return base + CODE + source.randrange(0x2000)
        case 4:
            return (
                base
                + source.choice((READ_ONLY, DATA + DATA_SIZE, CODE, SIZE))
                - source.randrange(9)
            )
        case 5:
            return base + DATA + 64 * source.randrange(100) + 60  # across a line
        case 6:
            return source.choice((TABLES, GDT, STACK_TOP, SIZE - 4, SIZE + 0x800))
        case 7:
            return source.randrange(300)
        case 8:
            return -source.randrange(1, 300) & _EVERYTHING
        case 9:
            return 0x7FFF_FFFF_FFFF - source.randrange(9)
        case _:
            return source.getrandbits(source.choice((16, 32, 64)))


def _reads_a_clock(case: Hostile) -> bool:
    """At CPL 3 none can be read (CR4.TSD, and MSRs are privileged)."""
    return case.kind in ("kernel", "real") and any(clock in case.code for clock in CLOCKS)


# -- running ---------------------------------------------------------------------------------------


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
        protected = self.guest.protected_parts() if case.kind in ("user", "damaged") else None
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
        comparable = how in ("halted", "shut down") and not _reads_a_clock(case) and self._is_exact
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
        if case.kind in ("user", "damaged"):
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
