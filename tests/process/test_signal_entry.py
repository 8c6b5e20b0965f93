"""The machine code that the host's signals come in by."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from iced_x86 import Decoder, FlowControl, Mnemonic

from trapline.process import native, signal_entry
from trapline.process.native import HostCalls
from trapline.process.signal_entry import ALL, SignalBlock
from trapline.process.signal_state import Action, bit

SIGNAL = signal.SIGUSR2
FLAGS = 0x1C000004  # SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_RESTART
GETPID, READ, PIPE_SIZE = 39, 0, 16
QUEUE = 297  # rt_tgsigqueueinfo


@pytest.fixture
def entry() -> Iterator[None]:
    """The signal comes in by the handler, for as long as the test runs."""
    calls = HostCalls()
    before = signal_entry.get_host_action(calls, SIGNAL)
    for_us = Action(signal_entry.HANDLER, FLAGS, signal_entry.RESTORER, ALL)
    signal_entry.set_host_action(calls, SIGNAL, for_us.pack())
    yield
    signal_entry.set_host_action(calls, SIGNAL, before)


def in_thread(function: Callable[[SignalBlock], None]) -> None:
    """Run a test on a thread of its own, which has a block."""
    failures: list[BaseException] = []

    def run() -> None:
        block, calls = SignalBlock(), HostCalls()
        block.adopt(calls)
        try:
            function(block)
        except BaseException as error:
            failures.append(error)
        signal_entry.set_host_mask(calls, ALL)
        block.leave(calls)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _send(thread: int, code: int = -1, value: int = 0) -> None:
    siginfo = bytearray(128)
    ctypes.c_int32.from_buffer(siginfo, 0).value = SIGNAL
    ctypes.c_int32.from_buffer(siginfo, 8).value = code
    ctypes.c_int32.from_buffer(siginfo, 24).value = value
    buffer = (ctypes.c_char * 128).from_buffer(siginfo)
    assert HostCalls()(QUEUE, os.getpid(), thread, SIGNAL, ctypes.addressof(buffer)) == 0


def test_every_jump_lands_on_an_instruction() -> None:
    code = list(Decoder(64, signal_entry._CODE, ip=signal_entry.HANDLER))
    places = {instruction.ip for instruction in code}
    jumps = [
        instruction.near_branch_target
        for instruction in code
        if instruction.flow_control
        in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
    ]
    assert len(jumps) > 8
    assert set(jumps) <= places
    assert signal_entry.RESTORER in places
    assert all(instruction.mnemonic != Mnemonic.INVALID for instruction in code)
    assert code[-1].mnemonic == Mnemonic.SYSCALL


def test_a_signal_is_kept_and_no_other_comes(entry: None) -> None:
    def check(block: SignalBlock) -> None:
        places = [ctypes.c_uint8() for _ in range(3)]
        block.watch([ctypes.addressof(place) for place in places])
        _send(threading.get_native_id(), value=77)
        _send(threading.get_native_id(), value=78)
        assert block.calls.words[0] == 1
        assert [place.value for place in places] == [1, 1, 1]
        assert signal_entry.get_host_mask(HostCalls()) | bit(9) | bit(19) == ALL
        number, siginfo = block.take()
        assert number == SIGNAL
        assert siginfo[24] == 77
        assert block.signal == 0

    in_thread(check)


def test_a_call_is_turned_back_while_one_waits(entry: None) -> None:
    def check(block: SignalBlock) -> None:
        assert block.calls(GETPID) == os.getpid()
        _send(threading.get_native_id())
        assert block.calls(GETPID) == -native.ERESTARTNOINTR
        assert HostCalls()(GETPID) == os.getpid()  # the VMM's own go through
        block.take()
        block.calls.words[0] = 0
        assert block.calls(GETPID) == os.getpid()

    in_thread(check)


def test_a_call_that_waits_ends_with_the_kernels_number_for_a_restart(entry: None) -> None:
    """read() is restarted under SA_RESTART: RIP is back at SYSCALL, where the window still is."""
    ends = os.pipe()

    def check(block: SignalBlock) -> None:
        me = threading.get_native_id()
        timer = threading.Timer(0.1, lambda: _send(me))
        timer.start()
        buffer = ctypes.create_string_buffer(1)
        assert block.calls(READ, ends[0], ctypes.addressof(buffer), 1) == -native.ERESTARTSYS
        timer.join()
        assert block.take()[0] == SIGNAL

    try:
        in_thread(check)
    finally:
        for end in ends:
            os.close(end)


def test_an_interrupt_ends_a_call_and_leaves_no_signal(entry: None) -> None:
    def check(block: SignalBlock) -> None:
        mask = signal_entry.get_host_mask(HostCalls())
        _send(threading.get_native_id(), code=signal_entry.INTERRUPT_CODE)
        assert (block.signal, block.calls.words[0]) == (0, 1)
        assert signal_entry.get_host_mask(HostCalls()) == mask

    in_thread(check)


def test_a_thread_without_a_block_passes_it_on(entry: None) -> None:
    """To whichever thread of the process takes it; here the main one, which is told by Python."""
    calls = HostCalls()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])

    def foreign() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])
        _send(threading.get_native_id())

    thread = threading.Thread(target=foreign)
    thread.start()
    thread.join()
    try:
        assert SIGNAL in signal.sigpending()
        assert signal.sigwait([SIGNAL]) == SIGNAL
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert calls(GETPID) == os.getpid()
