"""Runs a program as the guest, from its name to its exit status."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from trapline.kvm import Kvm
from trapline.process.events import Outcome, ProgramObserver
from trapline.process.lifecycle import run_leader, start_program
from trapline.process.load import find_program, plan
from trapline.process.policy import Policy
from trapline.process.process import Process


def run_program(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    kvm: Kvm,
    observer: ProgramObserver | None = None,
    policy: Policy | None = None,
    follow: bool = True,
) -> Outcome:
    """Run `arguments[0]`, looked up as a shell does; ExecError if it cannot be started.

    Returns when the program has ended.  It shares descriptors, folder and rights with the caller.
    In children that the program forks, this does not return.
    """
    environment = os.environ if environment is None else environment
    path = find_program(arguments[0], environment.get("PATH"))
    planned = plan(
        os.fsencode(path),
        [os.fsencode(text) for text in arguments],
        [os.fsencode(f"{name}={text}") for name, text in environment.items()],
    )
    process = Process(kvm, observer=observer, policy=policy, follow=follow)
    return run_leader(process, start_program(process, planned))
