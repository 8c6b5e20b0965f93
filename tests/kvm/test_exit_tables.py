"""Every exit that the hypervisor handles is one whose fields the processor's own tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from trapline.arch.svm import ExitCode
from trapline.arch.vmx import ExitReason
from trapline.kvm.svm.exit_table import HANDLERS as SVM
from trapline.kvm.vmx.exit_table import HANDLERS as VMX

PROCESSOR = Path(__file__).resolve().parents[1] / "processor"
# Tested by number, not by name.
VMX_BY_NUMBER = {
    ExitReason.GETSEC,  # without SMX it is undefined, and never exits
    ExitReason.BUS_LOCK,  # 0x0400004A, its flag included
}
SVM_BY_NUMBER = {
    *range(ExitCode.READ_DR0, ExitCode.READ_DR7 + 1),  # READ_DR0 plus the register
    *range(ExitCode.WRITE_DR0, ExitCode.WRITE_DR7 + 1),
    *(ExitCode.READ_CR0, ExitCode.WRITE_CR0, ExitCode.WRITE_CR4, ExitCode.WRITE_CR8),
    *range(0x40, 0x60),  # exceptions
}


def text_of(folder: str) -> str:
    return "".join(path.read_text() for path in sorted((PROCESSOR / folder).glob("test_*.py")))


@pytest.mark.parametrize(
    ("folder", "names", "by_number"),
    [
        ("vmx", {ExitReason(one) for one in VMX}, VMX_BY_NUMBER),
        ("svm", {ExitCode(one) for one in SVM if one in set(ExitCode)}, SVM_BY_NUMBER),
    ],
)
def test_each_exit_has_a_test_of_its_fields(
    folder: str, names: set[ExitReason | ExitCode], by_number: set[int]
) -> None:
    tests = text_of(folder)
    untested = {
        one.name
        for one in names
        if one not in by_number and f".{one.name}" not in tests and f'"{one.name}"' not in tests
    }
    assert untested == set()
