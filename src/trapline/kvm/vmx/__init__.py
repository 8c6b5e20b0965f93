"""The hypervisor on Intel's VMX: names only."""

from trapline.kvm.vmx.platform import VmxPlatform

__all__ = ["VmxPlatform"]
