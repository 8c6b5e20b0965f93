"""Call stacks, against gdb's own, at real stops of real programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trace.stopped import Stopped, compile_c, gdb_stops
from trapline.trace.cfi import CallFrames
from trapline.trace.image import Image
from trapline.trace.symbols import Symbols
from trapline.trace.unwind import Code, Frame, unwind

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("gdb")), reason="needs gcc and gdb"
)

PROGRAM = r"""
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
volatile int hits;
__attribute__((noinline)) void stop_here(void) { hits++; }
static inline __attribute__((always_inline)) void inlined(int n) { hits += n; stop_here(); hits++; }
int compare(const void *a, const void *b) { inlined(3); return *(int *)a - *(int *)b; }
void on_signal(int number) { inlined(number); hits++; }
void *thread(void *unused) { inlined(1); hits++; return unused; }
__attribute__((noinline)) int deep(int n) {
    char buffer[64 + n]; /* a stack of changing size: rbp holds the frame */
    memset(buffer, n, sizeof buffer);
    if (n) { int r = deep(n - 1); hits += buffer[3]; return r + buffer[n]; }
    stop_here(); hits++; return buffer[0];
}
__attribute__((noinline)) int realigned(int n) {
    int many[16] __attribute__((aligned(64)));
    for (int i = 0; i < 16; i++) many[i] = i * n;
    inlined(many[n]); return many[3] + hits;
}
int main(int count, char **arguments) {
    int numbers[3] = {3, 1, 2};
    switch (arguments[1][0]) {
    case 'q': qsort(numbers, 3, 4, compare); break;
    case 's': signal(SIGUSR1, on_signal); raise(SIGUSR1); break;
    case 't': { pthread_t t; pthread_create(&t, 0, thread, 0); pthread_join(t, 0); break; }
    case 'd': hits += deep(5); break;
    case 'r': hits += realigned(count); break;
    }
    printf("%d\n", hits);
    return 0;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unwind")


def stack(stopped: Stopped) -> list[Frame]:
    images: dict[str, tuple[Image, CallFrames]] = {}

    def find(linear: int) -> Code | None:
        region = stopped.region(linear)
        if region is None or not region.is_executable:
            return None
        if region.path is None:
            return Code(None, 0)
        if region.path not in images:
            image = Image.open(region.path)
            assert image is not None
            images[region.path] = image, CallFrames(image)
        image, frames = images[region.path]
        bias = image.bias(region.start, region.offset, True)
        assert bias is not None
        return Code(frames, bias)

    return unwind(stopped.registers(), stopped.read, find)


def by_gdb(stopped: Stopped) -> list[int]:
    return [f["pc"] for f in stopped.frames if not f["inlined"] and not f["vanished"]]


OPTIONS = [("-O0",), ("-O2",), ("-O3", "-fomit-frame-pointer"), ("-O2", "-static")]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("case", ["q", "s", "t", "d", "r"])
def test_the_stack_is_gdbs_at_every_instruction(folder, options, case):
    program = compile_c(PROGRAM, folder / f"p{'_'.join(options)}", *options)
    stops = gdb_stops(program, "stop_here", folder / "stops", arguments=case, steps=60)
    assert len(stops) > 40
    for stopped in stops:
        assert [frame.rip for frame in stack(stopped)] == by_gdb(stopped)


def test_the_stack_is_gdbs_inside_lazy_plt_stubs_and_the_resolver(folder):
    program = compile_c(PROGRAM, folder / "lazy", "-O2", "-Wl,-z,lazy", "-fcf-protection=none")
    stops = gdb_stops(program, "*'printf@plt'", folder / "stops", arguments="x", steps=40)
    assert len({frame["pc"] for stopped in stops for frame in stopped.frames[:1]}) > 30
    for stopped in stops:
        assert [frame.rip for frame in stack(stopped)] == by_gdb(stopped)


def test_debug_frame_serves_where_there_is_no_eh_frame(folder):
    options = ("-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    program = compile_c(PROGRAM, folder / "debug_frame", *options)
    image = Image.open(str(program))
    assert image is not None
    stops = gdb_stops(program, "stop_here", folder / "stops", arguments="d", steps=20)
    for stopped in stops:
        assert [frame.rip for frame in stack(stopped)][:7] == by_gdb(stopped)[:7]


def test_frame_pointers_serve_where_there_are_no_tables(folder):
    options = ("-O0", "-g0", "-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer")
    program = compile_c(PROGRAM, folder / "pointers", *options)
    (stopped,) = gdb_stops(program, "stop_here", folder / "stops", arguments="d")
    found = stack(stopped)
    assert [frame.rip for frame in found] == by_gdb(stopped)
    assert [frame.how for frame in found][:7] == ["frame pointer"] * 7


def test_an_assembly_leaf_without_tables_still_has_its_caller(folder):
    source = """
    .globl bump, main
    bump: lock incl (%rdi)
    stop_here: ret
    .cfi_startproc
    main: sub $24, %rsp
    .cfi_def_cfa_offset 32
    lea 8(%rsp), %rdi
    call bump
    add $24, %rsp
    .cfi_def_cfa_offset 8
    xor %eax, %eax
    ret
    .cfi_endproc
    """
    program = compile_c(source, folder / "leaf", language="assembler")
    (stopped,) = gdb_stops(program, "stop_here", folder / "stops")
    found = stack(stopped)
    assert [frame.how for frame in found[:2]] == ["leaf", "cfi"]
    assert rips(found) == by_gdb(stopped)


def test_a_signal_frame_without_tables_is_known_by_its_code(folder):
    source = r"""
    __attribute__((naked)) void restorer(void) { __asm__("mov $15, %rax; syscall"); }
    struct action { void (*handler)(int); unsigned long flags; void (*restorer)(void); long mask; };
    long system(long number, long a, long b, long c, long d) {
        long result; register long r10 __asm__("r10") = d;
        __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                         : "rcx", "r11", "memory");
        return result;
    }
    void stop_here(int n) { __asm__ volatile("nop" :: "r"(n)); }
    void interrupted(void) { system(62, system(39, 0, 0, 0, 0), 10, 0, 0); }
    void _start(void) {
        struct action action = {stop_here, 0x04000000, restorer, 0};
        system(13, 10, (long)&action, 0, 8);
        interrupted();
        system(60, 0, 0, 0, 0);
    }
    """
    options = ("-O0", "-nostdlib", "-static", "-fno-asynchronous-unwind-tables", "-Wno-all")
    program = compile_c(source, folder / "bare", *options)
    (stopped,) = gdb_stops(program, "stop_here", folder / "stops")
    found = stack(stopped)
    image = Image.open(str(program))
    assert image is not None
    names = [symbol and symbol.name for symbol in map(Symbols(image).function, rips(found))]
    assert names == ["stop_here", "restorer", "system", "interrupted", "_start"]
    assert [frame.how for frame in found[:3]] == ["cfi", "signal", "cfi"]


def rips(frames: list[Frame]) -> list[int]:
    return [frame.rip for frame in frames]


def test_a_stack_that_cannot_be_read_gives_the_innermost_frame():
    found = unwind({"rip": 0x1000, "rsp": 0x10, "rbp": 0x10}, lambda at, size: b"", lambda at: None)
    assert found == [Frame(0x1000, "end", False, None, 0x10, 0x10)]
