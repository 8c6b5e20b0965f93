"""System calls of the host: a few bytes of machine code that ctypes calls without the GIL.

Knows the calling convention and the window in which a signal can still turn a call back; what the
calls mean is not known here.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

# Results a call of ours can have besides those that programs see, with the kernel's own internal
# numbers: it gave way to a signal and may be made again, or a signal came before it was made.
ERESTARTSYS = 512
ERESTARTNOINTR = 513

# The block a call is made from; the pending word is set by the signal handler.
BLOCK = struct.Struct("<8Q")
BLOCK_SIZE = 64

# rdi = block: {pending, number, six arguments}
_CODE = bytes.fromhex(
    "53"  # push rbx
    "4889fb"  # mov rbx, rdi
    "488b4308"  # mov rax, [rbx+8]
    "488b7b10"  # mov rdi, [rbx+16]
    "488b7318"  # mov rsi, [rbx+24]
    "488b5320"  # mov rdx, [rbx+32]
    "4c8b5328"  # mov r10, [rbx+40]
    "4c8b4330"  # mov r8, [rbx+48]
    "4c8b4b38"  # mov r9, [rbx+56]
    # window: from here to the end of SYSCALL nothing has happened yet
    "833b00"  # cmp dword [rbx], 0
    "7504"  # jne not_made
    "0f05"  # syscall
    "5b"  # pop rbx
    "c3"  # ret
    # not_made:
    "48c7c0fffdffff"  # mov rax, -513
    "5b"  # pop rbx
    "c3"  # ret
    # again:
    "48c7c000feffff"  # mov rax, -512
    "5b"  # pop rbx
    "c3"  # ret
)
_WINDOW = 32
WINDOW_SIZE = 5  # up to SYSCALL itself
_NOT_MADE = 41
_AGAIN = 50

MASK64 = (1 << 64) - 1

# rdi = address (aligned), esi = expected, edx = desired; eax = what was there
_EXCHANGE_CODE = bytes.fromhex("89f0 f00fb117 c3")  # mov eax, esi; lock cmpxchg [rdi], edx; ret
_EXCHANGE = 64


def _place_code() -> mmap.mmap:
    page = mmap.mmap(
        -1,
        mmap.PAGESIZE,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
    )
    page[: len(_CODE)] = _CODE
    page[_EXCHANGE : _EXCHANGE + len(_EXCHANGE_CODE)] = _EXCHANGE_CODE
    return page


_page = _place_code()
_base = ctypes.addressof(ctypes.c_char.from_buffer(_page))
# A signal handler that finds RIP in the window sends it to NOT_MADE: the call answers
# -ERESTARTNOINTR and has not been made (QEMU's safe_syscall does the same).  At SYSCALL itself it
# may be the kernel that has turned RIP back, for a call that it would restart: to AGAIN.
WINDOW = _base + _WINDOW
NOT_MADE = _base + _NOT_MADE
AGAIN = _base + _AGAIN
_function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(_base)
# The same with the interpreter's lock held, as a fork needs it.
_function_with_lock = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(_base)
_exchange = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)(
    _base + _EXCHANGE
)


class HostCalls:
    """One thread's way to the host kernel.  Results are the kernel's: -errno for errors."""

    __slots__ = ("_host", "_keep", "words")

    def __init__(self, block: int | None = None) -> None:
        self._keep = (ctypes.c_char * (2 * BLOCK_SIZE))()
        if block is None:
            block = ctypes.addressof(self._keep) + BLOCK_SIZE - 1 & -BLOCK_SIZE
        self._host = block
        self.words = memoryview((ctypes.c_uint64 * 8).from_address(block)).cast("B").cast("Q")

    def __call__(
        self, number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0
    ) -> int:
        words = self.words
        words[1] = number
        words[2] = a
        words[3] = b
        words[4] = c
        words[5] = d
        words[6] = e
        words[7] = f
        return int(_function(self._host))

    def with_lock(self, number: int, *arguments: int) -> int:
        """A call that returns in two processes, with no other Python thread in between."""
        words = self.words
        for index in range(6):
            words[2 + index] = arguments[index] if index < len(arguments) else 0
        words[1] = number
        return int(_function_with_lock(self._host))


def exchange(host: int, expected: int, desired: int) -> int:
    """Atomically put `desired` where `expected` stands; what stood there.  Four bytes, aligned."""
    return int(_exchange(host, expected, desired))


def view(host: int, size: int) -> memoryview:
    """The VMM's own memory at an address it knows to be mapped for as long as the view is used."""
    return memoryview((ctypes.c_ubyte * size).from_address(host)).cast("B")
