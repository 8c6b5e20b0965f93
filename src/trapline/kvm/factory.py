"""Opens a hypervisor by name; the only place that knows which there are."""

from __future__ import annotations

from trapline.kvm.api import Kvm


def open_kvm(backend: str = "software") -> Kvm:
    """A Kvm: "software" on Trapline's own processor, "host" on the real /dev/kvm."""
    if backend == "host":
        from trapline.kvm.host.system import HostKvm

        return HostKvm()
    raise ValueError(f"no such hypervisor: {backend!r}")
