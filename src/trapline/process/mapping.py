"""mmap and its family: the host's mapping, the areas and the page tables changed as one.

Functions over a GuestMemory; results are Linux's, -errno for errors.  The VMM's own mappings are
never replaced: where one is in the way the program gets ENOMEM.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace

from trapline.process import layout
from trapline.process.areas import PAGE, PROT_EXEC, PROT_WRITE, Area, MappedFile
from trapline.process.memory import GuestMemory, host_prot, page_flags

MMAP, MPROTECT, MUNMAP, MREMAP, MADVISE = 9, 10, 11, 25, 28

MAP_SHARED, MAP_PRIVATE, MAP_TYPE = 1, 2, 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_GROWSDOWN, MAP_NORESERVE = 0x100, 0x4000
MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
PROT_GROWSDOWN, PROT_GROWSUP = 0x01000000, 0x02000000
MADV_DONTFORK, MADV_DOFORK = 10, 11
_LOW_32BIT = (0x40000000, 0x80000000)  # where Linux puts MAP_32BIT mappings
_MASK = (1 << 64) - 1


def _pages(size: int) -> int:
    return size + PAGE - 1 & -PAGE


def map_memory(
    memory: GuestMemory, address: int, size: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    """mmap: the linear address, or -errno."""
    size = _pages(size)
    if not size or size > layout.USER_END:
        return -errno.ENOMEM if size else -errno.EINVAL
    with memory.lock:
        linear: int | None
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            error = _check_fixed(memory, address, size, flags)
            if error:
                return error
            linear = address
        else:
            linear = _choose(memory, address & -PAGE, size, flags)
        flags &= ~(MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT | MAP_GROWSDOWN)
        if linear is None:
            return _map_anywhere(memory, address & -PAGE, size, prot, flags, fd, offset)
        return _map_at(memory, linear, size, prot, flags, fd, offset)


def _check_fixed(memory: GuestMemory, address: int, size: int, flags: int) -> int:
    if address % PAGE:
        return -errno.EINVAL
    end = address + size
    if end > layout.USER_END or address < layout.LOW_SIZE < end:
        return -errno.ENOMEM
    if address < layout.LOWEST:
        return -errno.EPERM
    if flags & MAP_FIXED_NOREPLACE and memory.areas.between(address, end):
        return -errno.EEXIST
    return 0


def _choose(memory: GuestMemory, hint: int, size: int, flags: int) -> int | None:
    """A place below 4 GiB if the program asks for one; elsewhere the host chooses."""
    if flags & MAP_32BIT:
        return memory.areas.find_gap(size, *_LOW_32BIT)
    if hint >= layout.LOWEST and hint + size <= layout.LOW_SIZE:
        return None if memory.areas.between(hint, hint + size) else hint
    return None


def _map_anywhere(
    memory: GuestMemory, hint: int, size: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    if flags & MAP_32BIT:
        return -errno.ENOMEM
    if hint < layout.LOW_SIZE:
        hint = 0
    linear = memory.calls(MMAP, hint, size, host_prot(prot), flags, fd & _MASK, offset)
    if linear < 0:
        return linear
    if linear < layout.LOW_SIZE:  # the guest's low addresses are elsewhere
        memory.calls(MUNMAP, linear, size)
        return -errno.ENOMEM
    return _record(memory, linear, size, prot, flags, fd, offset)


def _map_at(
    memory: GuestMemory, linear: int, size: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    if not claim(memory, linear, size):
        return -errno.ENOMEM
    host = memory.host(linear)
    _forget_pages(memory, linear, size)
    result = memory.calls(MMAP, host, size, host_prot(prot), flags | MAP_FIXED, fd & _MASK, offset)
    if result < 0:
        release_unused(memory, linear, size)
        return result
    return _record(memory, linear, size, prot, flags, fd, offset)


def claim(memory: GuestMemory, linear: int, size: int) -> bool:
    """Make the free parts of a range the guest's, unless the VMM sits in one of them."""
    if linear < layout.LOW_SIZE:
        return linear + size <= layout.LOW_SIZE
    claimed: list[tuple[int, int]] = []
    for start, end in memory.areas.gaps(linear, linear + size):
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
        result = memory.calls(MMAP, start, end - start, 0, flags, _MASK, 0)
        if result != start:
            if result >= 0:  # a kernel older than MAP_FIXED_NOREPLACE put it elsewhere
                memory.calls(MUNMAP, result, end - start)
            for first, last in claimed:
                memory.calls(MUNMAP, first, last - first)
            return False
        claimed.append((start, end))
    return True


def release_unused(memory: GuestMemory, linear: int, size: int) -> None:
    """Undo `claim` where no area came of it."""
    for start, end in memory.areas.gaps(linear, linear + size):
        _unmap_host(memory, start, end - start)


def _record(
    memory: GuestMemory, linear: int, size: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    shared = flags & MAP_TYPE != MAP_PRIVATE
    area = Area(linear, linear + size, prot & 7, shared)
    memory.will_change(0, prot)
    if not flags & MAP_ANONYMOUS:
        area = _with_file(area, fd, offset)
    memory.areas.add(area)
    memory.changed(area)
    return linear


def _with_file(area: Area, fd: int, offset: int) -> Area:
    status = os.fstat(fd & 0xFFFFFFFF)
    path = os.readlink(f"/proc/self/fd/{fd & 0xFFFFFFFF}")
    file_end = 0
    if stat.S_ISREG(status.st_mode):
        there = area.start + max(0, _pages(status.st_size) - offset)
        file_end = max(there, area.start + 1) if there < area.end else 0
    file = MappedFile(path, status.st_dev, status.st_ino)
    return replace(area, file=file, offset=offset, file_end=file_end)


def _forget_pages(memory: GuestMemory, linear: int, size: int) -> None:
    """Take a range out of areas and tables, everywhere, before its host mapping goes."""
    removed = memory.areas.remove(linear, linear + size)
    if memory.machine.tables.clear(linear, linear + size):
        memory.world.flush()
    for area in removed:
        memory.machine.forget_code(area.start, area.end)
        memory.removed(area)


def _unmap_host(memory: GuestMemory, linear: int, size: int) -> int:
    if linear >= layout.LOW_SIZE:
        return memory.calls(MUNMAP, linear, size)
    # The low 4 GiB stay reserved: a hole there could be taken by the VMM itself.
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    return min(0, memory.calls(MMAP, memory.host(linear), size, 0, flags, _MASK, 0))


def unmap_memory(memory: GuestMemory, address: int, size: int) -> int:
    """munmap: only what is the program's goes."""
    size = _pages(size)
    if address % PAGE or not size or address + size > layout.USER_END:
        return -errno.EINVAL
    with memory.lock:
        areas = memory.areas.between(address, address + size)
        if areas:
            _forget_pages(memory, address, size)
            for area in areas:
                _unmap_host(memory, area.start, area.size)
        return 0


def protect_memory(memory: GuestMemory, address: int, size: int, prot: int) -> int:
    """mprotect: as on Linux, what comes before a hole is changed."""
    if address % PAGE or prot & ~(7 | PROT_GROWSDOWN | PROT_GROWSUP):
        return -errno.EINVAL
    size = _pages(size)
    if not size:
        return 0
    with memory.lock:
        start, end = address, address + size
        first = memory.areas.find(start)
        if prot & PROT_GROWSDOWN and first is not None:
            start = first.start
        prot &= 7
        place = start
        for area in memory.areas.between(start, end):
            if area.start != place:
                break
            result = _protect_area(memory, area, prot)
            if result < 0:
                return result
            place = area.end
        return 0 if place == end else -errno.ENOMEM


def _protect_area(memory: GuestMemory, area: Area, prot: int) -> int:
    if area.prot == prot:
        return 0
    narrowed = memory.machine.tables.protect(area.start, area.end, page_flags(prot))
    if narrowed:
        memory.world.flush()
    memory.will_change(area.prot, prot)
    result = memory.calls(MPROTECT, memory.host(area.start), area.size, host_prot(prot))
    if result < 0:
        memory.machine.tables.protect(area.start, area.end, page_flags(area.prot))
        return result
    new = replace(area, prot=prot)
    memory.areas.add(new)
    if (area.prot ^ prot) & PROT_EXEC:
        memory.changed(new)
    return 0


def remap_memory(
    memory: GuestMemory, address: int, old_size: int, new_size: int, flags: int, new_address: int
) -> int:
    """mremap of one area or a part of it."""
    old_size, new_size = _pages(old_size), _pages(new_size)
    if address % PAGE or not new_size or flags & ~7:
        return -errno.EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        return -errno.EINVAL
    with memory.lock:
        area = memory.areas.find(address)
        if area is None or address + max(old_size, 1) > area.end or not old_size:
            return -errno.EFAULT if old_size else -errno.EINVAL
        if flags & MREMAP_FIXED:
            return _move_fixed(memory, area, address, old_size, new_size, flags, new_address)
        if flags & MREMAP_DONTUNMAP:
            return _move(memory, area.part(address, address + old_size), new_size, flags)
        if new_size <= old_size:
            if new_size < old_size:
                unmap_memory(memory, address + new_size, old_size - new_size)
            return address
        whole = area.part(address, address + old_size)
        if address + old_size == area.end and _grow(memory, whole, new_size):
            return address
        if not flags & MREMAP_MAYMOVE:
            return -errno.ENOMEM
        return _move(memory, whole, new_size, flags)


def _grow(memory: GuestMemory, area: Area, new_size: int) -> bool:
    """Make an area longer where it is."""
    end = area.start + new_size
    limit = layout.LOW_SIZE if area.start < layout.LOW_SIZE else layout.USER_END
    if end > limit or memory.areas.between(area.end, end):
        return False
    if area.start < layout.LOW_SIZE:  # the reservation makes room
        memory.calls(MUNMAP, memory.host(area.end), end - area.end)
    host = memory.host(area.start)
    if memory.calls(MREMAP, host, area.size, new_size, 0, 0) != host:
        if area.start < layout.LOW_SIZE:
            _unmap_host(memory, area.end, end - area.end)
        return False
    memory.areas.add(replace(area, end=end))
    return True


def _move(memory: GuestMemory, area: Area, new_size: int, flags: int, target: int = 0) -> int:
    """Let the host move the pages; the old range's areas and pages go, unless DONTUNMAP."""
    keep = flags & MREMAP_DONTUNMAP
    if memory.machine.tables.clear(area.start, area.end):
        memory.world.flush()
    result = memory.calls(
        MREMAP, memory.host(area.start), area.size, new_size, flags, memory.host(target)
    )
    if result < 0:
        return result
    linear = target if flags & MREMAP_FIXED else result
    memory.machine.forget_code(area.start, area.end)
    if not keep:
        memory.areas.remove(area.start, area.end)
        if area.start < layout.LOW_SIZE:
            _unmap_host(memory, area.start, area.size)
    file_end = area.file_end and area.file_end - area.start + linear
    memory.areas.add(replace(area, start=linear, end=linear + new_size, file_end=file_end))
    if area.prot & PROT_EXEC:
        memory.removed(area)
        memory.changed(memory.areas.between(linear, linear + new_size)[0])
    return linear


def _move_fixed(
    memory: GuestMemory, area: Area, address: int, old_size: int, new_size: int, flags: int,
    target: int,
) -> int:  # fmt: skip
    error = _check_fixed(memory, target, new_size, MAP_FIXED)
    if error or (address < target + new_size and target < address + old_size):
        return error or -errno.EINVAL
    if not claim(memory, target, new_size):
        return -errno.ENOMEM
    _forget_pages(memory, target, new_size)
    result = _move(memory, area.part(address, address + old_size), new_size, flags, target)
    if result < 0:
        release_unused(memory, target, new_size)
    return result


def advise_memory(memory: GuestMemory, address: int, size: int, advice: int) -> int:
    """madvise, for the program's areas only; ENOMEM after all if there was a hole."""
    if address % PAGE:
        return -errno.EINVAL
    size = _pages(size)
    if advice in (MADV_DONTFORK, MADV_DOFORK):
        return 0  # a child that lacked the pages would fault inside the VMM
    with memory.lock:
        place, result = address, 0
        for area in memory.areas.between(address, address + size):
            if area.start != place:
                result = -errno.ENOMEM
            done = memory.calls(MADVISE, memory.host(area.start), area.size, advice)
            memory.machine.forget_code(area.start, area.end)
            if done < 0:
                return done
            place = area.end
        return result if place == address + size else -errno.ENOMEM


def set_break(memory: GuestMemory, address: int) -> int:
    """brk: the break there is afterwards."""
    with memory.lock:
        if address < memory.brk_start:
            return memory.brk_end
        old, new = _pages(memory.brk_end), _pages(address)
        if new < old:
            unmap_memory(memory, new, old - new)
        elif new > old:
            if memory.areas.between(old, new + PAGE) or new > layout.USER_END:
                return memory.brk_end
            flags = MAP_PRIVATE | MAP_ANONYMOUS
            prot = PROT_WRITE | 1
            if _map_at(memory, old, new - old, prot, flags, -1, 0) < 0:
                return memory.brk_end
            memory.areas.add(replace(memory.areas.between(old, new)[0], name="[heap]"))
        memory.brk_end = address
        return address
