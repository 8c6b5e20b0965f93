"""/dev/kvm and its VMs, through ioctls.

Nothing here knows what a vCPU does; see `vcpu`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import abi
from trapline.kvm.host.vcpu import HostVcpu
from trapline.kvm.structures import CPUID_ENTRY, unpack_cpuid

if TYPE_CHECKING:
    from trapline.kvm.api import Vcpu

_MAX_CPUID_ENTRIES = 256
_PVM = Path("/sys/module/kvm_pvm")
_libc = ctypes.CDLL(None, use_errno=True)


def is_pvm() -> bool:
    """Whether the host's KVM is one without hardware support under it: its guests run at the
    host's CPL 3, and some things go otherwise than on processors."""
    return _PVM.exists()


class HostKvm:
    """The host's KVM."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._place: Callable[[int], int] = int
        if self.get_api_version() != abi.API_VERSION:
            version = self.get_api_version()
            self.close()
            raise OSError(errno.EPROTO, f"{path}: KVM API version {version}, not 12")

    def get_api_version(self) -> int:
        return fcntl.ioctl(self._fd, abi.GET_API_VERSION, 0)

    def check_extension(self, capability: int) -> int:
        return fcntl.ioctl(self._fd, abi.CHECK_EXTENSION, capability)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        size = CPUID_ENTRY.size
        buffer = bytearray(8 + size * _MAX_CPUID_ENTRIES)
        struct.pack_into("<I", buffer, 0, _MAX_CPUID_ENTRIES)
        fcntl.ioctl(self._fd, abi.GET_SUPPORTED_CPUID, buffer, True)
        (count,) = struct.unpack_from("<I", buffer)
        return unpack_cpuid(buffer[8 : 8 + size * count])

    @property
    def programs_see_host_cpuid(self) -> bool:
        return is_pvm()  # where CPUID is as unprivileged as ever, and nobody switches XCR0

    def get_msr_index_list(self) -> list[int]:
        return self._index_list(abi.GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> list[int]:
        return self._index_list(abi.GET_MSR_FEATURE_INDEX_LIST)

    def _index_list(self, request: int) -> list[int]:
        buffer = bytearray(4 + 4 * 1024)
        struct.pack_into("<I", buffer, 0, 1024)
        fcntl.ioctl(self._fd, request, buffer, True)
        (count,) = struct.unpack_from("<I", buffer)
        return list(struct.unpack_from(f"<{count}I", buffer, 4))

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        wanted = list(indices)
        rows = b"".join(struct.pack("<IIQ", index, 0, 0) for index in wanted)
        buffer = bytearray(struct.pack("<II", len(wanted), 0) + rows)
        done = fcntl.ioctl(self._fd, abi.GET_MSRS, buffer, True)
        return dict(struct.iter_unpack("<I4xQ", bytes(buffer[8 : 8 + 16 * done])))

    def place_files(self, place: Callable[[int], int]) -> None:
        self._fd = place(self._fd)
        self._place = place

    def create_vm(self) -> HostVm:
        mmap_size = fcntl.ioctl(self._fd, abi.GET_VCPU_MMAP_SIZE, 0)
        sync_regs = self.check_extension(abi.Capability.SYNC_REGS)
        fd = self._place(fcntl.ioctl(self._fd, abi.CREATE_VM, 0))
        return HostVm(fd, mmap_size, sync_regs, self._place)

    def close(self) -> None:
        os.close(self._fd)


class HostVm:
    """One VM of the host's KVM."""

    def __init__(
        self, fd: int, mmap_size: int, sync_regs: int, place: Callable[[int], int]
    ) -> None:
        self._fd = fd
        self._place = place
        self._mmap_size = mmap_size
        self._sync_regs = sync_regs
        self._vcpus: list[HostVcpu] = []

    def check_extension(self, capability: int) -> int:
        return fcntl.ioctl(self._fd, abi.CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *args: int) -> None:
        words = [*args, 0, 0, 0, 0][:4]
        fcntl.ioctl(self._fd, abi.ENABLE_CAP, struct.pack("<II4Q64x", capability, 0, *words))

    def set_user_memory_region(
        self, slot: int, flags: int, guest_physical: int, size: int, userspace_address: int
    ) -> None:
        region = struct.pack("<IIQQQ", slot, flags, guest_physical, size, userspace_address)
        fcntl.ioctl(self._fd, abi.SET_USER_MEMORY_REGION, region)

    def forget_code(self, userspace_address: int, size: int) -> None:
        """The processor looks at memory itself."""

    def set_tss_addr(self, guest_physical: int) -> None:
        # fcntl takes a C int only, and the usual place lies above 2 GiB.
        if _libc.ioctl(self._fd, abi.SET_TSS_ADDR, ctypes.c_ulong(guest_physical)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set_identity_map_addr(self, guest_physical: int) -> None:
        fcntl.ioctl(self._fd, abi.SET_IDENTITY_MAP_ADDR, struct.pack("<Q", guest_physical))

    def signal_msi(self, address: int, data: int) -> int:
        message = bytearray(20 + 12)
        struct.pack_into("<IIIII", message, 0, address & 0xFFFFFFFF, address >> 32, data, 0, 0)
        delivered: int = fcntl.ioctl(self._fd, abi.SIGNAL_MSI, message)
        return delivered

    def create_vcpu(self, vcpu_id: int) -> HostVcpu:
        fd = self._place(fcntl.ioctl(self._fd, abi.CREATE_VCPU, vcpu_id))
        vcpu = HostVcpu(fd, self._mmap_size, self._sync_regs)
        self._vcpus.append(vcpu)
        return vcpu

    def keep(self, vcpu: Vcpu) -> bool:
        return False  # KVM ties a VM to the address space that made it

    def abandon(self) -> None:
        for vcpu in self._vcpus:
            vcpu.close()
        self.close()

    def close(self) -> None:
        os.close(self._fd)
