"""The VMM's own address space as memory: reading, writing and atomically changing host bytes.

Only addresses that came out of the page tables, or of a bus, may be used here: nothing checks
them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from trapline.processor.fault import HostLimit

# Indexing these views costs a quarter of what a ctypes object for each access costs.
_ALL = memoryview((ctypes.c_uint8 * (1 << 47)).from_address(0))
BYTES = _ALL.cast("B")
QUADS = BYTES.cast("Q")
DOUBLES = BYTES.cast("I")
HOST_LIMIT = 1 << 47

from_bytes = int.from_bytes


def load(host: int, size: int) -> int:
    """`size` bytes at `host`, little endian; one host access where it is aligned."""
    if size == 8:
        if not host & 7:
            return QUADS[host >> 3]
    elif size == 4 and not host & 3:
        return DOUBLES[host >> 2]
    return from_bytes(BYTES[host : host + size], "little")


def store(host: int, size: int, word: int) -> None:
    """Write `size` bytes at `host`; one host access where it is aligned."""
    if size == 8:
        if not host & 7:
            QUADS[host >> 3] = word
            return
    elif size == 4 and not host & 3:
        DOUBLES[host >> 2] = word
        return
    BYTES[host : host + size] = word.to_bytes(size, "little")


# Other processors run native code without the interpreter's lock, so Python needs a host
# instruction that is atomic: LOCK CMPXCHG, called through ctypes.  RDI: address, RSI: expected,
# RDX: desired; RAX: what was there.
_COMPARE_EXCHANGE = {
    1: "89f0 f00fb017 0fb6c0 c3",  # mov eax,esi; lock cmpxchg [rdi],dl; movzx eax,al; ret
    2: "89f0 66f00fb117 0fb7c0 c3",
    4: "89f0 f00fb117 c3",
    8: "4889f0 f0480fb117 c3",
    # push rbx; rdx:rax = [rsi], rcx:rbx = [rdx]; lock cmpxchg16b [rdi]; [rsi] = rdx:rax; pop; ret
    16: "53 488b1a 488b4a08 488b06 488b5608 f0480fc70f 488906 48895608 5b c3",
}

_READ_TSC = "0f31 48c1e220 4809d0 c3"  # rdtsc; shl rdx,32; or rax,rdx; ret


def _assemble() -> dict[int, Callable[[int, int, int], int]]:
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    _keep.append(page)
    kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    functions: dict[int, Callable[[int, int, int], int]] = {}
    for size, text in (_COMPARE_EXCHANGE | {0: _READ_TSC}).items():
        at = 64 * size.bit_length()
        code = bytes.fromhex(text)
        page[at : at + len(code)] = code
        functions[size] = kind(start + at)
    executable = mmap.PROT_READ | mmap.PROT_EXEC
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start), 4096, executable):
        raise HostLimit("This host refuses to run generated code (mprotect failed).")
    return functions


_keep: list[mmap.mmap] = []
_functions = _assemble()
_compare_exchange_16 = _functions.pop(16)
_read_tsc = _functions.pop(0)


def read_tsc() -> int:
    """The host's time-stamp counter, as native code reads it too."""
    return _read_tsc(0, 0, 0)


def compare_exchange(host: int, size: int, expected: int, desired: int) -> int:
    """Atomically put `desired` where `expected` stands; what stood there.  `size` is 1, 2, 4, 8
    or 16, and the bytes must lie within one cache line (16: aligned), for the host's sake."""
    if size != 16:
        return _functions[size](host, expected, desired)
    pair = (ctypes.c_uint8 * 32).from_buffer(
        bytearray(expected.to_bytes(16, "little") + desired.to_bytes(16, "little"))
    )
    start = ctypes.addressof(pair)
    _compare_exchange_16(host, start, start + 16)
    return from_bytes(bytes(pair)[:16], "little")


def change(host: int, size: int, function: Callable[[int], int]) -> int:
    """Atomically replace the bytes by function(bytes); the bytes before."""
    while True:
        before = load(host, size)
        if compare_exchange(host, size, before, function(before)) == before:
            return before
