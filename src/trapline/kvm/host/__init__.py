"""The API over a real /dev/kvm: names only."""

from trapline.kvm.host.system import HostKvm

__all__ = ["HostKvm"]
