"""What happened, kept: the recorder, the trace file, and names for its addresses."""

from trapline.trace.culprit import find_culprit
from trapline.trace.file import TraceError, TraceWriter
from trapline.trace.image import DEBUG_ROOT, find_debug_file
from trapline.trace.location import Location, Locator, Place
from trapline.trace.model import Mapped, Trace, TracedFrame, TracedSite, read_trace
from trapline.trace.recorder import Recorder, ThreadObserver
from trapline.trace.region import GuestThread, Region
from trapline.trace.variables import Field, Step

__all__ = [
    "DEBUG_ROOT",
    "Field",
    "GuestThread",
    "Location",
    "Locator",
    "Mapped",
    "Place",
    "Recorder",
    "Region",
    "Step",
    "ThreadObserver",
    "Trace",
    "TraceError",
    "TraceWriter",
    "TracedFrame",
    "TracedSite",
    "find_culprit",
    "find_debug_file",
    "read_trace",
]
