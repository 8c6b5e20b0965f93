"""From a guest's system call to its answer: the table made into functions, and the way through.

A handler takes the thread and answers with the kernel's number, or None when it has set the
program's registers itself.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.process.syscalls.table import CALLS, NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

Handler = Callable[["Thread"], int | None]
_MASK = (1 << 64) - 1
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
# -EINTR, and the kernel's numbers for calls to be made again (ERESTARTSYS and its like).
_INTERRUPTED = frozenset({-errno.EINTR, *range(-516, -511)})

handlers: dict[int, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Makes a function the handler of these calls."""

    def register(handler: Handler) -> Handler:
        for name in names:
            handlers[NUMBERS[name]] = handler
        return handler

    return register


def arguments(thread: Thread) -> tuple[int, int, int, int, int, int]:
    """The six arguments, unsigned."""
    regs = thread.vcpu.regs
    return regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9


def system_call(thread: Thread) -> None:
    """Answer the call that the thread's registers describe."""
    regs = thread.vcpu.regs
    number = regs.rax
    handler = handlers.get(number)
    if handler is None:
        regs.rax = -errno.ENOSYS & _MASK
        return
    thread.call_number = number
    try:
        result = handler(thread)
    except OSError as error:  # only our own: bad pointers and what handlers look up on the host
        result = -(error.errno or errno.EFAULT)
    if thread.process.memory.has_writable_code:
        _forget_written(thread, number)
    if result in _INTERRUPTED and result is not None:
        result = thread.process.signals.after_call(thread, result)
    if result is not None:
        regs.rax = result & _MASK
    thread.call_number = -1


# How much a call may write at a pointer: the largest structures, and as much as arrays have.
_WRITTEN = {"o": 512, "u": 512, "a": 1 << 16}


def _written(signature: str) -> list[tuple[str, str | None, int]]:
    """What a call may write: (argument, the one with its size or None, the most otherwise)."""
    letters = list(enumerate(signature.lstrip("*")))
    sized = [(_ARGUMENTS[i], _ARGUMENTS[i + 1], 0) for i, letter in letters if letter == "b"]
    return sized + [(_ARGUMENTS[i], None, _WRITTEN[x]) for i, x in letters if x in _WRITTEN]


_OUTPUTS = {number: found for number, (_, row) in CALLS.items() if (found := _written(row))}


def _forget_written(thread: Thread, number: int) -> None:
    """Where the host may have stored something, there may be other code now."""
    memory, regs = thread.process.memory, thread.vcpu.regs
    for name, size, most in _OUTPUTS.get(number, ()):
        memory.was_written(getattr(regs, name), getattr(regs, size) if size else most)


def as_file(thread: Thread, number: int) -> int:
    """A descriptor, for the host: the VMM's own are closed to the program."""
    return _MASK if number & 0xFFFFFFFF in thread.process.own_files else number


def as_pointer(thread: Thread, linear: int) -> int:
    return thread.process.memory.pointer(linear)


def as_path(thread: Thread, linear: int) -> int:
    """A path, for the host: what it says about the program itself is made true."""
    return thread.process.paths.translate(thread, linear)


_CONVERTERS: dict[str, Callable[[Thread, int], int]] = {
    "f": as_file,
    "s": as_path,
    **dict.fromkeys("npbuoa", as_pointer),
}


def _pass_through(number: int, signature: str) -> Handler:
    """A call that the host answers, its arguments translated."""
    if not signature.strip("i"):
        return _plain(number, len(signature))
    steps = [
        (name, _CONVERTERS.get(letter)) for name, letter in zip(_ARGUMENTS, signature, strict=False)
    ]

    def call(thread: Thread) -> int:
        regs = thread.vcpu.regs
        values = []
        for name, convert in steps:
            value = getattr(regs, name)
            values.append(value if convert is None else convert(thread, value))
        return thread.calls(number, *values)

    return call


def _plain(number: int, count: int) -> Handler:
    names = _ARGUMENTS[:count]

    def call(thread: Thread) -> int:
        regs = thread.vcpu.regs
        return thread.calls(number, *[getattr(regs, name) for name in names])

    return call


def _refuse(reason: str) -> Handler:
    result = -getattr(errno, reason)
    return lambda thread: result


def _fill() -> None:
    for number, (_, signature) in CALLS.items():
        if signature.startswith("!"):
            handlers[number] = _refuse(signature[1:])
        elif not signature.startswith("*"):
            handlers[number] = _pass_through(number, signature)


_fill()
