"""Opens a hypervisor by name; the only place that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm import quirks
from trapline.kvm.api import Kvm
from trapline.kvm.quirks import Quirk

if TYPE_CHECKING:
    from trapline.kvm.silicon import Watcher

_BACKENDS, _CPU, _ENGINES = ("software", "host"), "sapphire-rapids", ("jit", "interp")


def open_kvm(
    backend: str = "software",
    *,
    cpu: str | None = None,
    engine: str | None = None,
    observer: Watcher = None,
    quirks: Quirk = quirks.NONE,
    force_emulation_prefix: int = 0,
) -> Kvm:
    """A Kvm: "software" on Trapline's own processor, "host" on the real /dev/kvm.

    All else is the software's: `cpu` its processor model ("sapphire-rapids"), `engine` how it
    executes ("jit", or "interp"), `observer` sees every bus lock, `quirks` are where it behaves as
    upstream does.
    `force_emulation_prefix` is KVM's module parameter: with 1, UD2 followed by the bytes "kvm" has
    the emulator do the instruction behind it; 2 besides clears RFLAGS.RF first.
    """
    _check("hypervisor", backend, _BACKENDS)
    if backend == "host":
        given = any(one is not None for one in (cpu, engine, observer))
        if given or quirks or force_emulation_prefix:
            raise ValueError("the host's hypervisor has none of the software's options")
        from trapline.kvm.host.system import HostKvm

        return HostKvm()
    from trapline.kvm.svm import SvmPlatform
    from trapline.kvm.system import SoftwareKvm
    from trapline.kvm.vmx import VmxPlatform
    from trapline.processor import model

    how = _ENGINES[0] if engine is None else engine
    _check("engine", how, _ENGINES)
    chosen = model(_CPU if cpu is None else cpu)
    platform = SvmPlatform if chosen.is_amd else VmxPlatform
    return SoftwareKvm(
        lambda: platform(chosen, engine=how, observer=observer), quirks, force_emulation_prefix
    )


def _check(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise ValueError(f"there is no {what} {name!r}; there are {' and '.join(choices)}")
