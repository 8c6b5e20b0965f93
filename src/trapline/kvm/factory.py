"""Opens a hypervisor by name; the only place that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm import quirks
from trapline.kvm.api import Kvm
from trapline.kvm.quirks import Quirk

if TYPE_CHECKING:
    from trapline.kvm.silicon import Watcher


def open_kvm(
    backend: str = "software",
    *,
    cpu: str = "sapphire-rapids",
    engine: str = "jit",
    observer: Watcher = None,
    quirks: Quirk = quirks.NONE,
    force_emulation_prefix: int = 0,
) -> Kvm:
    """A Kvm: "software" on Trapline's own processor, "host" on the real /dev/kvm.

    `cpu`, `engine` ("jit" or "interp"), `observer` and `quirks` are the software's: its processor
    model, how it executes, who sees every bus lock, and where it behaves as upstream does.
    `force_emulation_prefix` is KVM's module parameter: with 1, UD2 followed by the bytes "kvm" has
    the emulator do the instruction behind it; 2 besides clears RFLAGS.RF first.
    """
    if backend == "host":
        from trapline.kvm.host.system import HostKvm

        return HostKvm()
    if backend == "software":
        from trapline.kvm.svm import SvmPlatform
        from trapline.kvm.system import SoftwareKvm
        from trapline.kvm.vmx import VmxPlatform
        from trapline.processor import model

        chosen = model(cpu)
        platform = SvmPlatform if chosen.is_amd else VmxPlatform
        return SoftwareKvm(
            lambda: platform(chosen, engine=engine, observer=observer),
            quirks,
            force_emulation_prefix,
        )
    raise ValueError(f"no such hypervisor: {backend!r}")
