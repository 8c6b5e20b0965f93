"""`trapline run`: starts a guest image on a small board of its own."""

from __future__ import annotations

import argparse
import re
import sys

from trapline.cli.console import Console
from trapline.cli.failure import Failure, complain
from trapline.cli.guest_locks import GuestLocks
from trapline.cli.guest_state import describe
from trapline.cli.image import read_image, read_modules
from trapline.cli.progress import Progress
from trapline.kvm import Kvm, abi, open_kvm
from trapline.machine import BadImage, Board, Ending, How, Runner
from trapline.processor import HostLimit, compiler

EPILOG = """\
examples:
  trapline run boot.bin                           a flat image, in real mode at 0x7C00
  trapline run --memory 64M --append "a b" t.elf  a multiboot image with a command line
  trapline run --cpu zen5 --timeout 10 t.elf      on AMD, for at most ten seconds
  trapline run --bus-lock exit t.elf              have every bus lock leave the guest

images: 32- and 64-bit ELF with a multiboot header (32-bit protected mode), other 64-bit ELF
(64-bit mode, the first 4 GiB mapped to themselves), anything else flat, in real mode.

the board: serial port 0x3F8 and debug port 0xE9 to stdout, debug exit 0xF4, two 8259, 8254,
CMOS clock, fw_cfg, pc-testdev ports, PCI ports that answer empty, reset and power off.  There
is no BIOS, local APIC, I/O APIC, ACPI table, second processor, device memory or serial input,
and the hypervisor does no INS and OUTS yet.

exit status: (value << 1) | 1 of the guest's write to 0xF4; 0 power off, 4 reset, 124 timeout,
130 Ctrl-C, 132 halted for good, 134 triple fault, 136 stuck, 2 if it cannot be started.
"""
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
    locks, console = GuestLocks(), Console()
    kvm = open_hypervisor(options, locks)
    try:
        wants_exits = options.bus_lock == "exit"
        board = Board(kvm, options.memory, console.send, bus_lock_exits=wants_exits)
    except ValueError as error:
        raise Failure(str(error)) from None
    try:
        board.load(image, command_line(options), options.load, modules)
    except BadImage as error:
        raise Failure(f"cannot start {options.guest}: {error}") from None
    runner = Runner(board)
    try:
        ending = runner.run(options.timeout)
    except HostLimit as error:
        raise Failure(str(error).rstrip(".")) from None
    finally:
        console.finish()
    board.close()
    if not ending.how.is_ordinary:
        tell(board, ending)
    report(locks, runner if wants_exits else None)
    compiler().save()
    return ending.status


def command_line(options: argparse.Namespace) -> str:
    """As QEMU gives it: the image's name, then --append."""
    return f"{options.guest} {options.append}"


def open_hypervisor(options: argparse.Namespace, locks: GuestLocks) -> Kvm:
    """The software hypervisor on the model asked for."""
    try:
        kvm = open_kvm(cpu=options.cpu, engine=options.engine, observer=locks)
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
        print(describe(board, ending.last_exit), end="", file=sys.stderr)


def report(locks: GuestLocks, runner: Runner | None) -> None:
    """The bus locks on stderr, if there were any."""
    text = locks.summary()
    if runner is not None:
        text += f"{runner.bus_lock_exits} bus-lock exits\n"
    if text:
        lines = (f"trapline: {line}\n" for line in text.splitlines())
        print("".join(lines), end="", file=sys.stderr)
