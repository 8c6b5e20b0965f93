"""Names for addresses: functions, globals, labels, thread-locals; stripped files still say what
their dynamic symbols say."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.trace.stopped import compile_c
from trapline.trace.cfi import CallFrames
from trapline.trace.image import Image
from trapline.trace.symbols import Symbols

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("nm")), reason="needs gcc and binutils"
)

PROGRAM = r"""
#include <stdio.h>
int table[10] = {1}; static long zeroed[4]; _Thread_local int mine = 3; _Thread_local long more;
static int hidden(int n) { return n + table[n] + mine; }
__attribute__((noinline)) int exported(int n) { return hidden(n) * 2; }
__asm__(".text\nlabel_only: nop\nnop\nnop\n.data\ndata_label: .long 1, 2, 3\n.text\n");
int main(int count, char **arguments) { zeroed[1] = more; printf("%d", exported(count)); return 0; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(PROGRAM, tmp_path_factory.mktemp("symbols") / "named", "-O0", "-rdynamic")


def opened(path: Path) -> Image:
    image = Image.open(str(path))
    assert image is not None
    return image


def by_nm(program: Path) -> dict[str, int]:
    text = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    lines = (line.split() for line in text.splitlines())
    return {fields[2]: int(fields[0], 16) for fields in lines if len(fields) == 3}


def test_functions_globals_and_labels_are_found_by_any_address_inside(program):
    symbols, known = Symbols(opened(program)), by_nm(program)
    for name in ("main", "exported", "hidden"):
        for inside in (0, 5):
            found = symbols.function(known[name] + inside)
            assert found is not None and (found.name, found.value) == (name, known[name])
    for name, inside in (("table", 39), ("zeroed", 31), ("data_label", 8)):
        found = symbols.data(known[name] + inside)
        assert found is not None and (found.name, found.value) == (name, known[name])
    found = symbols.function(known["label_only"] + 1)
    assert found is not None and found.name == "label_only"
    assert symbols.thread_local(known["mine"]).name == "mine"
    assert symbols.thread_local(known["more"] + 7).name == "more"


def test_addresses_outside_have_no_name(program):
    symbols, known = Symbols(opened(program)), by_nm(program)
    assert symbols.function(0) is None
    assert symbols.function(1 << 40) is None
    assert symbols.data(known["table"] + (1 << 30)) is None
    assert symbols.thread_local(1 << 20) is None


def test_a_stripped_file_keeps_its_dynamic_names(program, tmp_path):
    known = by_nm(program)
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    symbols = Symbols(opened(stripped))
    found = symbols.function(known["exported"] + 4)
    assert found is not None and found.name == "exported"
    assert symbols.function(known["hidden"] + 4) is None


def test_a_compressed_symbol_table_in_a_stripped_file_is_used(program, tmp_path):
    """Fedora's .gnu_debugdata."""
    mini, packed = tmp_path / "mini", tmp_path / "mini.xz"
    subprocess.run(["objcopy", "--strip-debug", program, mini], check=True)
    packed.write_bytes(lzma.compress(mini.read_bytes()))
    stripped = tmp_path / "stripped"
    subprocess.run(["objcopy", "--strip-all", program, stripped], check=True)
    subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={packed}", stripped], check=True)
    found = Symbols(opened(stripped)).function(by_nm(program)["hidden"] + 4)
    assert found is not None and found.name == "hidden"


def test_the_build_id_and_the_segments_are_readelfs(program):
    image = opened(program)
    text = subprocess.run(["readelf", "-nW", program], capture_output=True, text=True).stdout
    assert f"Build ID: {image.build_id}" in text
    assert image.is_relocatable
    for segment in image.segments:
        if segment.vaddr == 0 or segment.is_executable:
            start, offset = (0x7F00_0000_0000 + segment.vaddr) & -4096, segment.offset & -4096
            assert image.bias(start, offset, segment.is_executable) == 0x7F00_0000_0000
    first, last = image.extent()
    assert first <= by_nm(program)["main"] < by_nm(program)["_end"] <= last


def test_files_that_are_no_elf_give_no_image(tmp_path):
    for name, content in {"empty": b"", "text": b"#!/bin/sh\n", "cut": b"\x7fELF\2\1\1"}.items():
        (tmp_path / name).write_bytes(content)
        assert Image.open(str(tmp_path / name)) is None
    assert Image.open(str(tmp_path / "missing")) is None
    assert Image.open(str(tmp_path)) is None


def test_an_image_holds_no_descriptor(program):
    """A traced program may close any number, and expects the lowest free ones for itself."""
    before = set(os.listdir("/proc/self/fd"))
    image = opened(program)
    frames = CallFrames(image)
    assert frames.row(by_nm(program)["main"]) is not None
    assert Symbols(image).function(by_nm(program)["main"]) is not None
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_replaced_meanwhile_is_not_mixed_up(program, tmp_path):
    copied = tmp_path / "copied"
    shutil.copy(program, copied)
    image = opened(copied)
    other = tmp_path / "other"
    other.write_bytes(b"other" * 100_000)
    other.rename(copied)
    with pytest.raises(OSError, match="replaced"):
        image.elf.stream.seek(1 << 18)
        image.elf.stream.read(100)
