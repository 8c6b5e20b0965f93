"""The software hypervisor: KVM's system ioctls without /dev/kvm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import abi, msr, quirks
from trapline.kvm.backend import Platform
from trapline.kvm.capability import check_extension
from trapline.kvm.cpuid import supported
from trapline.kvm.quirks import Quirk
from trapline.kvm.vm import SoftwareVm


class SoftwareKvm:
    """`make_platform` gives each VM the processors of its own; `quirks` are on in all of them, and
    so is `force_emulation_prefix`."""

    def __init__(
        self,
        make_platform: Callable[[], Platform],
        quirks: Quirk = quirks.NONE,
        force_emulation_prefix: int = 0,
    ) -> None:
        self._quirks = quirks
        self._force_emulation_prefix = force_emulation_prefix
        self._make_platform = make_platform
        self._platform = make_platform()

    def get_api_version(self) -> int:
        return abi.API_VERSION

    def check_extension(self, capability: int) -> int:
        return check_extension(capability, self._platform.has_bus_lock_exit)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        return supported(self._platform.supported_cpuid(), self._quirks)

    @property
    def programs_see_host_cpuid(self) -> bool:
        return False

    def get_msr_index_list(self) -> list[int]:
        return msr.indices(self._platform.supported_cpuid(), self._quirks)

    def get_msr_feature_index_list(self) -> list[int]:
        return sorted(self._features())

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        known, found = self._features(), {}
        for index in indices:
            if index not in known:
                break
            found[index] = known[index]
        return found

    def _features(self) -> dict[int, int]:
        return msr.features(self._platform.supported_cpuid(), self._quirks)

    def create_vm(self) -> SoftwareVm:
        return SoftwareVm(self._make_platform(), self._quirks, self._force_emulation_prefix)

    def place_files(self, place: Callable[[int], int]) -> None:
        """There are no descriptors."""

    def close(self) -> None:
        """Nothing is held."""
