"""Fields named from their offset: the compiler's own offsets are the oracle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.trace.stopped import compile_c
from trapline.trace.image import Image
from trapline.trace.source import Source
from trapline.trace.symbols import Symbols

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")

PROGRAM = r"""
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef struct { int x, y; } point;
struct inner { char tag; point corner[2][3]; union { long number; char text[12]; } any; };
struct __attribute__((packed)) outer {
    char name[7];
    const volatile struct inner parts[2];
    struct { short anonymous; point origin; };
    _Atomic(uint32_t) hits;
    uint64_t matrix[2][3][4];
    struct outer *next;
};
struct outer one, many[3];
static point *pointer;
int plain[5];
#define OFFSET(root, expression) ((char *)&expression - (char *)&root)
#define SHOW(root, expression) printf("%s %zu %s\n", #root, OFFSET(root, expression), #expression)
int main(void) {
    SHOW(one, one.name[0]); SHOW(one, one.name[6]);
    SHOW(one, one.parts[0].tag); SHOW(one, one.parts[1].corner[1][2].y);
    SHOW(one, one.parts[1].corner[0][0].x); SHOW(one, one.parts[0].any.number);
    SHOW(one, one.anonymous); SHOW(one, one.origin.y); SHOW(one, one.hits);
    SHOW(one, one.matrix[0][0][0]); SHOW(one, one.matrix[1][2][3]); SHOW(one, one.matrix[0][1][2]);
    SHOW(one, one.next); SHOW(many, many[2].hits); SHOW(many, many[1].parts[1].tag);
    SHOW(plain, plain[0]); SHOW(plain, plain[4]); SHOW(pointer, pointer);
    return 0;
}
"""
CPP = r"""
#include <cstdio>
namespace deep {
struct Base { long first; int second; };
struct Derived : Base { char own[3]; long last; };
}
static deep::Derived derived;
int main() { derived.last = 1; std::printf("%zu\n", (char *)&derived.last - (char *)&derived); }
"""


def fields_of(program: Path):
    image = Image.open(str(program))
    assert image is not None
    source, symbols = Source(image), Symbols(image)
    main = next(
        symbols.function(at).value
        for at in range(*image.extent())
        if (found := symbols.function(at)) is not None and found.name == "main"
    )
    return lambda root, offset: source.global_field(main, root, offset)


@pytest.mark.parametrize("dwarf", ["-gdwarf-2", "-gdwarf-4", "-gdwarf-5"])
def test_every_field_has_the_name_the_compiler_gave_it(tmp_path, dwarf):
    program = compile_c(PROGRAM, tmp_path / "fields", "-O0", dwarf)
    find = fields_of(program)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    lines = [line.split(" ", 2) for line in printed.splitlines()]
    assert len(lines) == 18
    for root, offset, expression in lines:
        assert find(root, int(offset)).path == expression
    assert find("one", int(lines[8][1])).struct == "outer"
    assert find("one", int(lines[8][1])).offset == int(lines[8][1])


def test_an_offset_inside_a_field_is_added(tmp_path):
    find = fields_of(compile_c(PROGRAM, tmp_path / "fields", "-O0"))
    assert find("plain", 6).path == "plain[1]+2"
    assert find("pointer", 4).path == "pointer+4"


def test_unknown_names_have_no_field(tmp_path):
    find = fields_of(compile_c(PROGRAM, tmp_path / "fields", "-O0"))
    assert find("nothing", 0) is None


def test_members_of_a_base_class(tmp_path):
    program = compile_c(CPP, tmp_path / "derived", "-O0", language="c++")
    find = fields_of(program)
    last = int(subprocess.run([program], capture_output=True, text=True).stdout)
    assert find("derived", last).path == "derived.last"
    assert find("derived", 8).path == "derived.second"
    assert find("derived", 17).path == "derived.own[1]"
