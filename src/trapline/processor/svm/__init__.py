"""Guest execution as AMD's microcode does it: names only."""

from trapline.processor.svm.entry import enter
from trapline.processor.svm.exit import SvmExit
from trapline.processor.svm.vmcb import Vmcb

__all__ = ["SvmExit", "Vmcb", "enter"]
