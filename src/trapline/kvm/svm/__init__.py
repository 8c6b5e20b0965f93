"""The hypervisor on AMD's SVM: names only."""

from trapline.kvm.svm.platform import SvmPlatform

__all__ = ["SvmPlatform"]
