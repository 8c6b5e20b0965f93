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
from trapline.trace.variables import Field, Step

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
    extent = range(*image.extent())
    functions = (symbols.function(at) for at in extent)
    main = next(one.value for one in functions if one is not None and one.name == "main")
    objects = {one.name: one for at in extent if (one := symbols.data(at)) is not None}

    def find(name: str, offset: int) -> Field | None:
        if name not in objects:
            return None
        found = source.global_field(main, objects[name], offset)
        return found[1] if found is not None else None

    return find


@pytest.mark.parametrize("dwarf", ["-gdwarf-2", "-gdwarf-4", "-gdwarf-5"])
def test_every_field_has_the_name_the_compiler_gave_it(tmp_path, dwarf):
    program = compile_c(PROGRAM, tmp_path / "fields", "-O0", dwarf)
    find = fields_of(program)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    lines = [line.split(" ", 2) for line in printed.splitlines()]
    assert len(lines) == 18
    for root, offset, expression in lines:
        assert find(root, int(offset)).path == expression
    assert find("one", int(lines[8][1])).steps == (Step("one.hits", "outer", int(lines[8][1])),)


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
    assert find("_ZL7derived", last).path == "derived.last"
    assert find("_ZL7derived", 8).path == "derived.second"
    assert find("_ZL7derived", 17).path == "derived.own[1]"


STATICS = r"""
#include <cstdint>
#include <cstdio>
struct Rec { char a[62]; uint32_t n; } __attribute__((packed));
static Rec own;
namespace N { static Rec inside; Rec outside; namespace { Rec hidden; } }
struct C { static Rec member; static int *twice() { static int counted[2]; return counted; } };
Rec C::member;
static thread_local Rec local;
int first() { static Rec once; return once.n++; }
int second() { { static Rec once; return once.n++; } }
int main() {
    C::twice()[1]++;
    return own.n++ + N::inside.n++ + N::outside.n++ + N::hidden.n++ + C::member.n++ + local.n++
        + first() + second();
}
"""


@pytest.mark.parametrize("dwarf", ["-gdwarf-2", "-gdwarf-4", "-gdwarf-5"])
def test_statics_are_found_by_their_address_wherever_they_stand(tmp_path, dwarf):
    """DWARF 5, 2.6.1.1.2 (DW_OP_addr) and 2.13.2: the symbol's name is the linker's own."""
    program = compile_c(STATICS, tmp_path / "statics", "-O0", dwarf, language="c++")
    find = fields_of(program)
    wanted = {
        "_ZL3own": "own.n", "_ZN1NL6insideE": "N::inside.n", "_ZN1N7outsideE": "N::outside.n",
        "_ZN1N12_GLOBAL__N_16hiddenE": "N::hidden.n", "_ZN1C6memberE": "C::member.n",
        "_ZZ5firstvE4once": "once.n", "_ZZ6secondvE4once": "once.n",
    }  # fmt: skip
    assert {name: getattr(find(name, 62), "path", None) for name in wanted} == wanted
    assert find("_ZZN1C5twiceEvE7counted", 4).path == "counted[1]"


def test_a_function_static_in_c_and_a_thread_local(tmp_path):
    source = """
    struct { char a[6]; int n; } __attribute__((packed)) static _Thread_local local;
    int main(void) { static struct { char a[6]; int n; } __attribute__((packed)) st;
                     return st.n++ + local.n++; }
    """
    image = Image.open(str(compile_c(source, tmp_path / "inner", "-O0")))
    assert image is not None
    symbols, found = Symbols(image), Source(image)
    at = next(
        a for a in range(*image.extent()) if getattr(symbols.data(a), "name", "")[:3] == "st."
    )
    main = next(
        a for a in range(*image.extent()) if getattr(symbols.function(a), "name", "") == "main"
    )
    name, field = found.global_field(main, symbols.data(at), 6)
    assert (name, field.path) == ("st", "st.n")
    name, field = found.global_field(main, symbols.thread_local(0), 6, True)
    assert (name, field.path) == ("local", "local.n")
