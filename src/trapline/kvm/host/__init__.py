"""The host's own KVM, behind the same interface."""

from trapline.kvm.host.system import HostKvm, is_pvm

__all__ = ["HostKvm", "is_pvm"]
