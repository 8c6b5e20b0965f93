"""Boards of several processors: how the others start, what they are told, how the guest ends."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.machine.guests import END, FOREVER, HLT, ORIGIN, STATUS, out, run, say
from trapline.arch import apic, msr
from trapline.arch.apic import Delivery, Shorthand
from trapline.kvm import exits
from trapline.machine import MOST_CPUS, Board, How

STARTED = 0x500  # how many others have
WHO = 0x504  # a bit for each, by its APIC ID
PLACE = 0x400  # in the image, of what the others run: 8000h, page 8


def wrmsr(index: int, word: int) -> bytes:
    """In 16-bit code: mov ecx, index; mov eax, low; mov edx, high; wrmsr"""
    parts = struct.pack("<I", index), struct.pack("<Q", word)
    return b"\x66\xb9" + parts[0] + b"\x66\xb8" + parts[1][:4] + b"\x66\xba" + parts[1][4:] + (
        b"\x0f\x30"
    )  # fmt: skip


def x2apic(register: int, word: int) -> bytes:
    return wrmsr(msr.X2APIC_FIRST + register // 16, word)


def command(mode: int, vector: int, shorthand: int = Shorthand.OTHERS) -> bytes:
    word = apic.ICR_ASSERT | shorthand << apic.ICR_SHORTHAND_SHIFT | mode << 8 | vector
    return x2apic(apic.ICR, word)


SWITCH_ON = wrmsr(
    msr.IA32_APIC_BASE,
    msr.APIC_BASE_RESET | msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC | msr.APIC_BASE_BSP,
)
START_OTHERS = SWITCH_ON + command(Delivery.INIT, 0) + command(Delivery.STARTUP, 8) * 2
# mov eax, 1; cpuid; shr ebx, 24; lock bts [WHO], bx; lock inc word [STARTED]
SAY_WHO = bytes.fromhex("66b801000000 0fa2 66c1eb18 f00fab1e0405 f0ff060005")


def wait_for(count: int, place: int = STARTED) -> bytes:
    """pause; cmp word [place], count; jb back"""
    return b"\xf3\x90\x83\x3e" + struct.pack("<HB", place, count) + b"\x72\xf7"


def image(first: bytes, others: bytes) -> bytes:
    """Real-mode code for the first processor, and for those that are started."""
    assert len(first) <= PLACE
    return first.ljust(PLACE, b"\0") + others


@pytest.mark.parametrize("cpu", ["max", "zen5"])
@pytest.mark.parametrize("engine", ["jit", "interp"])
@pytest.mark.parametrize("cpus", [2, 4])
def test_the_others_start_and_know_who_they_are(cpus: int, engine: str, cpu: str) -> None:
    """The initial APIC ID, CPUID.1:EBX[31:24]."""
    guest = image(START_OTHERS + wait_for(cpus - 1) + END, SAY_WHO + b"\xfa" + HLT)
    done = run(guest, cpus=cpus, engine=engine, cpu=cpu)
    assert done.ending.status == STATUS
    started, who = struct.unpack("<II", done.board.memory.read(STARTED, 8))
    assert (started, who) == (cpus - 1, (1 << cpus) - 2)


def test_fw_cfg_and_cpuid_tell_how_many_there_are() -> None:
    """QEMU's FW_CFG_NB_CPUS; CPUID.1:EBX[23:16], .0BH level 1, .4:EAX[31:26], on all of them."""
    code = b"\xb8\x05\x00\xba\x10\x05\xef\x42\xec\xa2\x00\x05"  # select 5; in al, 511h; mov [500h]
    leaves = ((1, 0), (0xB, 0), (0xB, 1), (4, 0))
    for number, (leaf, index) in enumerate(leaves):
        at = 0x510 + 16 * number
        code += b"\x66\xb8" + struct.pack("<I", leaf) + b"\x66\xb9" + struct.pack("<I", index)
        code += b"\x0f\xa2\x66\xa3" + struct.pack("<H", at)
        code += b"\x66\x89\x1e" + struct.pack("<H", at + 4)
        code += b"\x66\x89\x16" + struct.pack("<H", at + 12)
    memory = run(code + END, cpus=3).board.memory
    assert memory.read(0x500, 1) == b"\x03"
    one, smt, core, cache = (
        struct.unpack("<4I", memory.read(0x510 + 16 * i, 16)) for i in range(4)
    )
    assert (one[1] >> 16 & 0xFF, one[1] >> 24, one[3] >> 28 & 1) == (3, 0, 1)
    assert (smt[0], smt[1], core[0], core[1], core[3]) == (0, 1, 2, 3, 0)
    assert cache[0] >> 26 == 2


def test_any_processor_may_end_the_guest() -> None:
    done = run(image(START_OTHERS + FOREVER, END + FOREVER), cpus=2)
    assert (done.ending.how, done.ending.status) == (How.DEBUG_EXIT, STATUS)


def test_a_triple_fault_of_another_processor_is_its_own() -> None:
    """lidt of an empty table at 8007h; int3"""
    fault = b"\x0f\x01\x1e\x07\x80\xcc\x90" + bytes(6)
    ending = run(image(START_OTHERS + FOREVER, fault), cpus=3).ending
    assert ending.how is How.TRIPLE_FAULT
    assert ending.vcpu in (1, 2)


def test_the_guest_has_ended_when_all_have_halted_for_good() -> None:
    """The first one long before the second; the third was never started."""
    first = SWITCH_ON + x2apic(apic.ICR, 1 << 32 | apic.ICR_ASSERT | Delivery.INIT << 8)
    first += x2apic(apic.ICR, 1 << 32 | apic.ICR_ASSERT | Delivery.STARTUP << 8 | 8)
    loop = b"\x66\xb9\xd0\x07\x00\x00\x66\x49\x75\xfc"  # mov ecx, 2000; dec ecx; jnz
    done = run(image(first + b"\xfa" + HLT, loop + SAY_WHO + HLT), cpus=3)
    assert (done.ending.how, done.ending.sentence) == (How.HALTED, "halted with interrupts off")
    assert done.ending.last_exit == exits.Hlt()
    assert done.board.memory.read(WHO, 1) == b"\x02"


def test_a_sleeper_is_not_taken_for_dead_while_another_may_wake_it() -> None:
    """The first halts at once; the second works for a while, and then interrupts it."""
    code = out(0x21, 0xFF) + START_OTHERS + b"\xfb" + HLT + b"\xeb\xfd"
    handler = ORIGIN + 12 + len(code)
    code = b"\xc7\x06\x00\x01" + struct.pack("<H", handler) + b"\xc7\x06\x02\x01\x00\x00" + code
    loop = b"\x66\xb9\x88\x13\x00\x00\x66\x49\x75\xfc"  # mov ecx, 5000; dec ecx; jnz
    send = SWITCH_ON.replace(struct.pack("<I", 0xFEE00D00), struct.pack("<I", 0xFEE00C00))
    send += command(Delivery.FIXED, 0x40)
    done = run(image(code + END, loop + send + b"\xfa" + HLT), cpus=2)
    assert done.ending.status == STATUS


def test_an_interrupt_of_the_8259_comes_to_the_first_processor() -> None:
    """Raised by the other one: pc-testdev's line 5, vector 0Dh."""
    code = out(0x21, 0xDF) + START_OTHERS + b"\xfb" + HLT + b"\xeb\xfd"
    handler = say(b"!") + END
    at = ORIGIN + 12 + len(code)
    code = b"\xc7\x06\x34\x00" + struct.pack("<H", at) + b"\xc7\x06\x36\x00\x00\x00" + code
    done = run(image(code + handler, out(0x2005, 1) + b"\xfa" + HLT), cpus=2)
    assert (done.output, done.ending.status) == (b"!", STATUS)


def test_all_may_use_the_devices_at_once() -> None:
    """Each of four prints its letter fifty times; none is lost."""
    turn = say(b"x", 0xE9)
    loop = b"\xbd\x32\x00" + turn + b"\x4d\x75" + bytes((-(len(turn) + 3) & 0xFF,))
    first = START_OTHERS + loop + wait_for(3) + END
    done = run(image(first, loop + b"\xf0\xff\x06\x00\x05\xfa" + HLT), cpus=4)
    assert done.ending.status == STATUS
    assert done.output == b"x" * 200


def test_the_timeout_ends_them_all() -> None:
    done = run(image(START_OTHERS + FOREVER, FOREVER), cpus=2, timeout=0.3)
    assert done.ending.how is How.TIMEOUT


@pytest.mark.parametrize("cpus", [0, MOST_CPUS + 1])
def test_there_is_a_least_and_a_most(cpus: int) -> None:
    with pytest.raises(ValueError, match="processors"):
        Board(None, 1 << 20, lambda data: None, cpus=cpus)  # type: ignore[arg-type]


def test_the_command_says_whose_end_it_was(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    fault = b"\x0f\x01\x1e\x07\x80\xcc\x90" + bytes(6)
    path.write_bytes(image(START_OTHERS + FOREVER, fault))
    done = trapline("run", "--smp", "2", os.fspath(path))
    assert done.returncode == How.TRIPLE_FAULT.value
    lines = done.stderr.splitlines()
    assert lines[1] == "  vCPU 1 of 2, running"
    assert lines[2].startswith("  rip 0000000000000005  cc  int3")
    assert lines[-1].startswith("  vCPU 0, running: rip ")


@pytest.mark.parametrize("text", ["0", "256", "²"])
def test_a_bad_number_of_processors_is_refused(text: str, tmp_path: Path) -> None:
    done = trapline("run", f"--smp={text}", tmp_path / "none.bin")
    assert done.returncode == 2
    assert f"{text!r} is no number from 1 to 255" in done.stderr
