"""Guest execution as Intel's microcode does it: names only."""

from trapline.processor.vmx.entry import enter
from trapline.processor.vmx.failure import VmFail
from trapline.processor.vmx.vmcs import Vmcs

__all__ = ["VmFail", "Vmcs", "enter"]
