"""The machine code that makes host system calls."""

from __future__ import annotations

import errno
import os

from iced_x86 import Decoder, Mnemonic

from trapline.process import native
from trapline.process.native import HostCalls

GETPID, CLOSE = 39, 3


def test_results_are_the_kernels() -> None:
    calls = HostCalls()
    assert calls(GETPID) == os.getpid()
    assert calls(CLOSE, 0xFFFF) == -errno.EBADF


def test_all_six_arguments_arrive() -> None:
    """mmap takes six, and each shows in where and whether it maps."""
    calls = HostCalls()
    place = calls(9, 0, 8192, 3, 0x22, (1 << 64) - 1, 0)
    assert place > 0
    assert calls(9, place, 4096, 3, 0x32, (1 << 64) - 1, 0) == place
    assert calls(9, 0, 4096, 1, 2, 0xFFFF, 0) == -errno.EBADF
    assert calls(9, 0, 4096, 1, 0x22, 0, 1) == -errno.EINVAL
    assert calls(11, place, 8192) == 0


def test_a_pending_word_turns_the_call_back() -> None:
    calls = HostCalls()
    calls.words[0] = 1
    assert calls(GETPID) == -native.ERESTARTNOINTR
    calls.words[0] = 0
    assert calls(GETPID) == os.getpid()


def test_the_window_reaches_from_the_check_to_the_call() -> None:
    start = native.WINDOW - native._WINDOW
    code = {i.ip: i for i in Decoder(64, native._CODE, ip=start)}
    end = native.WINDOW + native.WINDOW_SIZE
    window = [code[ip].mnemonic for ip in sorted(code) if native.WINDOW <= ip <= end]
    assert window == [Mnemonic.CMP, Mnemonic.JNE, Mnemonic.SYSCALL]
    assert code[end].mnemonic == Mnemonic.SYSCALL


def test_the_ways_out_of_the_window_answer_with_the_kernels_numbers() -> None:
    code = {i.ip: i for i in Decoder(64, native._CODE, ip=native.WINDOW - native._WINDOW)}
    for place, number in (
        (native.NOT_MADE, native.ERESTARTNOINTR),
        (native.AGAIN, native.ERESTARTSYS),
    ):
        assert code[place].mnemonic == Mnemonic.MOV
        assert code[place].immediate32to64 == -number
