"""Guests on the board: what they print, how they end, and what their devices do for them."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from tests.machine import guests
from tests.machine.guests import END, FOREVER, HLT, MIB, ORIGIN, STATUS, out, run, say
from trapline.kvm import exits
from trapline.machine import How, Module
from trapline.processor import BusLock, Cause, Outcome


class Seen:
    """An observer that keeps the single bus locks it is told of."""

    def __init__(self) -> None:
        self.locks: list[tuple[BusLock, Outcome]] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(self, *total: object) -> None:
        """Only repetitions come here."""


@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_real_mode_code_prints_and_exits(engine: str) -> None:
    done = run(say(b"hello\n") + say(b"debug\n", 0xE9) + END, engine=engine)
    assert done.output == b"hello\ndebug\n"
    assert (done.ending.how, done.ending.status) == (How.DEBUG_EXIT, STATUS)


def test_the_debug_exit_shifts_and_cuts_what_is_written() -> None:
    """QEMU's isa-debug-exit: exit((value << 1) | 1), of which a status keeps eight bits."""
    assert run(bytes.fromhex("b8 81 03 e7 f4")).ending.status == 0x03  # mov ax, 381h; out 0f4h, ax


def test_a_flat_image_can_lie_elsewhere() -> None:
    assert run(b"\x0e\x58" + b"\xe6\xf4", address=0x20010).ending.status == 1  # push cs; pop ax
    near = b"\xe8\x00\x00\x58\xe6\xf4"  # call next; pop ax; out 0f4h, al
    assert run(near, address=0x20010).ending.status == (0x13 << 1) | 1


def timer_guest(wait: bytes) -> bytes:
    """Lets the PIT interrupt 1000 times a second, and ends at the fiftieth."""
    head = (
        b"\xc7\x06\x20\x00%s"  # mov word [20h], handler
        b"\xc7\x06\x22\x00\x00\x00"
        + bytes.fromhex("b0 34 e6 43 b0 a9 e6 40 b0 04 e6 40 fb")  # mode 2, 1193 clocks; sti
    )
    loop = wait + bytes.fromhex("80 3e 00 05 32 72 f8")  # cmp byte [500h], 50; jb
    # inc byte [500h]; push ax; EOI; pop ax; iret: the last one may hit between END's two
    handler = bytes.fromhex("fe 06 00 05 50 b0 20 e6 20 58 cf")
    start = ORIGIN + len(head) + len(loop) + len(END)
    return head % struct.pack("<H", start) + loop + END + handler


@pytest.mark.parametrize("wait", [HLT, b"\x90"], ids=["halted", "running"])
def test_timer_interrupts_come_at_their_rate(wait: bytes) -> None:
    started = time.monotonic()
    done = run(timer_guest(wait))
    assert done.ending.status == STATUS
    assert 0.05 <= time.monotonic() - started < 30


def test_the_clock_interrupts_through_the_second_controller() -> None:
    """IRQ 8, vector 70h, at the 1024 Hz that the clock starts with."""
    head = (
        b"\xc7\x06\xc0\x01%s\xc7\x06\xc2\x01\x00\x00"
        + out(0x21, 0xFB) + out(0xA1, 0xFE) + out(0x70, 0x0B) + out(0x71, 0x42) + b"\xfb"
    )  # fmt: skip
    loop = HLT + bytes.fromhex("80 3e 00 05 03 72 f8")
    acknowledge = out(0x70, 0x0C) + bytes.fromhex("e4 71 b0 20 e6 a0 e6 20")
    handler = b"\xfe\x06\x00\x05\x50\x52" + acknowledge + b"\x5a\x58\xcf"  # keeps AX and DX
    start = ORIGIN + len(head) + len(loop) + len(END)
    done = run(head % struct.pack("<H", start) + loop + END + handler)
    assert done.ending.status == STATUS


def test_an_interrupt_line_can_be_raised_by_the_test_device() -> None:
    """pc-testdev's port 2000h + line; line 5 is vector 0Dh here."""
    head = b"\xc7\x06\x34\x00%s\xc7\x06\x36\x00\x00\x00" + out(0x21, 0xDF) + b"\xfb"
    head += out(0x2005, 1)
    handler = say(b"!") + END
    done = run(head % struct.pack("<H", ORIGIN + len(head) + len(FOREVER)) + FOREVER + handler)
    assert (done.output, done.ending.status) == (b"!", STATUS)


@pytest.mark.parametrize("cpu", ["max", "zen5"])
@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_a_waiting_interrupt_gets_in_as_soon_as_the_guest_lets_it(engine: str, cpu: str) -> None:
    """STI holds it back for one instruction, and CLI comes after that: the window is one NOP."""
    head = b"\xc7\x06\x34\x00%s\xc7\x06\x36\x00\x00\x00" + out(0x21, 0xDF)
    head += out(0x2005, 1) + b"\xfb\x90\xfa" + say(b"-") + END  # sti; nop; cli
    handler = say(b"!") + b"\xcf"
    done = run(head % struct.pack("<H", ORIGIN + len(head)) + handler, engine=engine, cpu=cpu)
    assert done.output == b"!-"


def test_guests_without_handlers_may_let_the_timer_in() -> None:
    """Vector 8 leads to a stub that acknowledges and returns."""
    wait_for_one = b"\xfb" + HLT + HLT  # two ticks at 18.2 Hz
    assert run(wait_for_one + END).ending.status == STATUS


@pytest.mark.parametrize(
    ("code", "how", "sentence"),
    [
        (b"\xfa" + HLT, How.HALTED, "halted with interrupts off"),
        (out(0x21, 0xFF) + b"\xfb" + HLT, How.HALTED, "halted, and nothing can wake it"),
        (b"\xcd\x13", How.HALTED,
         "came to interrupt vector 0x13 from 0000:7c02; there is no BIOS behind it"),
        (b"\x0f\x0b", How.HALTED,
         "came to interrupt vector 0x6 from 0000:7c00; there is no BIOS behind it"),
        (b"\x0f\x01\x1e\x07\x7c\xcc\x90\x00\x00\x00\x00\x00\x00", How.TRIPLE_FAULT,
         "shut down after a triple fault"),  # lidt of an empty table; int3
        (b"\x66\x0f\x01\x1e\x08\x7c\xcc\x90\xff\x03\x00\x00\x00\xf0", How.STUCK,
         "took an exception or interrupt whose handler is in device memory"),  # lidt; int3
        (out(0xCF9, 6), How.RESET, "asked for a reset"),
        (out(0x64, 0xFE), How.RESET, "asked for a reset"),
        (out(0x92, 1), How.RESET, "asked for a reset"),
        (b"\xb8\x00\x20" + guests.wide_port(0x604) + b"\xef", How.POWER_OFF,
         "switched the machine off"),
    ],
)  # fmt: skip
def test_every_end_is_told_apart(code: bytes, how: How, sentence: str) -> None:
    ending = run(code + FOREVER).ending
    assert (ending.how, ending.sentence, ending.status) == (how, sentence, how.value)


def test_a_jump_to_nowhere_is_named() -> None:
    done = run(guests.multiboot(b"\xb8\x00\x00\x00\x80\xff\xe0" + FOREVER))
    assert done.ending.how is How.STUCK
    assert done.ending.sentence == "jumped to 0x80000000, where there is no memory"


@pytest.mark.parametrize("engine", ["jit", "interp"])
@pytest.mark.parametrize(
    "code", [b"\xfa" + FOREVER, b"\xfb" + FOREVER, say(b"x") + b"\xeb\xf8"],
    ids=["interrupts off", "interrupts on", "printing"],
)  # fmt: skip
def test_the_timeout_ends_a_guest_that_does_not(engine: str, code: bytes) -> None:
    started = time.monotonic()
    done = run(code, timeout=0.2, engine=engine)
    assert (done.ending.how, done.ending.status) == (How.TIMEOUT, 124)
    assert 0.2 <= time.monotonic() - started < 30


def test_a_halted_guest_is_ended_by_the_timeout() -> None:
    done = run(b"\xfb" + HLT + b"\xeb\xfd", timeout=1)
    assert done.ending.how is How.TIMEOUT
    assert done.ending.last_exit == exits.Hlt()


def test_a_multiboot_image_starts_in_protected_mode_with_its_boot_information() -> None:
    """EAX the magic number, EBX the information: flags, memory sizes, command line, map."""
    store = b"\xa3\x00\x00\x20\x00" + b"\x89\x1d\x04\x00\x20\x00"  # mov [200000h], eax; .. ebx
    done = run(guests.multiboot(store + END), "guest --option", memory=64 * MIB)
    magic, at = struct.unpack("<II", done.board.memory.read(0x200000, 8))
    read = done.board.memory.read
    fields = struct.unpack("<22I", read(at, 88))
    assert magic == 0x2BADB002
    assert fields[0] == 0x24F  # memory, device, command line, modules, map, loader's name
    assert fields[1:3] == (639, 63 * 1024)
    assert read(fields[4], 15) == b"guest --option\0"
    entries = list(struct.iter_unpack("<IQQI", read(fields[12], fields[11])))
    assert entries[0] == (20, 0, 639 << 10, 1)
    assert (20, MIB, 63 * MIB, 1) in entries
    assert done.ending.status == STATUS


def test_modules_lie_on_pages_behind_the_image() -> None:
    """Each with its end, its string, and nothing reserved; the guest finds them by the record."""
    store = b"\x89\x1d\x00\x00\x20\x00"  # mov [200000h], ebx
    modules = [Module(b"abc" * 2000, "first one"), Module(b"", "empty"), Module(b"\xff", "")]
    done = run(guests.multiboot(store + END), modules=modules)
    read = done.board.memory.read
    (at,) = struct.unpack("<I", read(0x200000, 4))
    count, first = struct.unpack_from("<2I", read(at, 88), 20)
    found = list(struct.iter_unpack("<4I", read(first, 16 * count)))
    assert [read(start, end - start) for start, end, _, _ in found] == [b"abc" * 2000, b"", b"\xff"]
    assert [start for start, *_ in found] == [0x101000, 0x103000, 0x103000]
    assert [read(string, 6) for *_, string, _ in found][0] == b"first "
    assert read(found[2][2], 1) == b"\0"
    assert [reserved for *_, reserved in found] == [0, 0, 0]


def test_modules_make_room_for_the_boot_information() -> None:
    """Of an image below it, a module would reach into it, or lie there."""
    store = b"\x89\x1d\x00\x00\x20\x00"  # mov [200000h], ebx
    texts = [b"A" * 100, b"B" * 0x1001]
    modules = [Module(text, "") for text in texts]
    done = run(guests.multiboot(store + END, at=0x7000), modules=modules)
    read = done.board.memory.read
    (at,) = struct.unpack("<I", read(0x200000, 4))
    count, first = struct.unpack_from("<2I", read(at, 88), 20)
    found = list(struct.iter_unpack("<4I", read(first, 16 * count)))
    assert (at, [start for start, *_ in found]) == (0x9000, [0x8000, 0xA000])
    assert [read(start, end - start) for start, end, _, _ in found] == texts
    assert done.ending.status == STATUS


def test_boot_information_makes_room_for_the_image() -> None:
    store = b"\x89\x1d\x00\x00\x20\x00"  # mov [200000h], ebx
    done = run(guests.multiboot(store + END, at=0x9000))
    (at,) = struct.unpack("<I", done.board.memory.read(0x200000, 4))
    assert at == 0xA000
    assert done.ending.status == STATUS


def test_an_elf64_image_starts_in_64_bit_mode() -> None:
    code = b"\x48\xb8" + struct.pack("<Q", 1 << 40) + b"\x48\xc1\xe8\x26"  # mov rax; shr rax, 38
    done = run(guests.elf64(code + b"\xe6\xf4"))
    assert done.ending.status == 9


@pytest.mark.parametrize(("size", "below"), [(3584, 3072), (3582, 3582)])
def test_much_memory_is_split_at_3_gib(size: int, below: int) -> None:
    """As QEMU does it from 3.5 GiB on: the rest lies above 4 GiB."""
    memory = run(END, memory=size * MIB).board.memory
    assert memory.has(below * MIB - 1, 1)
    assert not memory.has(below * MIB, 1)
    end = (4 << 30) + (size - below) * MIB
    assert memory.has(end - 1, 1) == (size > below)
    assert not memory.has(end, 1)


@pytest.mark.parametrize("engine", ["jit", "interp"])
@pytest.mark.parametrize("kind", [0, 1], ids=["elf32", "elf64"])
@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_a_split_lock_at_cpl_3_raises_db_in_a_guest_that_went_to_64_bit_mode(
    tmp_path: Path, engine: str, kind: int, cpu: str
) -> None:
    """SDM 3B, "Bus-Lock Debug Exception": DR6 bit 11 cleared, RIP behind the instruction."""
    image = guests.build_long_mode(tmp_path)[kind].read_bytes()
    seen = Seen()
    done = run(image, "one two", engine=engine, cpu=cpu, observer=seen)
    assert done.output.decode().splitlines() == [
        "one two",
        f"{16 * MIB:08x}",  # where the memory map ends
        "00000001",  # CPUID's BUS_LOCK_DETECT
        "ffff07f0",  # DR6
        "00000000",  # RIP, from the instruction after the culprit
        "0000002a",  # both updates were done
    ]
    assert done.ending.status == (0x15 << 1) | 1
    assert [(lock.cause, lock.cpl, outcome) for lock, outcome in seen.locks] == [
        (Cause.SPLIT, 0, Outcome.NONE),
        (Cause.SPLIT, 3, Outcome.DB),
    ]


@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_bus_locks_leave_the_guest_where_that_is_asked_for(tmp_path: Path, cpu: str) -> None:
    """KVM_CAP_X86_BUS_LOCK_EXIT: an exit for each, at any CPL; the guest still gets its #DB."""
    image = guests.build_long_mode(tmp_path)[0].read_bytes()
    done = run(image, cpu=cpu, bus_lock_exits=True)
    assert done.runner.bus_lock_exits == 2
    assert done.ending.status == (0x15 << 1) | 1
    assert run(image, cpu=cpu).runner.bus_lock_exits == 0


def test_a_processor_without_the_feature_refuses_the_bit(tmp_path: Path) -> None:
    """WRMSR of DEBUGCTL.BLD raises #GP, for which this guest has no handler."""
    image = guests.build_long_mode(tmp_path)[0].read_bytes()
    done = run(image, cpu="legacy")
    assert done.output.splitlines()[-1] == b"00000000"
    assert done.ending.how is How.TRIPLE_FAULT


def test_32_bit_c_code_boots(tmp_path: Path) -> None:
    image = guests.build32(tmp_path, "protected_mode.c")
    done = run(image.read_bytes(), "guest a=b", memory=32 * MIB)
    assert done.output == b"guest a=b\n31744 KiB\n"
    assert done.ending.status == STATUS
