"""A guest cannot tell the hypervisor from the processor: programs drawn at random, run on both.

Half of the instructions leave the guest in some way.  Compared are the handlers entered, DR6 in
each #DB, and what is left in registers and memory.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.surface import ENOUGH, Bare, Start, Virtual
from tests.kvm.matrix.test_matrix import ENGINES, GUESTS, VENDORS
from trapline.arch.registers import CR4_DE, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF
from trapline.kvm import VcpuEvents, abi, exits

PROGRAMS = 3000 if os.environ.get("TRAPLINE_DEEP") else 40
NMI, INTERRUPT = 2, 31
RETURNING = frozenset({NMI, 3, 4, 16, INTERRUPT})  # handlers that come back
COMPARED = ("rax", "rcx", "rdx", "rsi", "rdi", "rsp", "rflags")
STACK_WORD, LAST_GD = 0x8100, 1 << 13
INTERRUPTS = ("icebp", "int3", "int 16")

# Instructions of one encoding in all modes but for ModRM's way to [DI].
ANYWHERE = {
    "nop": "90", "lock inc": "f0ff 0M", "inc": "ff 0M", "xchg": "87 0M", "lock not": "f0f7 1M",
    "sti": "fb", "cli": "fa", "int3": "cc", "int 16": "cd10", "icebp": "f1", "jmp": "eb00",
    "out": "e680", "in": "e480", "pushf popf": "9c9d", "rep stosb": "b103 f3aa",
    "cmpxchg": "f00fb1 0M", "mov ss": "8e 1S", "mov ss ss": "8e 1S 8e 1S", "cpuid": "0fa2 ZA ZC ZD",
    "rdtsc": "0f31 ZA ZD", "sgdt": "0f01 0M",
}  # fmt: skip
KERNEL = {
    "cr0": "0f20c0 0f22c0", "clts": "0f06", "cr4": "0f20e0 0f22e0", "wbinvd": "0f09",
    "dr7": "0f21f8 0f23f8", "dr0": "0f21c0", "dr6": "0f21f2 0f23f2", "invlpg": "0f01 7M",
    "smsw": "0f01e0", "lmsw": "0f01e0 0f01f0",
}  # fmt: skip
WIDE = {
    "rdmsr": "b9d9010000 0f32", "bld off": "b9d9010000 31c0 31d2 0f30",
    "bld on": "b9d9010000 b804000000 31d2 0f30", "toggle tf": "9c 8074240101 9d",
    "call": "e800000000", "xgetbv": "31c9 0f01d0",
}  # fmt: skip
_CLEAR = {"ZA": "31c0", "ZC": "31c9", "ZD": "31d2"}  # what differs by time, or by vendor


def encode(text: str, bits: int) -> bytes:
    """Hexadecimal, with `nM` for ModRM of [DI] and n in its middle, `1S` for SS from [SI]."""
    data, stack = ("05", "14") if bits == 16 else ("07", "16")
    words = []
    for word in text.split():
        if word[1:] == "M":
            word = f"{int(word[0]) << 3 | int(data, 16):02x}"
        if word in _CLEAR:
            word = ("66" if bits == 16 else "") + _CLEAR[word]
        words.append(stack if word == "1S" else word)
    return bytes.fromhex("".join(words))


@dataclass
class Program:
    """A start, and the names of what it executes."""

    names: list[str]
    start: Start
    lines: tuple[int, ...]


def draw(chance: random.Random, mode: modes.Mode, cpl: int, is_amd: bool, at: int) -> Program:
    """At most eight instructions, UD2 at the end; `at` is where they will stand.

    Left out is what no hypervisor can hide: INT1 behind MOV SS (its exit is one of #DB, which
    drops the traps held back), INT3 and INT n there (so does a second exit on the way to their
    handler), and on AMD breakpoints hit by MOV SS (the VMCB has no place for them when the next
    instruction exits).
    """
    known = ANYWHERE | ({} if cpl else KERNEL) | ({} if mode.bits == 16 else WIDE)
    if mode.bits == 16 or cpl:
        known = {
            name: text for name, text in known.items() if not name.startswith(("rdmsr", "bld"))
        }
    names = [chance.choice(sorted(known)) for _ in range(chance.randint(1, 8))]
    for i in range(1, len(names)):
        if names[i] in INTERRUPTS and names[i - 1].startswith("mov ss"):
            names[i] = "nop"
    codes = [encode(known[name], mode.bits) for name in names]
    operand = chance.choice([0x3E, 0x40, 0x3D])
    dr7, addresses = 0x400, [0, 0, 0, 0]
    if chance.random() < 0.4:  # the operand: writes, or any access
        dr7 |= 1 << 2 | chance.choice([1, 3]) << 20
        addresses[1] = modes.DATA + operand
    if chance.random() < 0.25 and not is_amd:  # what MOV SS reads
        dr7 |= 1 << 4 | 3 << 24
        addresses[2] = modes.DATA + STACK_WORD
    if chance.random() < 0.25:  # port 0x80
        dr7 |= 1 << 6 | 2 << 28
        addresses[3] = 0x80
    if chance.random() < 0.25 and mode.gate_bits != 16:  # an instruction
        dr7 |= 1
        addresses[0] = modes.CODE + at + sum(map(len, codes[: chance.randrange(len(codes))]))
    start = Start(
        b"".join(codes) + b"\x0f\x0b",
        operand,
        STACK_WORD,
        rflags=2 | chance.choice([0, RFLAGS_TF]) | chance.choice([0, RFLAGS_IF]),
        breakpoints=(addresses[0], addresses[1], addresses[2], addresses[3]),
        dr6=chance.choice([0xFFFF0FF0, 0xFFFF07F0, 0xFFFF4FF1]),
        dr7=dr7 | (LAST_GD if chance.random() < 0.15 else 0),
        debugctl=chance.choice([0, 4]),
        code_hits=1 if addresses[0] else 0,
        general={"rax": 1, "rcx": 0, "rdx": 0, "rbx": 0},
    )
    # Not both: what a VMM injects as an interrupt has been acknowledged already.
    return Program(names, start, chance.choice([(), (), (NMI,), (INTERRUPT,)]))


class Interrupted(Bare):
    """A processor whose lines are raised when the program begins."""

    lines: tuple[int, ...] = ()

    def begin(self, start: Start, registers: dict[str, int]) -> None:
        super().begin(start, registers)
        self.state.nmi_blocked = 0
        lines = self.core.interrupt_lines
        lines.nmi, lines.vector = False, None
        for vector in self.lines:
            if vector == NMI:
                lines.raise_nmi()
            else:
                lines.raise_interrupt(vector)


class Talking(Virtual):
    """A vCPU whose ports answer as nobody's do, and whose VMM has interrupts for it."""

    lines: tuple[int, ...] = ()

    def begin(self, start: Start, registers: dict[str, int]) -> None:
        # A new map of memory, so that every page is met for the first time again.
        for size in (0, modes.SIZE):
            self.vm.set_user_memory_region(0, 0, 0, size, self.memory.address)
        super().begin(start, registers)
        self.vcpu.set_vcpu_events(VcpuEvents(flags=abi.VCPUEVENT_VALID_NMI_PENDING))
        self._is_waiting = INTERRUPT in self.lines
        if NMI in self.lines:
            self.vcpu.nmi()

    def go(self) -> None:
        for _ in range(100):
            self.vcpu.request_interrupt_window = False
            if self._is_waiting and self.vcpu.ready_for_interrupt_injection:
                self.vcpu.interrupt(INTERRUPT)
                self._is_waiting = False
            self.vcpu.request_interrupt_window = self._is_waiting
            answer = self.vcpu.run()
            if isinstance(answer, exits.IrqWindowOpen):
                continue
            if isinstance(answer, exits.Io):
                if answer.is_input:
                    answer.data[:] = b"\xff" * len(answer.data)
                continue
            assert isinstance(answer, exits.Hlt), answer
            return
        raise AssertionError("it does not stop")


def outcome(surface: Interrupted | Talking, program: Program) -> tuple[object, ...]:
    start, surface.lines = program.start, program.lines
    surface.software = RETURNING
    surface.limit = 4 * ENOUGH
    events = surface.run(start)
    registers = {name: surface.get(name) for name in COMPARED}
    if surface.mode.gate_bits == 16:
        registers["rsp"] &= 0xFFFF
    return events, registers, surface.memory.read(modes.DATA + start.operand, 16)


def readable(found: tuple[object, ...]) -> str:
    events, registers, memory = found
    assert isinstance(events, list) and isinstance(registers, dict)
    words = " ".join(f"{name}={word:x}" for name, word in registers.items())
    return " ".join(map(str, events)) + f"\n    {words} {memory!r}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_programs_drawn_at_random(mode: str, cpl: int, vendor: str, engine: str) -> None:
    kind, chance = modes.MODES[mode], random.Random(f"{mode} {cpl} {vendor} {engine}")
    for number in range(PROGRAMS):
        if number % 500 == 0:  # as many as there is room for
            bare = Interrupted(vendor, engine, kind, cpl)
            virtual = Talking(vendor, engine, kind, cpl)
            for surface in (bare, virtual):
                surface.system_registers().cr4 |= CR4_DE
        program = draw(chance, kind, cpl, vendor == "amd", bare.next_place)
        wanted, got = outcome(bare, program), outcome(virtual, program)
        assert got == wanted, (
            f"{number}: {', '.join(program.names)}, lines {program.lines}: {program.start}\n"
            f"  the processor:  {readable(wanted)}\n  the hypervisor: {readable(got)}"
        )


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_interrupt_is_taken_while_a_trap_waits(vendor: str) -> None:
    """An I/O breakpoint on OUT after STI: at the exit the #DB is pending, and the interrupt that
    the VMM would inject now would be lost behind it."""
    surface = Talking(vendor, "interp", modes.MODES["long"], 0)
    surface.system_registers().cr4 |= CR4_DE
    code = bytes.fromhex("fb e680 90 0f0b")
    watched = 0x400 | 1 | 2 << 16
    start = Start(code, 0, STACK_WORD, breakpoints=(0x80, 0, 0, 0), dr7=watched)
    surface.begin(start, surface.registers(start, modes.CODE + surface.place(code)))
    assert isinstance(surface.vcpu.run(), exits.Io)
    assert surface.vcpu.if_flag
    assert not surface.vcpu.ready_for_interrupt_injection
    assert isinstance(surface.vcpu.run(), exits.Hlt)
    assert modes.handler_of(surface.get("rip")) == 1


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("code", ["0fa2", "e680", "0f09", "0f20c0"])
def test_rf_is_for_one_instruction(vendor: str, code: str) -> None:
    """RF set on an instruction that the hypervisor steps over does not hide a breakpoint on the
    next one."""
    for kind in (Interrupted, Talking):
        surface = kind(vendor, "interp", modes.MODES["long"], 0)
        at = modes.CODE + surface.next_place
        length = len(bytes.fromhex(code))
        start = Start(
            bytes.fromhex(code) + b"\x90\x0f\x0b", 0, STACK_WORD, rflags=2 | RFLAGS_RF,
            breakpoints=(at, at + length, 0, 0), dr7=0x405, code_hits=2,
        )  # fmt: skip
        found = [(event.vector, event.rip) for event in surface.run(start)]
        assert found == [(1, length), (6, length + 1)]
