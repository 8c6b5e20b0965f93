"""`trapline run` and `trapline cpus` as a user meets them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.run import TRAPLINE, trapline
from tests.machine import guests
from tests.machine.guests import END, FOREVER, HLT, STATUS, say


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "guest.bin"


def test_output_and_status_are_the_guests(image: Path) -> None:
    image.write_bytes(say(b"hello\n") + END)
    done = trapline("run", image)
    assert (done.returncode, done.stdout, done.stderr) == (STATUS, "hello\n", "")


def test_bus_locks_are_summed_up_on_stderr(tmp_path: Path) -> None:
    image, _ = guests.build_long_mode(tmp_path)
    done = trapline("run", "--bus-lock", "exit", "--append", "one two", image)
    assert done.stdout.startswith(f"{image} one two\n")
    assert done.returncode == (0x15 << 1) | 1
    first, kernel, user, exits = done.stderr.splitlines()
    assert first == "trapline: 2 bus locks at 2 instructions"
    assert kernel.endswith("split, 4 bytes, CPL 0, bus-lock exit")
    assert user.endswith("split, 4 bytes, CPL 3, bus-lock exit")
    assert exits == "trapline: 2 bus-lock exits"


@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_locks_that_signal_nothing_are_counted(image: Path, engine: str) -> None:
    """mov cx, 1000; lock inc word [703fh]; loop"""
    image.write_bytes(bytes.fromhex("b9 e8 03 f0 ff 06 3f 70 e2 f9") + END)
    done = trapline("run", "--engine", engine, image)
    lines = [line.split() for line in done.stderr.splitlines()]
    assert lines[0][1:] == ["1000", "bus", "locks", "at", "1", "instruction"]
    assert sum(int(line[1]) for line in lines[1:]) == 1000
    assert {line[2] for line in lines[1:]} == {"0x7c03"}


def test_a_bad_end_shows_the_state_of_the_processor(image: Path) -> None:
    image.write_bytes(b"\xb8\x34\x12\xf4")  # mov ax, 1234h; hlt
    done = trapline("run", image)
    assert done.returncode == 132
    lines = done.stderr.splitlines()
    assert lines[0] == "trapline: the guest halted with interrupts off"
    assert lines[1] == "  rip 0000000000007c04  00 00  add [bx+si], al"
    assert "rax 0000000000001234" in lines[2]
    assert "mode real" in done.stderr
    assert lines[-1] == "  last exit: Hlt()"


def test_the_state_in_64_bit_mode_shows_what_led_to_a_triple_fault(image: Path) -> None:
    image.write_bytes(guests.elf64(bytes.fromhex("31 c0 48 8d 58 ff 0f 0b")))  # .., ud2; no IDT
    done = trapline("run", image)
    assert done.returncode == 134
    lines = done.stderr.splitlines()
    assert lines[0] == "trapline: the guest shut down after a triple fault"
    assert lines[1] == "  rip 0000000000200006  0f 0b  ud2"
    assert "rax 0000000000000000  rbx ffffffffffffffff" in lines[2]
    assert "mode 64-bit  cpl 0" in done.stderr
    assert lines[-1] == "  last exit: Shutdown()"


def test_a_flat_image_goes_where_the_user_says(image: Path) -> None:
    image.write_bytes(b"\xe8\x00\x00\x58\xe6\xf4")  # call next; pop ax; out 0f4h, al
    assert trapline("run", "--load", "0x8020", image).returncode == (0x23 << 1) | 1


def test_a_jump_into_nothing_shows_that_there_is_nothing(image: Path) -> None:
    image.write_bytes(guests.multiboot(b"\xb8\x00\x00\x00\x80\xff\xe0"))
    done = trapline("run", image)
    assert done.returncode == 136
    lines = done.stderr.splitlines()
    assert lines[0] == "trapline: the guest jumped to 0x80000000, where there is no memory"
    assert lines[1] == "  rip 0000000080000000  (no memory there)"
    assert "mode 32-bit protected" in done.stderr


def test_the_timeout_ends_a_guest_whose_output_nobody_reads(image: Path) -> None:
    image.write_bytes(say(b"x") + b"\xeb\xf8")
    started = time.monotonic()
    with subprocess.Popen(
        [*TRAPLINE, "run", "--timeout", "1", image], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(120) == 124
        assert time.monotonic() - started < 50
        assert process.stderr is not None
        assert b"the guest ran out of time" in process.stderr.read()


def test_a_reader_that_has_gone_ends_the_guest(image: Path) -> None:
    image.write_bytes(say(b"x") + b"\xeb\xf8")
    with subprocess.Popen(
        [*TRAPLINE, "run", "--timeout", "110", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        assert process.wait(120) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize("wait", [FOREVER, b"\xfb" + HLT + b"\xeb\xfd"], ids=["runs", "halts"])
def test_ctrl_c_ends_the_guest_and_leaves_the_terminal_clean(image: Path, wait: bytes) -> None:
    image.write_bytes(say(b"\x1b[31mred") + wait)
    terminal, other = pty.openpty()
    with subprocess.Popen(
        [*TRAPLINE, "run", "--timeout", "110", image], stdout=other, stderr=subprocess.PIPE
    ) as process:
        shown = b""
        while b"red" not in shown:
            shown += os.read(terminal, 100)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    shown += os.read(terminal, 100)
    os.close(terminal)
    os.close(other)
    assert shown.endswith(b"red\x1b[0m\x1b[?25h")
    assert errors.startswith("trapline: the guest was stopped from outside\n  rip ")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (("/no/such",), "cannot read /no/such: No such file or directory", ""),
        (("/",), "cannot read /: Is a directory", ""),
        (("/dev/null",), "cannot start /dev/null: the image is empty", ""),
        (("/dev/zero",), "/dev/zero is larger than any image can be (128 MiB)", ""),
        (("--cpu", "z80", "/dev/null"), "There is no processor model 'z80'; there are legacy, "
         "icelake, sapphire-rapids, zen4, zen5, max", "trapline cpus"),
        (("--memory", "12", "--memory", "512K", "/dev/null"), "argument --memory: '512K' is no "
         "size from 1M to 1024G, in pages of 4K", "trapline run --help"),
        (("--memory", "9" * 30 + "G", "/dev/null"), f"argument --memory: '{'9' * 30}G' is no "
         "size from 1M to 1024G, in pages of 4K", "trapline run --help"),
        (("--timeout", "nan", "/dev/null"), "argument --timeout: 'nan' is no number of seconds",
         "trapline run --help"),
        (("--load", "here", "/dev/null"), "argument --load: 'here' is no address",
         "trapline run --help"),
        ((), "the following arguments are required: GUEST", "trapline run --help"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_a_sentence(
    arguments: tuple[str, ...], sentence: str, hint: str
) -> None:
    done = trapline("run", *arguments)
    expected = f"trapline: {sentence}\n" + (f"  help: {hint}\n" if hint else "")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_cpus_lists_the_models_and_what_each_tells() -> None:
    done = trapline("cpus")
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()}
    assert done.returncode == 0
    assert rows == {
        "MODEL": ["VENDOR", "#DB", "#AC"],
        "legacy": ["Intel", "-", "-"],
        "icelake": ["Intel", "-", "yes"],
        "sapphire-rapids": ["Intel", "yes", "yes"],
        "zen4": ["AMD", "-", "-"],
        "zen5": ["AMD", "yes", "-"],
        "max": ["Intel", "yes", "yes"],
    }
