"""A Linux program as the guest: names only."""

from trapline.process.areas import Area, MappedFile
from trapline.process.elf import ExecError
from trapline.process.events import Outcome, ProgramObserver
from trapline.process.policy import Policy, parse_policy
from trapline.process.process import Process
from trapline.process.run import run_program
from trapline.process.shared_rate import SharedRate
from trapline.process.thread import Thread

__all__ = [
    "Area",
    "ExecError",
    "MappedFile",
    "Outcome",
    "Policy",
    "Process",
    "ProgramObserver",
    "SharedRate",
    "Thread",
    "parse_policy",
    "run_program",
]
