"""Children of a guest program: the same as natively, and traced like it."""

from __future__ import annotations

import shutil

import pytest

from tests.process.c_programs import compiled
from tests.process.conftest import Run


@pytest.mark.parametrize("name", ["children", "spawning"])
def test_children_share_with_their_parents_what_they_do_natively(
    name: str, guest: Run, native: Run
) -> None:
    program = compiled(name)
    expected, got = native(program), guest(program)
    assert got.stdout.decode() == expected.stdout.decode()
    assert (got.returncode, got.stderr) == (expected.returncode, expected.stderr)


PROGRAMS = {
    "pipeline": ["bash", "-c", "seq 9 | while read n; do echo $((n * n)); done | tail -1"],
    "substitution": ["bash", "-c", "echo $(echo a; echo b | tr b c) <(:) >/dev/null; echo $?"],
    "background": ["bash", "-c", "for i in 3 4; do (exit $i) & wait $! || echo $?; done"],
    "deep": ["sh", "-c", "(((echo deep; exit 5); exit $((1 + $?))); exit $((1 + $?)))"],
    "subprocess": [
        "/usr/bin/python3",
        "-S",
        "-c",
        "import subprocess, os\n"
        "print(subprocess.run(['cat'], input=b'through', capture_output=True).stdout)\n"
        "print(subprocess.call(['sh', '-c', 'exit 6'], preexec_fn=lambda: None))\n"
        "try: subprocess.run(['/nonexistent/program'])\n"
        "except FileNotFoundError as error: print(error.filename)\n"
        "print(os.waitstatus_to_exitcode(os.system('kill -9 $$')))",
    ],
    "multiprocessing": [
        "/usr/bin/python3",
        "-c",
        "import multiprocessing as mp\n"
        "with mp.get_context('fork').Pool(2) as pool: print(pool.map(abs, range(-4, 4)))",
    ],
    "perl": [
        "perl",
        "-e",
        "pipe(R, W); if (!fork) { close R; print W qq(from $_\\n) for 1 .. 3; exit 7 } close W; "
        "print <R>; wait; print $? >> 8, qq(\\n); print `echo backtick`",
    ],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_with_children_does_what_it_does_natively(
    name: str, guest: Run, native: Run
) -> None:
    command = PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)
