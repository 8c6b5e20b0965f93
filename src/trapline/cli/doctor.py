"""`trapline doctor`: what this machine and this installation can do, one line a fact."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trapline import __version__
from trapline.processor import cache_root
from trapline.trace import DEBUG_ROOT, find_debug_file

KVM_GET_API_VERSION = 0xAE00
PACKAGES = ("llvmlite", "iced-x86", "pyelftools", "rich")
# x86-64-v2 as the psABI lists it, by the names that /proc/cpuinfo has for it.
LEVEL_2 = {
    "cx16": "CMPXCHG16B", "lahf_lm": "LAHF-SAHF", "popcnt": "POPCNT", "pni": "SSE3",
    "sse4_1": "SSE4.1", "sse4_2": "SSE4.2", "ssse3": "SSSE3",
}  # fmt: skip
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


class Fact(NamedTuple):
    """One line: what was looked at, what was found, what to do about it if anything."""

    name: str
    found: str
    hint: str = ""
    is_fatal: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb has no options."""
    parser.epilog = "Exit status 0 if `trapline trace` can work here, 1 if not."


def run(options: argparse.Namespace) -> int:
    """Print the facts; 1 if one of them keeps Trapline from working."""
    facts = list(examine())
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        print(f"{fact.name:<{width}}  {fact.found}")
        if fact.hint:
            print(f"{'':<{width}}  help: {fact.hint}")
    return int(any(fact.is_fatal for fact in facts))


def examine() -> Iterator[Fact]:
    """All facts, the most important first."""
    yield Fact("trapline", __version__)
    yield _system()
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield Fact("python", python)
    for package in PACKAGES:
        yield _package(package)
    yield from _processor()
    yield _split_lock_setting()
    yield _kvm()
    yield _cache()
    yield from _debug_information()


def _system() -> Fact:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        return Fact("system", found)
    hint = "Trapline runs Linux programs on x86-64 Linux"
    return Fact("system", found, hint, is_fatal=True)


def _package(name: str) -> Fact:
    try:
        return Fact(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        hint = "install Trapline again: pip install --force-reinstall trapline"
        return Fact(name, "missing", hint, is_fatal=True)


def _processor() -> Iterator[Fact]:
    """Whether the host can execute what programs are shown, and what it could detect itself,
    of which Trapline's processor needs nothing."""
    fields = dict(_cpuinfo())
    flags = set(fields.get("flags", "").split())
    yield Fact("processor", fields.get("model name", "unknown"))
    yield _level(flags)
    for flag, meaning in (
        ("bus_lock_detect", "#DB for bus locks"),
        ("split_lock_detect", "#AC for split locks"),
    ):
        yield Fact(flag, f"{'yes' if flag in flags else 'no'} ({meaning} in the host's hardware)")


def _level(flags: set[str]) -> Fact:
    """Translated code executes SSE4.2 and POPCNT where the program does."""
    missing = [name for flag, name in LEVEL_2.items() if flag not in flags]
    if not flags:
        return Fact("x86-64-v2", "unknown: /proc/cpuinfo names no features")
    if not missing:
        return Fact("x86-64-v2", "yes")
    hint = (
        "Trapline needs a processor made since about 2009, or a virtual machine that shows it all"
    )
    return Fact("x86-64-v2", f"no, {', '.join(missing)} missing", hint, is_fatal=True)


def _cpuinfo() -> Iterator[tuple[str, str]]:
    """The fields of the first processor."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        for line in stream:
            if not line.strip():
                return
            name, _, text = line.partition(":")
            yield name.strip(), text.strip()


def _split_lock_setting() -> Fact:
    """What the host's kernel does about split locks of its own programs."""
    words = _read("/proc/cmdline").split()
    asked = next((word for word in words if word.startswith("split_lock_detect=")), None)
    mitigate = _read("/proc/sys/kernel/split_lock_mitigate").strip()
    found = f"{asked or 'split_lock_detect not on the kernel command line'}"
    if mitigate:
        found += f", kernel.split_lock_mitigate = {mitigate}"
    return Fact("kernel", found)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _kvm() -> Fact:
    """Whether --backend host is possible."""
    try:
        descriptor = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = ""
        if error.errno == errno.EACCES:
            hint = "add yourself to the group kvm; only --backend host needs it"
        return Fact("/dev/kvm", f"does not open: {error.strerror} (not needed)", hint)
    try:
        version = fcntl.ioctl(descriptor, KVM_GET_API_VERSION)
    except OSError as error:
        return Fact("/dev/kvm", f"opens, but does not answer: {error.strerror} (not needed)")
    finally:
        os.close(descriptor)
    return Fact("/dev/kvm", f"opens, API version {version}")


def _cache() -> Fact:
    """Where compiled code is kept; without it every run compiles again."""
    folder = cache_root()
    if not folder.exists():
        parent = next((p for p in folder.parents if p.exists()), folder)
        if os.access(parent, os.W_OK):
            return Fact("cache", f"{folder}: not there yet, the first run makes it")
        hint = "set TRAPLINE_CACHE to a folder that can be written"
        return Fact("cache", f"{folder}: cannot be made", hint)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    found = f"{folder}: {len(files)} files, {size:.1f} MB"
    if not os.access(folder, os.W_OK):
        return Fact("cache", found + ", not writable", "set TRAPLINE_CACHE to a folder that is")
    return Fact("cache", found)


def _debug_information() -> Iterator[Fact]:
    """Whether lines inside system libraries can be named."""
    files = list(DEBUG_ROOT.glob(".build-id/*/*.debug"))
    found = f"{len(files)} files under {DEBUG_ROOT}/.build-id" if files else "none installed"
    yield Fact("debug files", found)
    if os.path.exists(LIBC):
        debug = find_debug_file(LIBC)
        hint = "" if debug else "apt install libc6-dbg, for lines inside the C library"
        yield Fact("libc's lines", debug or "not installed", hint)
