"""Calls whose structures hold pointers: I/O vectors and messages.

A structure that only points above 4 GiB goes through as it is; else the host gets a copy with the
pointers translated, and what the call stores in it is put back.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING

from trapline.process.syscalls.dispatch import arguments, as_file, as_pointer, handles
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_IOV_MAX = 1024
_IOVEC_SIZE = 16
# struct msghdr: name, namelen, iov, iovlen, control, controllen, flags
_MESSAGE = struct.Struct("<QI4xQQQQi4x")
_MMESSAGE_SIZE = 64


class _Copies:
    """Host buffers that live as long as a call."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread
        self._kept: list[ctypes.Array[ctypes.c_char]] = []
        self._places: list[tuple[int, int]] = []

    def put(self, data: bytes) -> int:
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self._kept.append(buffer)
        return ctypes.addressof(buffer)

    def iovec(self, linear: int, count: int) -> int:
        """A translated copy of an array of iovec."""
        if count > _IOV_MAX:
            raise OSError(errno.EINVAL, "too many parts")
        data = self._thread.process.memory.read(linear, count * _IOVEC_SIZE) if count else b""
        words = list(struct.unpack(f"<{2 * count}Q", data))
        self._places += zip(words[::2], words[1::2], strict=True)
        pointer = self._thread.process.memory.pointer
        # A part without bytes may point anywhere.
        words[::2] = [
            pointer(place) or self._thread.process.memory.bad_pointer if size else 0
            for place, size in zip(words[::2], words[1::2], strict=True)
        ]
        return self.put(struct.pack(f"<{2 * count}Q", *words))

    def message(self, data: bytes) -> bytes:
        """A translated copy of a msghdr."""
        name, name_size, parts, count, control, control_size, flags = _MESSAGE.unpack(data)
        pointer = self._thread.process.memory.pointer
        self._places += [(name, name_size), (control, control_size)]
        return _MESSAGE.pack(
            pointer(name), name_size, self.iovec(parts, count), count,
            pointer(control), control_size, flags,
        )  # fmt: skip

    def were_written(self) -> None:
        """The call may have stored something wherever the parts point."""
        for linear, size in self._places:
            self._thread.process.memory.was_written(linear, size)


@handles("writev", "pwritev", "pwritev2", "vmsplice")
def vector_output(thread: Thread) -> int:
    return _vector_io(thread, _Copies(thread))


@handles("readv", "preadv", "preadv2")
def vector_input(thread: Thread) -> int:
    copies = _Copies(thread)
    result = _vector_io(thread, copies)
    copies.were_written()
    return result


def _vector_io(thread: Thread, copies: _Copies) -> int:
    fd, parts, count, a, b, c = arguments(thread)
    return thread.calls(
        thread.call_number, as_file(thread, fd), copies.iovec(parts, count), count, a, b, c
    )


@handles("process_vm_readv", "process_vm_writev")
def process_vm(thread: Thread) -> int:
    """The other side's addresses are its own: right for processes that are not displaced."""
    pid, local, local_count, remote, remote_count, flags = arguments(thread)
    copies = _Copies(thread)
    if pid == thread.process.pid:
        there = copies.iovec(remote, remote_count)
    else:
        there = as_pointer(thread, remote)
    result = thread.calls(
        thread.call_number, pid, copies.iovec(local, local_count), local_count, there,
        remote_count, flags,
    )  # fmt: skip
    copies.were_written()
    return result


@handles("process_madvise")
def process_madvise(thread: Thread) -> int:
    fd, parts, count, advice, flags, _ = arguments(thread)
    copies = _Copies(thread)
    result = thread.calls(
        thread.call_number, as_file(thread, fd), copies.iovec(parts, count), count, advice, flags
    )
    copies.were_written()
    return result


@handles("sendmsg")
def sendmsg(thread: Thread) -> int:
    fd, message, flags, *_ = arguments(thread)
    copies = _Copies(thread)
    data = copies.message(thread.process.memory.read(message, _MESSAGE.size))
    return thread.calls(NUMBERS["sendmsg"], as_file(thread, fd), copies.put(data), flags)


@handles("recvmsg")
def recvmsg(thread: Thread) -> int:
    fd, message, flags, *_ = arguments(thread)
    memory = thread.process.memory
    original = memory.read(message, _MESSAGE.size)
    copies = _Copies(thread)
    place = copies.put(copies.message(original))
    result = thread.calls(NUMBERS["recvmsg"], as_file(thread, fd), place, flags)
    copies.were_written()
    if result >= 0:
        memory.write(message, _received(original, place))
    return result


def _received(original: bytes, place: int) -> bytes:
    """The program's msghdr with the sizes and flags that the host stored in its copy."""
    name, _, parts, count, control, _, _ = _MESSAGE.unpack(original)
    _, name_size, _, _, _, control_size, flags = _MESSAGE.unpack(
        ctypes.string_at(place, _MESSAGE.size)
    )
    return _MESSAGE.pack(name, name_size, parts, count, control, control_size, flags)


@handles("sendmmsg", "recvmmsg")
def many_messages(thread: Thread) -> int:
    fd, messages, count, flags, timeout, _ = arguments(thread)
    count = min(count & 0xFFFFFFFF, _IOV_MAX)
    memory = thread.process.memory
    originals = memory.read(messages, count * _MMESSAGE_SIZE)
    copies = _Copies(thread)
    rows = [
        originals[place : place + _MMESSAGE_SIZE]
        for place in range(0, len(originals), _MMESSAGE_SIZE)
    ]
    data = b"".join(copies.message(row[: _MESSAGE.size]) + row[_MESSAGE.size :] for row in rows)
    place = copies.put(data)
    result = thread.calls(
        thread.call_number, as_file(thread, fd), place, count, flags, as_pointer(thread, timeout)
    )
    copies.were_written()
    for index in range(max(result, 0)):
        at = place + index * _MMESSAGE_SIZE
        length = ctypes.string_at(at + _MESSAGE.size, 8)
        row = _received(rows[index][: _MESSAGE.size], at) + length
        memory.write(messages + index * _MMESSAGE_SIZE, row)
    return result
