"""The silicon: one logical processor, and what it tells."""

from trapline.processor.buslock import BusLock, Cause, Outcome
from trapline.processor.cluster import Cluster
from trapline.processor.core import Core
from trapline.processor.cpuid import CHOICES, FEATURES, MODELS, Model, model
from trapline.processor.decode import Decoded, decode, disassemble
from trapline.processor.events import Observer
from trapline.processor.fault import Fault, HostLimit, Undefined
from trapline.processor.guest import HARDWARE_EXCEPTION, NESTED_EPT, VmExit
from trapline.processor.jit import cache_root, compiler
from trapline.processor.memory import HostBus, Ram
from trapline.processor.replay import NotMemory, Replayer
from trapline.processor.state import State
from trapline.processor.svm import SvmExit, Vmcb
from trapline.processor.svm import enter as enter_svm
from trapline.processor.vmx import Vmcs, VmFail, enter

__all__ = [
    "CHOICES",
    "FEATURES",
    "HARDWARE_EXCEPTION",
    "MODELS",
    "NESTED_EPT",
    "BusLock",
    "Cause",
    "Cluster",
    "Core",
    "Decoded",
    "Fault",
    "HostBus",
    "HostLimit",
    "Model",
    "NotMemory",
    "Observer",
    "Outcome",
    "Ram",
    "Replayer",
    "State",
    "SvmExit",
    "Undefined",
    "VmExit",
    "VmFail",
    "Vmcb",
    "Vmcs",
    "cache_root",
    "compiler",
    "decode",
    "disassemble",
    "enter",
    "enter_svm",
    "model",
]
