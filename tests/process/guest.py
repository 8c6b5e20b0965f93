"""Runs one program as the guest, as a program of its own: `python -m tests.process.guest BACKEND
PROGRAM...`; the tests compare what comes out with what the program does natively."""

from __future__ import annotations

import os
import sys

from trapline.kvm import open_kvm
from trapline.process import ExecError, run_program


def main() -> int:
    backend, *arguments = sys.argv[1:]
    try:
        outcome = run_program(arguments, kvm=open_kvm(backend))
    except ExecError as error:
        print(error.sentence, error.hint, sep="\n", file=sys.stderr)
        return error.shell_status
    return outcome.shell_status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
