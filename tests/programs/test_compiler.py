"""gcc: the compiler itself as the guest, and the kinds of executables it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.programs.traced import Laboratory, deep, need

PROGRAM = r"""
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread int own = 5;
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
static void *body(void *given) { own += *(int *)given; return (void *)(long)own; }

int main(int count, char **words) {
    int numbers[500];
    unsigned state = 1;
    double sum = 0;
    long double wide = 1;
    for (int i = 0; i < 500; i++) {
        state = state * 1664525 + 1013904223;
        numbers[i] = state >> 8;
        sum += sqrt(numbers[i]) / (i + 1);
        wide *= 1 + 1.0L / (i + 2);
    }
    qsort(numbers, 500, sizeof(int), compare);
    char text[200];
    snprintf(text, sizeof text, "%d %d %.12f %.18Lg %a", numbers[0], numbers[499], sum, wide, sum);
    puts(text);
    pthread_t thread;
    void *answer;
    if (pthread_create(&thread, NULL, body, &count) || pthread_join(thread, &answer)) return 1;
    printf("%ld %d %s %zu\n", (long)answer, own, words[count - 1], strlen(text));
    return 40 + count;
}
"""
LINKED = {
    "dynamic": ["-O2"],
    "not relocatable": ["-O1", "-no-pie"],
    "static": ["-O0", "-static"],
    "static and relocatable": ["-O3", "-march=x86-64-v2", "-static-pie"],
    "x87": ["-O2", "-mfpmath=387", "-static"],
}


def _write_source(folder: Path) -> None:
    (folder / "program.c").write_text(PROGRAM)
    (folder / "other.c").write_text("int six(void) { return 6; }\n")
    (folder / "main.c").write_text("int six(void); int main(void) { return six() * 7; }\n")
    (folder / "Makefile").write_text(
        "main: main.o other.o\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\n"
        "words := $(shell echo one two)\n.PHONY: say\nsay:\n\t@echo $(words) $(words:o%=%)\n"
    )


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    need("gcc")
    return Laboratory(tmp_path, _write_source)


@pytest.mark.parametrize("kind", LINKED)
def test_every_kind_of_executable_runs(kind: str, laboratory: Laboratory, tmp_path: Path) -> None:
    _write_source(tmp_path)
    program = str(tmp_path / "program")
    command = ["gcc", *LINKED[kind], "program.c", "-o", program, "-lm", "-pthread"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    got, _ = laboratory.check(program, "last word")
    assert got.status == 42
    assert b"last word" in got.stdout


def test_what_it_links_runs(laboratory: Laboratory, tmp_path: Path) -> None:
    """Compile and link under Trapline; then trace what came out."""
    got, _ = laboratory.check("gcc", "-O1", "main.c", "other.c", "-o", "main")
    (tmp_path / "main").write_bytes(got.files["main"][1])
    (tmp_path / "main").chmod(0o755)
    assert laboratory.check(str(tmp_path / "main"))[0].status == 42


def test_make_runs_its_recipes(laboratory: Laboratory) -> None:
    need("make")
    got, _ = laboratory.check("make", "say")
    assert got.stdout == b"one two ne two\n"


@deep
def test_make_builds_a_program(laboratory: Laboratory) -> None:
    need("make")
    got, _ = laboratory.check("make", "main")
    assert got.files["main"][1].startswith(b"\x7fELF")


@deep
def test_a_program_with_headers(laboratory: Laboratory) -> None:
    got, _ = laboratory.check("gcc", "-g", "-O3", "program.c", "-o", "program", "-lm", "-pthread")
    assert got.files["program"][1].startswith(b"\x7fELF")
