"""`trapline run`: starts a guest image on a small board of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

from trapline.cli.console import Console
from trapline.cli.failure import Failure, complain
from trapline.cli.guest_locks import GuestLocks
from trapline.cli.guest_state import describe
from trapline.cli.guest_trace import GuestWatcher, header
from trapline.cli.image import read_image, read_modules
from trapline.cli.progress import Progress
from trapline.cli.trace_file import close_trace, open_trace, trace_path
from trapline.kvm import Kvm, Quirk, abi, open_kvm
from trapline.machine import MOST_CPUS, BadImage, Board, Ending, How, Runner
from trapline.processor import HostLimit, compiler

EPILOG = """\
examples:
  trapline run boot.bin                           a flat image, in real mode at 0x7C00
  trapline run --memory 64M --append "a b" t.elf  a multiboot image with a command line
  trapline run --initrd "env words,disk" t.elf    with two modules, one of which has words
  trapline run --smp 2 t.elf                      with two processors
  trapline run --cpu zen5 --timeout 10 t.elf      on AMD, for at most ten seconds
  trapline run --bus-lock exit t.elf              have every bus lock leave the guest
  trapline run --trace t.jsonl t.elf              keep them, with functions and lines:
  trapline report t.jsonl

images: 32- and 64-bit ELF with a multiboot header (32-bit protected mode), other 64-bit ELF
(64-bit mode, the first 4 GiB mapped to themselves), anything else flat, in real mode.

the board: serial port 0x3F8 and debug port 0xE9 to stdout, debug exit 0xF4, two 8259, 8254,
CMOS clock, fw_cfg, pc-testdev, PCI ports that answer empty, reset and power off; local
APICs (x2APIC too), I/O APIC and ACPI tables, where with --smp the other processors wait for
INIT and SIPI.  There is no BIOS, HPET or serial input.

exit status: (value << 1) | 1 of the guest's write to 0xF4; 0 power off, 4 reset, 124 timeout,
130 Ctrl-C, 132 halted for good, 134 triple fault, 136 stuck, 2 if it cannot be started.
"""
QUIRKS = {quirk.name.lower().replace("_", "-"): quirk for quirk in Quirk if quirk.name}
_SIZE = re.compile(r"(\d+)([kKmMgG]?)")
_UNITS = {"": 20, "k": 10, "m": 20, "g": 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument("guest", metavar="GUEST", help="the image")
    parser.add_argument(
        "--cpu", default="max", metavar="MODEL",
        help="a model of `trapline cpus`, with ,+feature,-feature (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=memory_size, default=memory_size("128M"), metavar="SIZE",
        help="with K, M or G, else in MiB (default: 128M)",
    )  # fmt: skip
    parser.add_argument(
        "--smp", type=processors, default=1, metavar="N",
        help=f"processors, at most {MOST_CPUS} (default: 1)",
    )  # fmt: skip
    parser.add_argument("--append", default="", metavar="TEXT", help="the guest's command line")
    parser.add_argument(
        "--initrd", metavar="LIST",
        help="modules for a multiboot image: FILE[ WORDS][,FILE[ WORDS]...], as QEMU's -initrd",
    )  # fmt: skip
    parser.add_argument(
        "--load", type=address, metavar="ADDRESS", help="take the image as flat, at this address"
    )
    parser.add_argument(
        "--timeout", type=seconds, metavar="S", help="end the guest after S seconds"
    )
    parser.add_argument(
        "--bus-lock", choices=("exit", "off"), default="off",
        help="whether bus locks leave the guest, as KVM_CAP_X86_BUS_LOCK_EXIT has it",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="FILE", help="keep every bus lock, for `trapline report FILE`"
    )
    _add_processor_arguments(parser)


def _add_processor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quirk", choices=QUIRKS, action="append", default=[], metavar="NAME",
        help="be as wrong as upstream KVM in this; one of " + ", ".join(QUIRKS),
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("jit", "interp"), default="jit",
        help="how the processor executes: fast, or the slow reference",
    )  # fmt: skip


def memory_size(text: str) -> int:
    """Bytes, as in QEMU's -m."""
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << _UNITS[match[2].lower()] if match else 0
    if match is None or size < 1 << 20 or size % 4096 or size > 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 1M to 1024G, in pages of 4K")
    return size


def processors(text: str) -> int:
    """How many there are to be."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_CPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_CPUS}")
    return int(text)


def address(text: str) -> int:
    """A number as C writes it."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address") from None


def seconds(text: str) -> float:
    """A time that is worth waiting."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def run(options: argparse.Namespace) -> int:
    """Run the image; the answer is the guest's status."""
    image = read_image(options.guest)
    modules = read_modules(options.initrd) if options.initrd is not None else []
    compiler().progress = Progress()
    watcher, console = GuestWatcher(), Console()
    kvm = open_hypervisor(options, watcher)
    try:
        wants_exits = options.bus_lock == "exit"
        board = Board(
            kvm, options.memory, console.send, cpus=options.smp, bus_lock_exits=wants_exits
        )
    except ValueError as error:
        raise Failure(str(error)) from None
    try:
        board.load(image, command_line(options), options.load, modules)
    except BadImage as error:
        raise Failure(f"cannot start {options.guest}: {error}") from None
    runner = Runner(board)
    with recording(options, watcher, board) as ended:
        ending = run_to_its_end(runner, options.timeout, console)
        board.close()
        ended(ending.status)
    if not ending.how.is_ordinary:
        tell(board, ending)
    report(watcher.locks, runner if wants_exits else None)
    compiler().save()
    return ending.status


def run_to_its_end(runner: Runner, timeout: float | None, console: Console) -> Ending:
    """The guest's run, with the terminal as it was before."""
    try:
        return runner.run(timeout)
    except HostLimit as error:
        raise Failure(str(error).rstrip(".")) from None
    finally:
        console.finish()


@contextlib.contextmanager
def recording(
    options: argparse.Namespace, watcher: GuestWatcher, board: Board
) -> Iterator[Callable[[int], None]]:
    """Write the trace, if there is to be one; what it gives is to be told the status."""
    if options.trace is None:
        yield lambda status: None
        return
    name = options.trace
    with trace_path(name) as path:
        writer = open_trace(path, header(options.cpu), name)
        watcher.record(writer, board, os.path.abspath(options.guest), options.append.split())
        yield lambda status: watcher.ended(writer, status)
        close_trace(writer, name)


def command_line(options: argparse.Namespace) -> str:
    """As QEMU gives it: the image's name, then --append."""
    return f"{options.guest} {options.append}"


def open_hypervisor(options: argparse.Namespace, watcher: GuestWatcher) -> Kvm:
    """The software hypervisor on the model asked for."""
    try:
        wrong = Quirk(sum({QUIRKS[name] for name in options.quirk}))
        kvm = open_kvm(
            cpu=options.cpu, engine=options.engine, observer=watcher.observe, quirks=wrong
        )
    except HostLimit as error:
        raise Failure(str(error).rstrip("."), "trapline cpus") from None
    modes = kvm.check_extension(abi.Capability.X86_BUS_LOCK_EXIT)
    if options.bus_lock == "exit" and not modes & abi.BUS_LOCK_DETECTION_EXIT:
        raise Failure(f"{options.cpu} has no bus-lock exit", "trapline cpus")
    return kvm


def tell(board: Board, ending: Ending) -> None:
    """How it came to an end that the guest did not ask for, and where the vCPU stands."""
    complain(f"the guest {ending.sentence}")
    if ending.how is not How.INTERRUPTED or ending.last_exit is not None:
        print(describe(board, ending.last_exit, ending.vcpu), end="", file=sys.stderr)


def report(locks: GuestLocks, runner: Runner | None) -> None:
    """The bus locks on stderr, if there were any."""
    text = locks.summary()
    if runner is not None:
        text += f"{runner.bus_lock_exits} bus-lock exits\n"
    if text:
        lines = (f"trapline: {line}\n" for line in text.splitlines())
        print("".join(lines), end="", file=sys.stderr)
