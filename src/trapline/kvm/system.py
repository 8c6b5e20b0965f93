"""The software hypervisor: KVM's system ioctls without /dev/kvm."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import abi
from trapline.kvm.backend import Platform
from trapline.kvm.capability import check_extension
from trapline.kvm.cpuid import supported
from trapline.kvm.msr import Msrs
from trapline.kvm.vm import SoftwareVm


class SoftwareKvm:
    """`make_platform` gives each VM the processors of its own."""

    def __init__(self, make_platform: Callable[[], Platform]) -> None:
        self._make_platform = make_platform
        self._platform = make_platform()

    def get_api_version(self) -> int:
        return abi.API_VERSION

    def check_extension(self, capability: int) -> int:
        return check_extension(capability, self._platform.has_bus_lock_exit)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        return supported(self._platform.supported_cpuid())

    def get_msr_index_list(self) -> list[int]:
        return Msrs.indices()

    def create_vm(self) -> SoftwareVm:
        return SoftwareVm(self._make_platform())

    def place_files(self, place: Callable[[int], int]) -> None:
        """There are no descriptors."""

    def close(self) -> None:
        """Nothing is held."""
