"""kvm_run, the page a vCPU shares with the kernel: where the exit is, and the synced registers.

Offsets are those of struct kvm_run; nothing here makes an ioctl.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import weakref
from typing import Final

from trapline.kvm import abi, exits
from trapline.kvm.structures import GPR_ORDER

_UNION: Final = 32
_VALID_REGS: Final = 288 // 8
_DIRTY_REGS: Final = 296 // 8
REGS_OFFSET: Final = 304
SREGS_OFFSET: Final = REGS_OFFSET + 144
EVENTS_OFFSET: Final = SREGS_OFFSET + 312
_FS_BASE: Final = (SREGS_OFFSET + 3 * 24) // 8  # kvm_sregs: cs, ds, es, fs, gs
_GS_BASE: Final = (SREGS_OFFSET + 4 * 24) // 8

_IO = struct.Struct("<BBHIQ")
_DEBUG = struct.Struct("<I4xQQQ")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Word:
    """Descriptor: one 64-bit word of the synced registers; a write marks its part dirty."""

    __slots__ = ("dirty", "index")

    def __init__(self, index: int, dirty: int) -> None:
        self.index = index
        self.dirty = dirty

    def __get__(self, area: RunArea, owner: type | None = None) -> int:
        return area.words[self.index]

    def __set__(self, area: RunArea, word: int) -> None:
        area.words[self.index] = word & 0xFFFFFFFFFFFFFFFF
        area.words[_DIRTY_REGS] |= self.dirty


class RunArea:
    """The mapped kvm_run of one vCPU; also its register view."""

    def __init__(self, fd: int, size: int, sync: int) -> None:
        # Not mmap.mmap: it would hold a descriptor of its own, at a number nobody chose.
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, size, rights, mmap.MAP_SHARED, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "cannot map kvm_run")
        mapping = (ctypes.c_ubyte * size).from_address(address)
        self.bytes = memoryview(mapping).cast("B")
        # Unmapped with the last exit that shows a part of it.
        weakref.finalize(mapping, _libc.munmap, ctypes.c_void_p(address), size).atexit = False
        self.words = self.bytes[:2352].cast("Q")
        self.words[_VALID_REGS] = sync

    rax = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rax"), abi.SYNC_X86_REGS)
    rbx = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rbx"), abi.SYNC_X86_REGS)
    rcx = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rcx"), abi.SYNC_X86_REGS)
    rdx = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rdx"), abi.SYNC_X86_REGS)
    rsi = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rsi"), abi.SYNC_X86_REGS)
    rdi = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rdi"), abi.SYNC_X86_REGS)
    rsp = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rsp"), abi.SYNC_X86_REGS)
    rbp = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rbp"), abi.SYNC_X86_REGS)
    r8 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r8"), abi.SYNC_X86_REGS)
    r9 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r9"), abi.SYNC_X86_REGS)
    r10 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r10"), abi.SYNC_X86_REGS)
    r11 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r11"), abi.SYNC_X86_REGS)
    r12 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r12"), abi.SYNC_X86_REGS)
    r13 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r13"), abi.SYNC_X86_REGS)
    r14 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r14"), abi.SYNC_X86_REGS)
    r15 = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("r15"), abi.SYNC_X86_REGS)
    rip = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rip"), abi.SYNC_X86_REGS)
    rflags = _Word(REGS_OFFSET // 8 + GPR_ORDER.index("rflags"), abi.SYNC_X86_REGS)
    fs_base = _Word(_FS_BASE, abi.SYNC_X86_SREGS)
    gs_base = _Word(_GS_BASE, abi.SYNC_X86_SREGS)

    @property
    def dirty(self) -> int:
        """The SYNC_X86_* parts written since KVM last took them."""
        return self.words[_DIRTY_REGS]

    @dirty.setter
    def dirty(self, parts: int) -> None:
        self.words[_DIRTY_REGS] = parts

    def exit(self) -> exits.Exit:
        """What the last KVM_RUN ended with."""
        area = self.bytes
        reason = self.words[1] & 0xFFFFFFFF
        if reason == abi.ExitReason.IO:
            direction, size, port, count, offset = _IO.unpack_from(area, _UNION)
            return exits.Io(direction, size, port, count, area[offset : offset + size * count])
        if reason == abi.ExitReason.MMIO:
            size = struct.unpack_from("<I", area, _UNION + 16)[0]
            data = area[_UNION + 8 : _UNION + 8 + size]
            return exits.Mmio(self.words[_UNION // 8], size, bool(area[_UNION + 20]), data)
        if reason == abi.ExitReason.DEBUG:
            return exits.Debug(*_DEBUG.unpack_from(area, _UNION))
        if reason == abi.ExitReason.FAIL_ENTRY:
            return exits.FailEntry(*struct.unpack_from("<QI", area, _UNION))
        if reason == abi.ExitReason.INTERNAL_ERROR:
            suberror, count = struct.unpack_from("<II", area, _UNION)
            return exits.InternalError(suberror, list(self.words[_UNION // 8 + 1 :][:count]))
        if reason == abi.ExitReason.IOAPIC_EOI:
            return exits.IoapicEoi(area[_UNION])
        simple = _SIMPLE.get(reason)
        if simple is not None:
            return simple()
        return exits.Unknown(reason, self.words[_UNION // 8])


_SIMPLE: dict[
    int,
    type[exits.Hlt]
    | type[exits.Shutdown]
    | type[exits.Interrupted]
    | type[exits.IrqWindowOpen]
    | type[exits.SetTpr]
    | type[exits.X86BusLock],
] = {
    abi.ExitReason.HLT: exits.Hlt,
    abi.ExitReason.SHUTDOWN: exits.Shutdown,
    abi.ExitReason.INTR: exits.Interrupted,
    abi.ExitReason.IRQ_WINDOW_OPEN: exits.IrqWindowOpen,
    abi.ExitReason.SET_TPR: exits.SetTpr,
    abi.ExitReason.X86_BUS_LOCK: exits.X86BusLock,
}
