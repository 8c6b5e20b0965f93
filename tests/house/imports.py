"""The import rules as data, and the search for what breaks them.

Rooms are listed bottom-up: each may use only rooms above it in the table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from tests.house.tree import Source

MAY_USE = {  # room: the rooms whose door it may open
    "arch": set(),
    "processor": {"arch"},
    "kvm": {"arch", "processor"},
    "machine": {"arch", "kvm"},
    "process": {"arch", "kvm", "machine"},
    "trace": {"arch", "processor", "kvm"},  # for the event and exit types
    "report": {"arch", "trace"},
    "cli": {"arch", "processor", "kvm", "machine", "process", "trace", "report"},
}

ONLY = {  # inside a room: a package, and all that it may know of its own room
    "processor.isa": {"processor.language", "processor.isa"},
    "processor.language": {"processor.language"},
    "machine.devices": {"machine.devices"},
}

NEVER = [  # inside a room: (importer, imported)
    ("processor.memory", "processor.isa"),
    ("processor.interp", "processor.jit"),
    ("processor.jit", "processor.interp"),
    ("processor.vmx", "processor.svm"),
    ("processor.svm", "processor.vmx"),
    ("kvm.vmx", "kvm.svm"),
    ("kvm.svm", "kvm.vmx"),
    ("kvm.vcpu", "kvm.vmx"),
    ("kvm.vcpu", "kvm.svm"),
]

STRANGERS = {  # other people's packages, and where they may be met
    "llvmlite": ("processor.jit",),
    "iced_x86": ("processor.decode", "process.monitor"),
    "elftools": ("trace", "process.elf"),
    "rich": ("report", "cli"),
}

SHOWN = {"kvm.abi", "kvm.exits"}  # modules of names that their room's door shows whole

INDEPENDENT = ["machine.devices"]  # siblings never meet


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(source: Source) -> Iterator[str]:
    """What a file imports, inside functions too; `.` for a relative import."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, 0):
                # `from a import b` may name a module b
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "."


def complaints(files: Iterable[Source]) -> Iterator[str]:
    """One sentence for each import that a rule forbids."""
    files = list(files)
    modules = {file.module for file in files}
    for file in files:
        for imported in imports(file):
            yield from _judge(file.module, imported, modules)


def _judge(importer: str, imported: str, modules: set[str]) -> Iterator[str]:
    if imported == ".":
        yield f"{importer} uses a relative import"
    elif imported.endswith(".*"):
        yield f"{importer} imports * from {imported[:-2]}"
    elif within(imported, "trapline"):
        yield from _judge_ours(importer, imported.removeprefix("trapline").lstrip("."), modules)
    else:
        yield from _judge_stranger(importer, imported.split(".")[0])


def _judge_stranger(importer: str, package: str) -> Iterator[str]:
    # A name without a dot after it is a prefix: `process.elf` allows process/elf_loader.py.
    homes = STRANGERS.get(package, ("",))
    if not any(importer.startswith(home) for home in homes):
        yield f"{importer} uses {package}, which belongs to {' and '.join(homes)}"


def _judge_ours(importer: str, target: str, modules: set[str]) -> Iterator[str]:
    room, other = importer.split(".")[0], target.split(".")[0]
    if other == "__version__" or not room:
        return
    if room not in MAY_USE:
        yield f"{importer} stands in no known room"
    elif other != room:
        if other not in MAY_USE[room]:
            yield f"{room} must not use {other}: {importer} -> {target}"
        elif other != "arch" and target not in MAY_USE and _is_past_the_door(target, modules):
            yield f"{importer} goes past the door of {other}: {target}"
    else:
        yield from _judge_neighbour(importer, target, modules)


def _is_past_the_door(target: str, modules: set[str]) -> bool:
    """True for `kvm.vcpu.Vcpu` and `kvm.vcpu`, a module; False for `kvm.Vcpu`, a name."""
    module = ".".join(target.split(".")[:2])
    return module in modules and target not in SHOWN


def _judge_neighbour(importer: str, target: str, modules: set[str]) -> Iterator[str]:
    for a, b in NEVER:
        if within(importer, a) and within(target, b):
            yield f"{a} must never use {b}: {importer} -> {target}"
    for package, known in ONLY.items():
        if within(importer, package) and not any(within(target, one) for one in known):
            yield f"{package} knows only {', '.join(sorted(known))}: {importer} -> {target}"
    for package in INDEPENDENT:
        inside = within(target, package) and target != package
        if inside and within(importer, package) and importer != package:
            yield f"{package}: siblings meet, {importer} -> {target}"
