"""Which room may use which."""

from __future__ import annotations

import re

import pytest

from tests.house.imports import MAY_USE, complaints
from tests.house.tree import PACKAGE, Source, package


def test_rooms_use_only_what_they_may():
    found = list(complaints(package()))
    assert not found, "\n".join(found)


def test_the_rooms_form_no_circle():
    seen: set[str] = set()
    for room, used in MAY_USE.items():  # written bottom-up, so each uses earlier ones only
        assert used <= seen, room
        seen.add(room)


def test_every_folder_of_the_package_is_a_room():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders <= set(MAY_USE)


TREE = {
    "src/trapline/__init__.py": "",
    "src/trapline/arch/debug.py": "",
    "src/trapline/processor/__init__.py": "",
    "src/trapline/processor/core.py": "",
    "src/trapline/processor/state.py": "",
    "src/trapline/processor/jit/engine.py": "",
    "src/trapline/kvm/__init__.py": "",
    "src/trapline/kvm/vmx/backend.py": "",
    "src/trapline/machine/devices/serial.py": "",
}


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("arch/bad.py", "import trapline.processor", "arch must not use processor"),
        ("processor/bad.py", "from trapline.kvm import Kvm", "processor must not use kvm"),
        ("kvm/bad.py", "from trapline.processor import core", "past the door of processor"),
        ("kvm/bad.py", "from trapline.processor.core import Core", "past the door of processor"),
        ("kvm/bad.py", "import trapline.processor.core", "past the door of processor"),
        ("kvm/bad.py", "def f():\n    import trapline.machine", "kvm must not use machine"),
        ("kvm/bad.py", "from . import vcpu", "relative import"),
        ("kvm/bad.py", "from trapline.arch.debug import *", r"imports \* from"),
        ("kvm/bad.py", "import llvmlite.binding", "llvmlite, which belongs to processor.jit"),
        ("kvm/svm/bad.py", "import trapline.kvm.vmx.backend", "kvm.svm must never use kvm.vmx"),
        ("kvm/vcpu.py", "from trapline.kvm.vmx import backend", "kvm.vcpu must never"),
        ("processor/isa/bad.py", "from trapline.processor import state", "knows only"),
        ("processor/language/bad.py", "import trapline.processor.state", "knows only"),
        ("processor/interp/bad.py", "import trapline.processor.jit", "must never use"),
        ("machine/devices/bad.py", "import trapline.machine.devices.serial", "siblings meet"),
        ("report/bad.py", "from trapline.kvm import Exit", "report must not use kvm"),
        ("attic/bad.py", "import trapline.arch.debug", "no known room"),
    ],
)
def test_a_broken_rule_is_named(path, text, complaint):
    files = [Source(*item) for item in {**TREE, f"src/trapline/{path}": text}.items()]
    found = list(complaints(files))
    assert len(found) == 1
    assert re.search(complaint, found[0])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("kvm/good.py", "from trapline.processor import Core"),
        ("kvm/good.py", "from trapline.arch.debug import Dr6\nfrom trapline.arch import debug"),
        ("kvm/good.py", "from trapline.kvm.vmx.backend import Vmx"),
        ("processor/jit/good.py", "import llvmlite.ir"),
        ("process/monitor.py", "import iced_x86"),
        ("process/elf_loader.py", "from elftools.elf.elffile import ELFFile"),
        ("processor/isa/good.py", "from trapline.processor.language import instruction"),
        ("cli/good.py", "from trapline import __version__\nfrom trapline.report import text"),
    ],
)
def test_what_is_allowed_is_not_complained_about(path, text):
    files = [Source(*item) for item in {**TREE, f"src/trapline/{path}": text}.items()]
    assert list(complaints(files)) == []
