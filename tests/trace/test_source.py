"""Lines and inlined calls, against binutils' addr2line, at every instruction."""

from __future__ import annotations

import itertools
import posixpath
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.trace.stopped import compile_c
from trapline.trace.image import Image
from trapline.trace.source import Position, Source

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("addr2line")), reason="needs gcc and binutils"
)

C_TEXT = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
struct __attribute__((packed)) counter { char pad[3]; uint32_t hits; };
static inline __attribute__((always_inline)) uint32_t add(uint32_t *p, uint32_t n) {
    return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST);
}
static inline uint32_t twice(struct counter *c, uint32_t n) {
    uint32_t first = add((uint32_t *)((char *)c + 3), n);
    { uint32_t inner = n * 3; if (inner > 4) first += add((uint32_t *)((char *)c + 3), inner); }
    return first;
}
__attribute__((noinline)) uint32_t work(struct counter *c, int n) {
    uint32_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += twice(c, i);
    if (__builtin_expect(sum == 77, 0)) { puts("cold"); __builtin_trap(); }
    return sum;
}
int main(int count, char **arguments) {
    struct counter c;
    memset(&c, 0, sizeof c);
    printf("%u\n", work(&c, count + 3) + twice(&c, 5));
    return 0;
}
"""

CPP_TEXT = r"""
#include <atomic>
#include <cstdio>
#include <vector>
namespace outer { namespace {
template <typename T> struct Box {
    T held;
    T bump(T n) { return std::atomic_ref<T>(held).fetch_add(n); }
};
}
struct Worker { long total = 0; __attribute__((noinline)) long run(int n); };
long Worker::run(int n) {
    Box<long> box{n};
    auto lambda = [&](long k) { return box.bump(k) + total; };
    for (int i = 0; i < n; i++) total += lambda(i);
    return total;
}
}
int main(int count, char **) {
    std::vector<long> many(count, 3);
    outer::Worker worker;
    std::printf("%ld\n", worker.run(count) + many.front());
}
"""

Answer = list[tuple[str, str | None, int | None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


def instructions(program: Path) -> list[int]:
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", program],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [int(found, 16) for found in re.findall(r"^\s+([0-9a-f]+):\t", text, re.MULTILINE)]


def by_addr2line(program: Path, vaddrs: list[int], *options: str) -> dict[int, Answer]:
    text = subprocess.run(
        ["addr2line", "-a", "-i", "-f", *options, "-e", program],
        input="\n".join(map(hex, vaddrs)), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    answers: dict[int, Answer] = {}
    lines = iter(text.splitlines())
    vaddr = 0
    for line in lines:
        if line.startswith("0x"):
            vaddr = int(line, 16)
            answers[vaddr] = []
            continue
        file, _, number = re.sub(r" \(discriminator \d+\)", "", next(lines)).rpartition(":")
        is_known = file not in ("??", "") and number not in ("?", "0")
        is_known = is_known and not file.endswith("<artificial>")  # what LTO leaves in its place
        place = (posixpath.normpath(file), int(number)) if is_known else (None, None)
        answers[vaddr].append((line, *place))
    return answers


def ours(positions: tuple[Position, ...]) -> Answer:
    return [
        (at.function or "??", at.file if at.line else None, at.line if at.file else None)
        for at in positions
    ]


DWARF = ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"]
C_OPTIONS = [*itertools.product(DWARF, ["-O0", "-O2"]), ("-gdwarf-5", "-O3"), ("-O1", "-flto")]


@pytest.mark.parametrize("options", C_OPTIONS, ids=" ".join)
def test_every_line_and_inlined_call_of_c(folder, options):
    program = compile_c(C_TEXT, folder / f"c{'_'.join(options)}", *options)
    check_all(program)


# DWARF 4: of version 5's file table, binutils 2.40 takes the wrong entry for C++ headers
@pytest.mark.parametrize("options", [("-O2",), ("-O0",)], ids=" ".join)
def test_every_line_and_inlined_call_of_cpp(folder, options):
    options = ("-gdwarf-4", "-std=c++20", *options)
    program = compile_c(CPP_TEXT, folder / f"cpp{'_'.join(options)}", *options, language="c++")
    image = Image.open(str(program))
    assert image is not None
    source = Source(image)
    answers = by_addr2line(program, instructions(program), "-C")
    assert len(answers) > 100
    for vaddr, answer in answers.items():
        found = ours(source.positions(vaddr))
        if not found:
            continue  # C's start-up code has no DWARF
        assert [at[1:] for at in found] == [at[1:] for at in answer], hex(vaddr)
        for (name, *_), (demangled, *_) in zip(found, answer, strict=True):
            if name.endswith("operator()"):  # addr2line gives lambdas the name of what is around
                continue
            assert bare(name) in bare(demangled), (name, demangled)


def bare(name: str) -> str:
    """The last part of a C++ name, without template arguments and parameters."""
    for _ in range(4):
        name = re.sub(r"<[^<>]*>", "", name)
    name = re.sub(r"\([^()]*\)( const)?$", "", name)
    return name.split("::")[-1]


def test_compressed_and_separate_debug_information(folder):
    program = compile_c(C_TEXT, folder / "compressed", "-O2", "-gz=zlib")
    check_all(program)
    debug = folder / "away.debug"
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    stripped = folder / "stripped"
    subprocess.run(["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", program, stripped],
                   check=True, cwd=folder)  # fmt: skip
    image = Image.open(str(stripped))
    assert image is not None and image.debug is not None
    assert image.debug.path == str(debug)
    check_all(stripped, like=program)


def test_a_debug_file_of_another_build_is_refused(folder):
    program = compile_c(C_TEXT, folder / "linked", "-O2")
    other = compile_c(C_TEXT, folder / "other.debug", "-O3")
    stripped = folder / "mismatched"
    subprocess.run(["objcopy", "--strip-all", f"--add-gnu-debuglink={other}", program, stripped],
                   check=True, cwd=folder)  # fmt: skip
    compile_c(C_TEXT, other, "-O1")
    image = Image.open(str(stripped))
    assert image is not None
    assert image.debug is None
    assert Source(image).positions(image.elf["e_entry"]) == ()


def test_units_without_aranges_are_found(folder):
    program = compile_c(C_TEXT, folder / "no_aranges", "-O2")
    subprocess.run(["objcopy", "--remove-section=.debug_aranges", program], check=True)
    check_all(program)


def test_a_file_without_dwarf_has_no_lines(folder):
    program = compile_c(C_TEXT, folder / "bare", "-g0")
    image = Image.open(str(program))
    assert image is not None
    assert Source(image).positions(image.elf["e_entry"]) == ()


def test_libc_through_its_separate_debug_file():
    path = Path("/lib/x86_64-linux-gnu/libc.so.6")
    image = Image.open(str(path)) if path.exists() else None
    if image is None or image.debug is None or image.debug is image:
        pytest.skip("libc's debug information is not installed")
    vaddrs = instructions(path)[::400]
    answers = by_addr2line(path, vaddrs)
    source = Source(image)
    assert len(answers) > 500
    lines = {vaddr: [line for _, _, line in answer] for vaddr, answer in answers.items()}
    # Not the files: of DWARF 5's table binutils 2.40 takes the wrong entry for included code.
    assert {v: [at.line for at in source.positions(v)] or [None] for v in lines} == lines


def check_all(program: Path, like: Path | None = None) -> None:
    image = Image.open(str(program))
    assert image is not None
    answers = by_addr2line(like or program, instructions(like or program))
    assert len(answers) > 60
    compare(Source(image), answers)


def compare(source: Source, answers: dict[int, Answer]) -> None:
    known = 0
    for vaddr, answer in answers.items():
        found = ours(source.positions(vaddr))
        if found:
            assert without_blanks(found, answer) == answer, hex(vaddr)
            known += 1
        else:
            assert [at[1:] for at in answer] == [(None, None)], hex(vaddr)
    assert known > 40


def without_blanks(found: Answer, answer: Answer) -> Answer:
    """Ours, but blank where addr2line gave no line (link-time optimized code)."""
    if len(found) != len(answer):
        return found
    return [
        (ours[0], *theirs[1:]) if theirs[1] is None else ours
        for ours, theirs in zip(found, answer, strict=True)
    ]
