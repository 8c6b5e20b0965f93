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
    assert calls(GETPID) == -native.ERESTARTSYS
    calls.words[0] = 0
    assert calls(GETPID) == os.getpid()


def test_the_window_reaches_from_the_check_to_the_call() -> None:
    start = native.WINDOW_START - native._WINDOW_START
    found = {i.ip: i.mnemonic for i in Decoder(64, native._CODE, ip=start)}
    places = sorted(found)
    window = [found[ip] for ip in places if native.WINDOW_START <= ip < native.WINDOW_END]
    assert window == [Mnemonic.CMP, Mnemonic.JNE, Mnemonic.SYSCALL]
    assert native.WINDOW_END in found
    assert found[native.INTERRUPTED] == Mnemonic.MOV
