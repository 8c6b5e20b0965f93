"""The memory calls: the mmap family, brk, shared memory segments."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from trapline.process import layout, mapping
from trapline.process.areas import PROT_EXEC, PROT_READ, PROT_WRITE, Area
from trapline.process.syscalls.dispatch import arguments, as_pointer, handles
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_SHM_RDONLY, _SHM_RND, _SHM_REMAP, _SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000
_NEVER_MAPPED = (1 << 47) - layout.PAGE
_IPC_STAT = 2
_SHMID_DS_SIZE = 112
_SHM_SEGSZ = 48  # offset in shmid_ds


@handles("mmap")
def mmap(thread: Thread) -> int:
    address, size, prot, flags, fd, offset = arguments(thread)
    fd = fd & 0xFFFFFFFF
    if not flags & mapping.MAP_ANONYMOUS and fd in thread.process.own_files:
        return -errno.EBADF
    return mapping.map_memory(
        thread.process.memory, address, size, prot, flags & 0xFFFFFFFF, fd, offset
    )


@handles("munmap")
def munmap(thread: Thread) -> int:
    address, size, *_ = arguments(thread)
    return mapping.unmap_memory(thread.process.memory, address, size)


@handles("mprotect")
def mprotect(thread: Thread) -> int:
    address, size, prot, *_ = arguments(thread)
    return mapping.protect_memory(thread.process.memory, address, size, prot & 0xFFFFFFFF)


@handles("pkey_mprotect")
def pkey_mprotect(thread: Thread) -> int:
    address, size, prot, key, *_ = arguments(thread)
    if key & 0xFFFFFFFF != 0xFFFFFFFF:
        return -errno.EINVAL
    return mapping.protect_memory(thread.process.memory, address, size, prot & 0xFFFFFFFF)


@handles("mremap")
def mremap(thread: Thread) -> int:
    address, old_size, new_size, flags, new_address, _ = arguments(thread)
    return mapping.remap_memory(
        thread.process.memory, address, old_size, new_size, flags, new_address
    )


@handles("madvise")
def madvise(thread: Thread) -> int:
    address, size, advice, *_ = arguments(thread)
    return mapping.advise_memory(thread.process.memory, address, size, advice & 0xFFFFFFFF)


@handles("mincore", "msync", "mlock", "munlock", "mlock2")
def on_range(thread: Thread) -> int:
    """Calls on pages that must all be mapped, and be the program's."""
    address, size, third, *_ = arguments(thread)
    memory = thread.process.memory
    end = address + size + layout.PAGE - 1 & -layout.PAGE
    if end <= layout.USER_END and memory.areas.covers(address & -layout.PAGE, end):
        host = memory.host(address)
    else:  # the kernel's own answer, for a page where it never maps anything
        host = _NEVER_MAPPED | address & layout.PAGE - 1
    if thread.call_number == NUMBERS["mincore"]:
        third = as_pointer(thread, third)
    return thread.calls(thread.call_number, host, size, third)


@handles("brk")
def brk(thread: Thread) -> int:
    return mapping.set_break(thread.process.memory, thread.vcpu.regs.rdi)


@handles("mlockall", "munlockall")
def mlockall(thread: Thread) -> int:
    """The whole VMM with its reservations would be locked; the program cannot tell."""
    return 0


@handles("shmat")
def shmat(thread: Thread) -> int:
    segment, address, flags, *_ = arguments(thread)
    memory = thread.process.memory
    status = ctypes.create_string_buffer(_SHMID_DS_SIZE)
    result = thread.calls(NUMBERS["shmctl"], segment, _IPC_STAT, ctypes.addressof(status))
    if result < 0:
        return result
    size = int.from_bytes(status.raw[_SHM_SEGSZ : _SHM_SEGSZ + 8], "little")
    size = size + layout.PAGE - 1 & -layout.PAGE
    if flags & _SHM_RND:
        address &= -layout.PAGE
    with memory.lock:
        target = 0
        if address:
            if memory.areas.between(address, address + size) and not flags & _SHM_REMAP:
                return -errno.EINVAL
            if address + size > layout.USER_END or not mapping.claim(memory, address, size):
                return -errno.ENOMEM
            mapping.unmap_memory(memory, address, size)
            target, flags = memory.host(address), flags | _SHM_REMAP
            if not mapping.claim(memory, address, size):
                return -errno.ENOMEM
        linear = thread.calls(NUMBERS["shmat"], segment, target, flags & ~_SHM_EXEC)
        if linear < 0:
            return linear
        prot = PROT_READ if flags & _SHM_RDONLY else PROT_READ | PROT_WRITE
        prot |= PROT_EXEC if flags & _SHM_EXEC else 0
        linear = address or linear
        memory.will_change(0, prot)
        memory.areas.add(Area(linear, linear + size, prot, True, name=f"/SYSV{segment:08x}"))
        return linear


@handles("shmdt")
def shmdt(thread: Thread) -> int:
    address = thread.vcpu.regs.rdi
    memory = thread.process.memory
    with memory.lock:
        area = memory.areas.find(address)
        if area is None or area.start != address or not area.name.startswith("/SYSV"):
            return -errno.EINVAL
        return mapping.unmap_memory(memory, area.start, area.size)


def name_area(thread: Thread, linear: int, size: int, name: str) -> None:
    """prctl(PR_SET_VMA_ANON_NAME): what describe() calls anonymous memory from now on."""
    memory = thread.process.memory
    with memory.lock:
        for area in memory.areas.between(linear, linear + size):
            if area.file is None and not area.name.startswith("["):
                memory.areas.add(replace(area, name=f"[anon:{name}]" if name else ""))
