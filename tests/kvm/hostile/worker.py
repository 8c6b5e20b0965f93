"""The process that runs hostile guests, so that nothing but it dies if one of them harms its host.

Run as a script with one JSON argument; writes the number of each case before it runs, and a line
of JSON about it afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import mmap
import os
import resource
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from random import Random

from tests.kvm.hostile.cases import (
    CODE,
    GDT,
    IDT,
    SIZE,
    SOUND,
    TSS,
    Case,
    case,
    sound_system,
)
from trapline.arch import descriptor as d
from trapline.kvm import DebugRegs, Dtable, Kvm, Segment, Vcpu, VcpuEvents, Vm, abi, exits, open_kvm

PAGE = 4096
GUARD = 1 << 20
CANARY = bytes(range(256)) * 16
ADDRESS_SPACE = 6 << 30
PATIENCE = 0.03  # seconds a guest may keep the processor before it is kicked for good
EXITS = 60
_MODELS = {"intel": "sapphire-rapids", "amd": "zen5"}
_ERRORS = (abi.INTERNAL_ERROR_EMULATION, abi.INTERNAL_ERROR_DELIVERY_EV)


@dataclass
class Ending:
    """What became of a case: the exits it took, and what was wrong, if anything was."""

    number: int
    exits: dict[str, int] = field(default_factory=dict)
    wrong: str = ""


class Memory:
    """The guest's memory between canaries, and pages beyond them that nobody may touch."""

    def __init__(self) -> None:
        self._room = mmap.mmap(-1, SIZE + 2 * (PAGE + GUARD))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._room))
        self.address = start + GUARD + PAGE
        self._canaries = (GUARD, GUARD + PAGE + SIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for at in (0, GUARD + 2 * PAGE + SIZE):
            if libc.mprotect(start + at, GUARD, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        for at in self._canaries:
            self._room[at : at + PAGE] = CANARY

    def fill(self, pieces: dict[int, bytes]) -> None:
        ctypes.memset(self.address, 0, SIZE)
        for at, piece in pieces.items():
            ctypes.memmove(self.address + at, piece, len(piece))

    def is_whole(self) -> bool:
        return all(self._room[at : at + PAGE] == CANARY for at in self._canaries)


class Kicker:
    """Kicks a vCPU again and again, once it has had its time."""

    def __init__(self) -> None:
        self._vcpu: Vcpu | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def watch(self, vcpu: Vcpu | None) -> None:
        with self._changed:
            self._vcpu = vcpu
            self._changed.notify()

    def _work(self) -> None:
        with self._changed:
            while True:
                vcpu = self._vcpu
                if not self._changed.wait(PATIENCE if vcpu else None) and vcpu is not None:
                    vcpu.kick()


class Runner:
    def __init__(self, vendor: str, engine: str) -> None:
        self.kvm: Kvm = open_kvm(cpu=_MODELS[vendor], engine=engine, force_emulation_prefix=1)
        self.memory = Memory()
        self.kicker = Kicker()

    def run(self, made: Case) -> Ending:
        ending = Ending(made.number)
        self.memory.fill(made.memory)
        vm = self.kvm.create_vm()
        try:
            if made.bus_lock_exits:
                vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
            if made.has_apic:
                vm.enable_cap(abi.Capability.SPLIT_IRQCHIP, 24)
            self._drive(made, self._set_up(vm, made), ending)
        except Exception:
            ending.wrong = traceback.format_exc()[-2500:]
        finally:
            vm.close()
        if not self.memory.is_whole():
            ending.wrong += "wrote outside of its memory"
        return ending

    def _set_up(self, vm: Vm, made: Case) -> Vcpu:
        vm.set_user_memory_region(0, 0, 0, SIZE, self.memory.address)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(self.kvm.get_supported_cpuid())
        self._set_sregs(vcpu, made)
        for name, word in made.registers.items():
            setattr(vcpu.regs, name, word)
        vcpu.regs.rip = CODE & 0xFFFF if made.mode == "real" else CODE
        if made.msrs:
            vcpu.set_msrs(dict(made.msrs))
        if made.debug is not None:
            db, dr6, dr7 = made.debug
            vcpu.set_debugregs(DebugRegs(list(db), dr6, dr7))
        if made.guest_debug:
            vcpu.set_guest_debug(made.guest_debug, {0: CODE + 8, 7: 0x402})
        for kind, vector in made.events:
            self._send(vcpu, kind, vector, made.is_wild)
        return vcpu

    def _set_sregs(self, vcpu: Vcpu, made: Case) -> None:
        sregs = vcpu.get_sregs()
        make = Segment.from_attributes
        for name, word in sound_system(made.mode).items():
            setattr(sregs, name, word)
        sregs.gdt, sregs.idt = (
            Dtable(GDT, 0x7F),
            Dtable(IDT, 0x3FF if made.mode == "real" else 0xFFF),
        )
        if made.mode == "real":
            sregs.cs = make(CODE >> 4 & 0xF000, CODE & 0xF0000, 0xFFFF, 0x9B)
        else:
            selector = {"long": 8, "16": 0x20}.get(made.mode, 0x18)
            rights = {"long": d.AR_CODE64, "16": d.AR_CODE16}.get(made.mode, d.AR_CODE32)
            assert selector in SOUND
            limit = 0xFFFFF if made.mode == "16" else d.FLAT_LIMIT
            sregs.cs = make(selector, 0, limit, rights)
            for name in ("ds", "es", "fs", "gs", "ss"):
                setattr(sregs, name, make(0x10, 0, d.FLAT_LIMIT, d.AR_DATA32))
            sregs.tr = make(0x38, TSS, d.TSS_LIMIT, d.AR_TSS_BUSY)
        sound = sregs
        vcpu.set_sregs(sound)
        for name, word in made.system.items():
            setattr(sregs, name, word)
        for name, selector, base, limit, rights in made.wild_segments:
            setattr(sregs, name, make(selector, base, limit, rights))
        if made.is_wild:
            with contextlib.suppress(OSError):  # EINVAL: the registers cannot stand together
                vcpu.set_sregs(sregs)

    def _send(self, vcpu: Vcpu, kind: str, vector: int, is_wild: bool) -> None:
        if kind == "nmi":
            vcpu.nmi()
        elif kind == "interrupt":
            # A VMM that asks first, as it must; a wild one does not.
            if is_wild or vcpu.ready_for_interrupt_injection:
                with contextlib.suppress(OSError):
                    vcpu.interrupt(vector)
        elif is_wild:
            events = VcpuEvents(exception_injected=True, exception_nr=vector & 31, flags=0)
            events.exception_has_error_code = bool(vector & 32)
            with contextlib.suppress(OSError):
                vcpu.set_vcpu_events(events)

    def _drive(self, made: Case, vcpu: Vcpu, ending: Ending) -> None:
        source, begun = Random(made.number), time.thread_time()
        for _ in range(EXITS):
            self.kicker.watch(vcpu)
            exit = vcpu.run()
            self.kicker.watch(None)
            name = type(exit).__name__
            ending.exits[name] = ending.exits.get(name, 0) + 1
            vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_vcpu_events(), vcpu.get_debugregs()
            match exit:
                case exits.Io() | exits.Mmio():
                    exit.data[:] = source.randbytes(len(exit.data))
                case exits.Hlt() if source.random() < 0.5:
                    self._send(vcpu, source.choice(("nmi", "interrupt")), 0x30, made.is_wild)
                case exits.Interrupted() if time.thread_time() - begun < PATIENCE:
                    continue  # the machine was busy with something else
                case exits.FailEntry():
                    if not made.is_wild:
                        ending.wrong = f"the guest made its entry fail: {exit}"
                    return
                case exits.InternalError() if exit.suberror not in _ERRORS:
                    ending.wrong = f"nobody handles {exit}"
                    return
                case exits.Unknown():
                    ending.wrong = f"nobody knows {exit}"
                    return
                case exits.Shutdown() | exits.InternalError() | exits.Interrupted() | exits.Hlt():
                    return


def main() -> None:
    setting = json.loads(sys.argv[1])
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    runner = Runner(setting["vendor"], setting["engine"])
    os.write(1, b"ready\n")
    for number in range(setting["first"], setting["first"] + setting["count"]):
        os.write(1, f"{number}\n".encode())
        if number == setting.get("crash_at"):
            ctypes.string_at(0)
        ending = runner.run(case(number, setting["seed"]))
        os.write(1, json.dumps(asdict(ending)).encode() + b"\n")


if __name__ == "__main__":
    main()
