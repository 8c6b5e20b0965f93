"""Run as a guest and natively: the mmap family, told in lines that must be the same.

Prints results by kind, never addresses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NR = {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26,
      "mincore": 27, "madvise": 28, "shmat": 30, "shmget": 29, "shmdt": 67, "shmctl": 31,
      "writev": 20, "write": 1, "read": 0, "mlock": 149, "munlock": 150,
      "process_vm_readv": 310}  # fmt: skip
R, W, X = 1, 2, 4
PRIVATE, SHARED, FIXED, ANON, LOW32, NOREPLACE = 2, 1, 0x10, 0x20, 0x40, 0x100000
PAGE = 4096


def call(name: str, *arguments: int) -> int:
    words = [ctypes.c_long(argument) for argument in arguments]
    result = int(libc.syscall(ctypes.c_long(NR[name]), *words))
    return -ctypes.get_errno() if result == -1 else result


def show(what: str, result: int) -> int:
    text = errno.errorcode.get(-result, str(result)) if result < 0 else "ok"
    print(what, text)
    return result


def store(place: int, text: bytes) -> None:
    ctypes.memmove(place, text, len(text))


def load(place: int, size: int) -> bytes:
    return ctypes.string_at(place, size)


def anonymous() -> None:
    place = show("map", call("mmap", 0, 8 * PAGE, R | W, PRIVATE | ANON, -1, 0))
    store(place, b"first")
    store(place + 7 * PAGE, b"last")
    show("unmap the middle", call("munmap", place + 2 * PAGE, 3 * PAGE))
    print(load(place, 5), load(place + 7 * PAGE, 4))
    show(
        "into the hole",
        call("mmap", place + 2 * PAGE, PAGE, R | W, PRIVATE | ANON | NOREPLACE, -1, 0),
    )
    show("over something", call("mmap", place, PAGE, R | W, PRIVATE | ANON | NOREPLACE, -1, 0))
    show("fixed over", call("mmap", place, PAGE, R | W, PRIVATE | ANON | FIXED, -1, 0))
    print(load(place, 5))
    show("nothing", call("mmap", 0, 0, R, PRIVATE | ANON, -1, 0))
    show("crooked", call("mmap", 123, PAGE, R, PRIVATE | ANON | FIXED, -1, 0))
    show("too high", call("mmap", 1 << 47, PAGE, R, PRIVATE | ANON | FIXED, -1, 0))
    show("too large", call("mmap", 0, 1 << 48, R, PRIVATE | ANON, -1, 0))
    show("no file", call("mmap", 0, PAGE, R, PRIVATE, 99, 0))
    show("unmap all", call("munmap", place, 8 * PAGE))
    show("unmap again", call("munmap", place, 8 * PAGE))
    low = show("low", call("mmap", 0, 4 * PAGE, R | W, PRIVATE | ANON | LOW32, -1, 0))
    print(low < 1 << 31)
    store(low, b"down here")
    print(load(low, 9))
    show("write from there", call("write", 1, low, 4))
    print(flush=True)
    show("low unmap", call("munmap", low, 4 * PAGE))
    show("read into what is gone", call("read", 0, low, 4))


def ranges() -> None:
    """Calls on pages that must be mapped, where a VMM may have mapped something of its own."""
    for kind in (LOW32, 0):
        place = call("mmap", 0, 4 * PAGE, R | W, PRIVATE | ANON | kind, -1, 0)
        store(place, b"here")
        vector = ctypes.create_string_buffer(8)
        there = ctypes.addressof(vector)
        for _ in range(2):
            show("resident", call("mincore", place, 4 * PAGE, there))
            show("synchronized", call("msync", place, 4 * PAGE, 4))
            show("locked", call("mlock", place + 5, 3 * PAGE))
            show("unlocked", call("munlock", place, 4 * PAGE))
            show("nothing at all", call("msync", place, 0, 4))
            show("crooked", call("mincore", place + 5, PAGE, there))
            show("crooked, too", call("msync", place + 5, PAGE, 4))
            show("both ways", call("msync", place, PAGE, 5))
            show("beyond the end of all", call("mlock", place, 1 << 47))
            show("nowhere to put it", call("mincore", place + 3 * PAGE, PAGE, 0))
            call("munmap", place + PAGE, PAGE)
        call("munmap", place, 4 * PAGE)


def protection() -> None:
    place = call("mmap", 0, 4 * PAGE, R | W, PRIVATE | ANON, -1, 0)
    store(place, b"x" * (4 * PAGE))
    show("read only", call("mprotect", place + PAGE, PAGE, R))
    print(load(place + PAGE, 1))
    pipe = os.pipe()
    os.write(pipe[1], b"abcdef")
    show("host writes there", call("read", pipe[0], place + PAGE, 3))
    show("none", call("mprotect", place + PAGE, PAGE, 0))
    show("host reads there", call("write", pipe[1], place + PAGE, 3))
    show("back", call("mprotect", place, 4 * PAGE, R | W))
    store(place + PAGE, b"y")
    print(load(place + PAGE, 2), load(place, 1))
    show("hole", call("munmap", place + 2 * PAGE, PAGE))
    show("across a hole", call("mprotect", place, 4 * PAGE, R))
    show("crooked", call("mprotect", place + 1, PAGE, R))
    show("code", call("mprotect", place, PAGE, R | W))
    store(place, b"\xb8\x2a\0\0\0\xc3")  # mov eax, 42; ret
    show("executable", call("mprotect", place, PAGE, R | X))
    print(ctypes.CFUNCTYPE(ctypes.c_int)(place)())
    call("mprotect", place, PAGE, R | W)
    store(place, b"\xb8\x2b\0\0\0\xc3")
    call("mprotect", place, PAGE, R | X)
    print(ctypes.CFUNCTYPE(ctypes.c_int)(place)())
    code = call("mmap", place, PAGE, R | W | X, PRIVATE | ANON | FIXED, -1, 0)
    store(code, b"\xb8\x2c\0\0\0\xc3")
    print(ctypes.CFUNCTYPE(ctypes.c_int)(code)())
    store(code, b"\xb8\x2d\0\0\0\xc3")
    print(ctypes.CFUNCTYPE(ctypes.c_int)(code)())


def moving() -> None:
    place = call("mmap", 0, 64 * PAGE, R | W, PRIVATE | ANON, -1, 0)
    store(place, b"begin")
    store(place + 63 * PAGE, b"end")
    show("shrink", call("mremap", place, 64 * PAGE, 2 * PAGE, 0, 0))
    show("write to what went", call("read", 0, place + 3 * PAGE, 4))
    moved = show("grow", call("mremap", place, 2 * PAGE, 512 * PAGE, 1, 0))
    print(load(moved, 5), load(moved + 511 * PAGE, 1))
    store(moved + 511 * PAGE, b"far")
    target = call("mmap", 0, 600 * PAGE, 0, PRIVATE | ANON, -1, 0)
    again = call("mremap", moved, 512 * PAGE, 600 * PAGE, 3, target)
    print(again == target, load(again, 5), load(again + 511 * PAGE, 3))
    show("not there any more", call("mremap", moved, PAGE, 2 * PAGE, 1, 0))
    show("no such flag", call("mremap", again, PAGE, PAGE, 64, 0))
    show("fixed without may move", call("mremap", again, PAGE, PAGE, 2, 0))
    low = call("mmap", 0, 2 * PAGE, R | W, PRIVATE | ANON | LOW32, -1, 0)
    store(low, b"low")
    grown = show("low grows", call("mremap", low, 2 * PAGE, 4 * PAGE, 1, 0))
    print(load(grown, 3), load(grown + 3 * PAGE, 1))
    up = call("mremap", grown, 4 * PAGE, 4 * PAGE, 3, target)
    print(up == target, load(up, 3))


def files() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 1000)
        file.flush()
        fd = file.fileno()
        private = call("mmap", 0, 4 * PAGE, R | W, PRIVATE, fd, 0)
        shared = call("mmap", 0, 3 * PAGE, R | W, SHARED, fd, 0)
        store(private, b"PRIVATE")
        store(shared + PAGE, b"SHARED")
        print(load(private, 10), load(shared, 10), load(private + PAGE, 8))
        file.seek(PAGE)
        print(file.read(10))
        show("synced", call("msync", shared, 3 * PAGE, 4))
        second = call("mmap", 0, PAGE, R, SHARED, fd, PAGE)
        print(load(second, 8))
        show("crooked offset", call("mmap", 0, PAGE, R, SHARED, fd, 100))
        print(load(private + 2 * PAGE, 10), load(private + 2 * PAGE + 3000, 3))
        show("dropped", call("madvise", private, PAGE, 4))
        print(load(private, 10))
        os.ftruncate(fd, 5 * PAGE)
        print(load(private + 3 * PAGE, 2))
        show(
            "past the end",
            call("write", 1, call("mmap", 0, 8 * PAGE, R, SHARED, fd, 0) + 6 * PAGE, 4),
        )


def advice() -> None:
    place = call("mmap", 0, 4 * PAGE, R | W, PRIVATE | ANON, -1, 0)
    store(place, b"gone soon")
    show("dontneed", call("madvise", place, 4 * PAGE, 4))
    print(load(place, 4))
    show("no such advice", call("madvise", place, PAGE, 9999))
    call("munmap", place + PAGE, PAGE)
    show("with a hole", call("madvise", place, 4 * PAGE, 4))


def the_break() -> None:
    start = call("brk", 0)
    print(call("brk", start + 10 * PAGE) - start)
    store(start + 9 * PAGE, b"heap")
    print(load(start + 9 * PAGE, 4))
    print(call("brk", start) - start)
    print(call("brk", start + 10 * PAGE) - start, load(start + 9 * PAGE, 4))
    print(call("brk", 0x1000) - start, call("brk", start) - start)


def shared_memory() -> None:
    segment = call("shmget", 0, 3 * PAGE, 0o1600)
    one, two = call("shmat", segment, 0, 0), call("shmat", segment, 0, 0)
    call("shmctl", segment, 0, 0)
    store(one + PAGE, b"seen twice")
    print(load(two + PAGE, 10))
    show("detach", call("shmdt", one))
    show("again", call("shmdt", one))
    print(load(two + PAGE, 10))
    show("the other", call("shmdt", two))


def pointers() -> None:
    show("write from null", call("write", 1, 0, 1))
    show("write from nowhere", call("write", 1, 0x123456789000, 1))
    show("write from the kernel's half", call("write", 1, -4096, 1))
    parts = (ctypes.c_uint64 * 4)(0x1000, 5, 0, 0)
    show("a part from nowhere", call("writev", 1, ctypes.addressof(parts), 1))
    show("no parts", call("writev", 1, ctypes.addressof(parts), 0))
    show("too many", call("writev", 1, ctypes.addressof(parts), 5000))
    text = ctypes.create_string_buffer(b"by parts\n")
    parts[0], parts[1] = ctypes.addressof(text), 9
    sys.stdout.flush()
    show("parts", call("writev", 1, ctypes.addressof(parts), 2))


STEPS = (
    anonymous, ranges, protection, moving, files, advice, the_break, shared_memory, pointers,
)  # fmt: skip
for step in STEPS:
    print("--", step.__name__)
    step()
sys.stdout.flush()
